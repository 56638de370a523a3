"""The laws as functions to fit: logarithms of losses and their gradients, for many parameter vectors at once.

Shapes: r parameter vectors, n points, p parameters of a law; x_rp holds what is fitted: of positive parameters the
logarithms. What they say at one point is what `plan.laws` says.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyllama.scaling.points import Point

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Design:
    """Where a law is evaluated: natural logarithms, each [n]."""

    params: Array
    tokens: Array
    unique: Array
    """Of the unique tokens, at most the tokens."""


def design(points: Iterable[Point]) -> Design:
    """Of runs; tokens not known to be seen again count as unseen."""
    rows = [(p.params, p.tokens, min(p.tokens, p.unique_tokens or p.tokens)) for p in points]
    params, tokens, unique = np.log(np.array(rows, dtype=np.float64).reshape(-1, 3)).T
    return Design(params=params, tokens=tokens, unique=unique)


Evaluate = Callable[[Array, Design], tuple[Array, Array]]


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One that is fitted."""

    name: str
    logarithm: bool
    """Whether its logarithm is fitted, which keeps it positive."""
    starts: tuple[float, ...]
    """Where searches begin, as it is fitted."""
    low: float
    """As far down as it is followed, as it is fitted; what reaches it has no lower bound."""
    high: float


@dataclass(frozen=True, kw_only=True)
class Form:
    """A law to fit."""

    key: str
    title: str
    formula: str
    source: str
    parameters: tuple[Parameter, ...]
    evaluate: Evaluate
    """Of x_rp and a design: the logarithms of the losses [r, n] and their gradients by x [r, n, p]."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parameters, in the order of a vector."""
        return tuple(parameter.name for parameter in self.parameters)

    @property
    def low(self) -> Array:
        """Bounds from below, [p]."""
        return np.array([parameter.low for parameter in self.parameters])

    @property
    def high(self) -> Array:
        """Bounds from above, [p]."""
        return np.array([parameter.high for parameter in self.parameters])

    def log_loss(self, x_rp: Array, at: Design) -> Array:
        """Logarithms of the losses, [r, n]."""
        return self.evaluate(x_rp, at)[0]

    def grid(self) -> Array:
        """Every start, [r, p]."""
        return np.array(list(itertools.product(*(parameter.starts for parameter in self.parameters))))

    def natural(self, x_rp: Array) -> Array:
        """What is fitted as the law has it."""
        return np.where(self._logarithms, np.exp(np.where(self._logarithms, x_rp, 0)), x_rp)

    def fitted(self, natural_rp: Array | Sequence[Sequence[float]]) -> Array:
        """The law's parameters as they are fitted."""
        natural = np.asarray(natural_rp, dtype=np.float64)
        return np.where(self._logarithms, np.log(np.where(self._logarithms, natural, 1)), natural)

    @property
    def _logarithms(self) -> NDArray[np.bool_]:
        return np.array([parameter.logarithm for parameter in self.parameters])


def _softmax(terms_krn: list[Array]) -> tuple[Array, list[Array]]:
    """The logarithm of a sum of exponentials, and each one's share of the sum."""
    largest = np.maximum.reduce(terms_krn)
    raised = [np.exp(term - largest) for term in terms_krn]
    total = sum(raised[1:], start=raised[0])
    return largest + np.log(total), [one / total for one in raised]


def _hoffmann(x_rp: Array, at: Design) -> tuple[Array, Array]:
    e, a, b, alpha, beta = (column[:, None] for column in x_rp.T)
    log_loss, (floor, size, length) = _softmax(
        [e + 0 * at.params, a - alpha * at.params, b - beta * at.tokens],
    )
    return log_loss, np.stack([floor, size, length, -size * at.params, -length * at.tokens], axis=2)


def _overtrained(x_rp: Array, at: Design) -> tuple[Array, Array]:
    e, a, b, eta = (column[:, None] for column in x_rp.T)
    ratio, flops = at.tokens - at.params, np.log(6) + at.params + at.tokens
    log_loss, (floor, over, under) = _softmax(
        [e + 0 * flops, a + eta * (ratio - flops), b - eta * (ratio + flops)],
    )
    return log_loss, np.stack([floor, over, under, over * (ratio - flops) - under * (ratio + flops)], axis=2)


def _repeated(x_rp: Array, at: Design) -> tuple[Array, Array]:
    e, a, b, alpha, repeats, excess = (column[:, None] for column in x_rp.T)
    matched = at.unique + (a - b) / alpha  # alpha is beta: G (U G)^(beta / alpha) = U G^2 = U (A / B)^(1 / alpha)
    above = matched < at.params
    base = np.where(above, matched, at.params)
    size, size_by_base, size_by_excess = _worth(at.params, base, excess)
    length, _, length_by_repeats = _worth(at.tokens + 0 * e, at.unique + 0 * e, repeats)
    log_loss, (floor, by_size, by_length) = _softmax([e + 0 * size, a - alpha * size, b - alpha * length])
    moved = -alpha * by_size * size_by_base * above  # by the logarithm of the base
    gradient = [
        floor,
        by_size + moved / alpha,
        by_length - moved / alpha,
        -by_size * size - by_length * length - moved * (a - b) / alpha**2,
        -alpha * by_length * length_by_repeats,
        -alpha * by_size * size_by_excess,
    ]
    return log_loss, np.stack(gradient, axis=2)


def _worth(taken: Array, base: Array, scale: Array) -> tuple[Array, Array, Array]:
    """What `plan.laws` calls worth, in logarithms, with its gradients by the base's and the scale's."""
    times, scale = np.exp(np.minimum(taken - base, 300)), np.exp(scale)
    beyond = (times - 1) / scale
    left = np.exp(-beyond)
    worth = 1 + scale * -np.expm1(-beyond)
    return base + np.log(worth), 1 - left * times / worth, scale * (1 - left - beyond * left) / worth


def _exponent(name: str, *starts: float) -> Parameter:
    return Parameter(name=name, logarithm=False, starts=starts, low=0.005, high=3.0)


def _coefficient(name: str, *starts: float) -> Parameter:
    return Parameter(name=name, logarithm=True, starts=starts, low=-6.0, high=80.0)


def _floor(*starts: float) -> Parameter:
    return Parameter(name="E", logarithm=True, starts=starts, low=-4.0, high=4.0)


def _scale(name: str, *starts: float) -> Parameter:
    return Parameter(name=name, logarithm=True, starts=starts, low=float(np.log(0.01)), high=float(np.log(1e4)))


HOFFMANN = Form(
    key="hoffmann",
    title="Size and length",
    formula="L = E + A/N^alpha + B/D^beta",
    source="Hoffmann et al. 2022, arXiv 2203.15556",
    parameters=(
        _floor(-1, -0.5, 0, 0.5, 1),
        _coefficient("A", 0, 5, 10, 15, 20, 25),
        _coefficient("B", 0, 5, 10, 15, 20, 25),
        _exponent("alpha", 0.005, 0.5, 1, 1.5, 2),
        _exponent("beta", 0.005, 0.5, 1, 1.5, 2),
    ),
    evaluate=_hoffmann,
)
REPEATED = Form(
    key="repeated",
    title="Size and length with repeated tokens",
    formula=(
        "L = E + A/N'^alpha + B/D'^alpha, D' = U (1 + R_D* (1 - exp(-R_D/R_D*))), R_D = D/U - 1 for U unique tokens; "
        "N' the same of R_N* and of the size that U tokens call for"
    ),
    source="Muennighoff et al. 2023, arXiv 2305.16264",
    parameters=(
        _floor(-1, -0.5, 0, 0.5, 1),
        _coefficient("A", 0, 5, 10, 15),
        _coefficient("B", 0, 5, 10, 15),
        _exponent("alpha", 0.2, 0.4, 0.8),
        _scale("R_D*", *np.log([3.0, 15.0, 60.0])),
        _scale("R_N*", *np.log([3.0, 15.0, 60.0])),
    ),
    evaluate=_repeated,
)
OVERTRAINED = Form(
    key="overtrained",
    title="Compute and tokens a parameter",
    formula="L = E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D",
    source="Gadre et al. 2024, arXiv 2403.08540",
    parameters=(
        _floor(-1, -0.5, 0, 0.5, 1),
        _coefficient("a", 0, 5, 10, 15, 20),
        _coefficient("b", 0, 5, 10, 15, 20),
        _exponent("eta", 0.05, 0.1, 0.2, 0.4, 0.8),
    ),
    evaluate=_overtrained,
)
FORMS = {form.key: form for form in (HOFFMANN, REPEATED, OVERTRAINED)}
"""By the names that they have in a fit."""
