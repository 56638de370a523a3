"""Published scaling laws: the loss that they foretell, and what they hold for.

L is the held-out loss in nats a token, N the parameters, D the training tokens, C = 6 N D the training FLOPs. Each law
was fitted to its own corpus and tokenizer: what it says of another is a direction, not a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class Range:
    """From the smallest to the largest that a law was fitted on."""

    least: float
    most: float

    def outside(self, value: float) -> float:
        """How many times beyond the range a value is; 1 within it."""
        return max(1.0, value / self.most, self.least / value)


class Allocation(NamedTuple):
    """A size and a length."""

    parameters: float
    tokens: float

    @property
    def flops(self) -> float:
        """Training compute, C = 6 N D."""
        return 6 * self.parameters * self.tokens


@dataclass(frozen=True, kw_only=True)
class Parametric:
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, arXiv 2203.15556, approach 3)."""

    source: str
    log_e: float
    log_a: float
    log_b: float
    alpha: float
    beta: float
    parameters: Range
    tokens: Range

    def loss(self, n: float, d: float) -> float:
        """At n parameters after d tokens, none of them seen before."""
        return self.floor + self.from_size(n) + math.exp(self.log_b - self.beta * math.log(d))

    @property
    def floor(self) -> float:
        """E: what no model of any size gets below."""
        return math.exp(self.log_e)

    def from_size(self, n: float) -> float:
        """A / N^alpha: what n parameters add to the floor however long they are trained."""
        return math.exp(self.log_a - self.alpha * math.log(n))

    @property
    def _g(self) -> float:
        """G of the paper's equation 4."""
        ratio = self.alpha / self.beta * math.exp(self.log_a - self.log_b)
        return float(ratio ** (1 / (self.alpha + self.beta)))

    def optimum(self, flops: float) -> Allocation:
        """The allocation of least loss for so much training compute."""
        sixth, both = flops / 6, self.alpha + self.beta
        return Allocation(self._g * sixth ** (self.beta / both), sixth ** (self.alpha / both) / self._g)

    def matched_size(self, d: float) -> float:
        """The size whose optimal length is d tokens."""
        return float(self._g * (self._g * d) ** (self.beta / self.alpha))

    def tokens_for(self, n: float, loss: float) -> float | None:
        """The tokens that n parameters need for a loss; None where no number of them is enough."""
        left = loss - self.floor - self.from_size(n)
        return math.exp((self.log_b - math.log(left)) / self.beta) if left > 0 else None


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """The same with repeats, each worth less than the one before (Muennighoff et al. 2023, arXiv 2305.16264)."""

    fresh: Parametric
    """What it is where nothing repeats; alpha and beta are equal."""
    repeats: float
    """R_D*: repeats after which a token has lost 1 - 1/e of its worth."""
    excess: float
    """R_N*: the same for parameters beyond what the unique tokens call for."""

    def effective_tokens(self, d: float, unique: float) -> float:
        """The unseen tokens that d are worth where only so many are unique."""
        return _worth(d, min(d, unique), self.repeats) if d else 0.0

    def loss(self, n: float, d: float, unique: float) -> float:
        """At n parameters after d tokens, of which so many are unique."""
        unique = min(d, unique)
        return self.loss_of_mixture(n, self.effective_tokens(d, unique), unique)

    def loss_of_mixture(self, n: float, effective: float, unique: float) -> float:
        """At n parameters after tokens of several sources: worth so many unseen ones in all, so many of them unique."""
        size = _worth(n, min(n, self.fresh.matched_size(unique)), self.excess)
        return self.fresh.loss(size, effective)

    def optimum(self, flops: float, unique: float) -> Allocation:
        """The allocation of least loss for so much training compute on so many unique tokens."""
        sixth = flops / 6
        d = _least(lambda log_d: self.loss(sixth / math.exp(log_d), math.exp(log_d), unique), *_around(sixth**0.5))
        return Allocation(sixth / math.exp(d), math.exp(d))


def _worth(taken: float, base: float, scale: float) -> float:
    """Base and what is taken beyond it, at an exponentially falling worth."""
    return base + base * scale * -math.expm1(-(taken / base - 1) / scale)


def least_lifetime(law: Parametric, *, loss: float, inference_tokens: float) -> Allocation:
    """The allocation of least compute over a model's life, 6 N D to train and 2 N for each token it is asked for, among
    those of one loss (Sardana et al. 2024, arXiv 2401.00448). Raises ValueError where no model has that loss."""
    if loss <= law.floor:
        raise ValueError(f"a loss of {loss:g} is not above the law's floor of {law.floor:g}: no model has it")
    smallest = math.exp((law.log_a - math.log(loss - law.floor)) / law.alpha)  # it would need endless data

    def lifetime(log_n: float) -> float:
        n = math.exp(log_n)
        d = law.tokens_for(n, loss)
        return 2 * n * (3 * d + inference_tokens) if d else math.inf

    n = math.exp(_least(lifetime, math.log(smallest) + 1e-9, math.log(smallest) + 12))
    d = law.tokens_for(n, loss)
    assert d is not None  # n is above the smallest
    return Allocation(n, d)


def lifetime_flops(size: Allocation, *, inference_tokens: float) -> float:
    """6 N D to train and 2 N for each token of inference."""
    return size.flops + 2 * size.parameters * inference_tokens


def _around(middle: float) -> tuple[float, float]:
    return math.log(middle) - 12, math.log(middle) + 12


def _least(cost: Callable[[float], float], low: float, high: float) -> float:
    """Where a cost with one valley is least, by golden section."""
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = cost(left), cost(right)
    while high - low > 1e-9:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = cost(right)
    return (low + high) / 2


_HOFFMANN_SIZES, _HOFFMANN_TOKENS = Range(least=70e6, most=16e9), Range(least=5e9, most=500e9)

# approach 3, unrounded; then the same runs fitted again (arXiv 2404.10102); then with repeats
HOFFMANN = Parametric(
    source="Hoffmann et al. 2022",
    log_e=0.5267228,
    log_a=6.0073404,
    log_b=6.0179186,
    alpha=0.33917084,
    beta=0.2849083,
    parameters=_HOFFMANN_SIZES,
    tokens=_HOFFMANN_TOKENS,
)
BESIROGLU = Parametric(
    source="Besiroglu et al. 2024",
    log_e=0.59711196,
    log_a=6.17795598,
    log_b=7.64273236,
    alpha=0.34781303,
    beta=0.36585412,
    parameters=_HOFFMANN_SIZES,
    tokens=_HOFFMANN_TOKENS,
)
MUENNIGHOFF = Repeated(
    fresh=Parametric(
        source="Muennighoff et al. 2023",
        log_e=0.6254804,
        log_a=6.255414,
        log_b=7.3049974,
        alpha=0.3526596,
        beta=0.3526596,
        parameters=Range(least=7e6, most=9e9),
        tokens=Range(least=0.1e9, most=900e9),
    ),
    repeats=15.387756,
    excess=5.309743,
)
