"""Optimal lengths read off curves of equal compute, with no law of the loss assumed.

At each budget the loss is a parabola in the logarithm of the tokens; its minimum is the length to train for, and over
budgets the lengths are a power of the compute (Hoffmann et al. 2022, arXiv 2203.15556, approach 2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyllama.scaling.estimate import interval
from tinyllama.scaling.forms import Array
from tinyllama.scaling.points import Point

SPAN = 1.1
"""Largest compute over least in one budget: 5% to either side."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Runs of one budget, and the parabola through them."""

    points: tuple[Point, ...]
    """By length."""
    log_tokens: Array
    """To base 10, [n]."""
    coefficients: Array
    """Of the loss in log10 tokens, the constant first, [3]."""
    residuals: Array
    """Measured less parabola, [n]."""

    @property
    def flops(self) -> float:
        """The budget: the geometric mean of its runs'."""
        return float(np.exp(np.mean([math.log(point.flops) for point in self.points])))

    @property
    def reason(self) -> str | None:
        """Why its minimum is of no use; None where it is."""
        if self.coefficients[2] <= 0:
            return "its parabola has no minimum"
        if not self.log_tokens[0] < _vertex(self.coefficients) < self.log_tokens[-1]:
            return "its minimum lies outside its samples"
        return None


def isoflop(points: Sequence[Point], *, replicates: int, rng: np.random.Generator) -> dict[str, Any] | None:
    """The budgets with their parabolas and the power laws of their minima, as in a fit; None where no three runs of
    different lengths have one budget."""
    curves = [_curve(group) for group in budgets(points)]
    if not curves:
        return None
    usable = [curve for curve in curves if curve.reason is None]
    tokens, params = _powers(usable, replicates=replicates, rng=rng)
    return {"budgets": [_told(curve) for curve in curves], "tokens_power": tokens, "params_power": params}


def budgets(points: Sequence[Point]) -> list[list[Point]]:
    """Runs of about the same compute, at least three of different lengths, by compute. Where tokens are seen again,
    and not all of the same corpus, runs that do so tell of their corpus rather than of their length: they stay out."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.flops):
        if groups and point.flops <= SPAN * groups[-1][0].flops:
            groups[-1].append(point)
        else:
            groups.append([point])
    kept = [_of_one_corpus(group) for group in groups]
    return [group for group in kept if len({point.tokens for point in group}) >= 3]


def _of_one_corpus(group: list[Point]) -> list[Point]:
    corpora = {point.unique_tokens for point in group if _repeats(point)}
    return group if len(corpora) < 2 else [point for point in group if not _repeats(point)]


def _repeats(point: Point) -> bool:
    return point.epochs is not None and point.epochs > 1.02


def _curve(group: Sequence[Point]) -> Curve:
    points = tuple(sorted(group, key=lambda point: point.tokens))
    x = np.log10([point.tokens for point in points])
    losses = np.array([point.loss for point in points])
    coefficients = _parabola(x, losses)
    return Curve(points=points, log_tokens=x, coefficients=coefficients, residuals=losses - _at(coefficients, x))


def _parabola(x: Array, losses: Array) -> Array:
    """Of least squares; about the middle, where it is well conditioned, then about 0."""
    middle = x.mean()
    c0, c1, c2 = np.linalg.lstsq(np.vander(x - middle, 3, increasing=True), losses, rcond=None)[0]
    return np.array([c0 - c1 * middle + c2 * middle**2, c1 - 2 * c2 * middle, c2])


def _at(coefficients: Array, x: Array | float) -> Array:
    return np.asarray(coefficients[0] + coefficients[1] * x + coefficients[2] * np.square(x))


def _vertex(coefficients: Array) -> float:
    return float(-coefficients[1] / (2 * coefficients[2]))


def _told(curve: Curve) -> dict[str, Any]:
    best = min(curve.points, key=lambda point: point.loss)
    tokens, loss = best.tokens, best.loss  # what has no minimum has its best run instead
    if curve.reason is None:
        x = _vertex(curve.coefficients)
        tokens, loss = 10**x, float(_at(curve.coefficients, x))
    return {
        "flops": curve.flops,
        "params": [float(point.params) for point in curve.points],
        "tokens": [float(point.tokens) for point in curve.points],
        "losses": [float(point.loss) for point in curve.points],
        "curve": curve.coefficients.tolist(),
        "tokens_best": float(tokens),
        "params_best": curve.flops / 6 / float(tokens),
        "loss_best": float(loss),
        "usable": curve.reason is None,
        "reason": curve.reason,
    }


def _powers(
    curves: Sequence[Curve], *, replicates: int, rng: np.random.Generator
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """D* = K C^g and N* = C^(1 - g) / (6 K), where at least two budgets have a minimum and more runs than a parabola
    passes through: the intervals are of parabolas through residuals drawn anew."""
    residuals = np.concatenate([curve.residuals for curve in curves]) if curves else np.zeros(0)
    freedom = len(residuals) - 3 * len(curves)
    if len(curves) < 2 or freedom < 1:
        return None, None
    flops = np.log10([curve.flops for curve in curves])
    residuals = residuals * math.sqrt(len(residuals) / freedom)
    line = _line(flops, np.array([_vertex(curve.coefficients) for curve in curves]))
    lines = [one for _ in range(replicates) if (one := _redrawn(curves, flops, residuals, rng)) is not None]
    if not lines:
        return None, None
    drawn = np.array(lines)
    size, sizes = _size(*line), np.array([_size(*one) for one in drawn])
    return _power(*line, drawn), _power(*size, sizes)


def _redrawn(
    curves: Sequence[Curve], flops: Array, residuals: Array, rng: np.random.Generator
) -> tuple[float, float] | None:
    """The line through the minima of parabolas whose residuals are drawn anew; None where fewer than two have one."""
    x, y = [], []
    for curve, log_flops in zip(curves, flops, strict=True):
        smooth = _at(curve.coefficients, curve.log_tokens)
        coefficients = _parabola(curve.log_tokens, smooth + rng.choice(residuals, size=len(smooth)))
        if coefficients[2] > 0:
            x.append(log_flops)
            # a parabola that is nearly a line has its minimum anywhere
            y.append(np.clip(_vertex(coefficients), curve.log_tokens[0] - 1, curve.log_tokens[-1] + 1))
    return _line(np.array(x), np.array(y)) if len(x) > 1 else None


def _line(x: Array, y: Array) -> tuple[float, float]:
    """log10 K and g of least squares."""
    slope = float(np.sum((x - x.mean()) * (y - y.mean())) / np.sum((x - x.mean()) ** 2))
    return float(y.mean()) - slope * float(x.mean()), slope


def _size(log_k: float, exponent: float) -> tuple[float, float]:
    """Of N* = C / (6 D*)."""
    return -math.log10(6) - log_k, 1 - exponent


def _power(log_k: float, exponent: float, drawn: Array) -> dict[str, Any]:
    return {
        "coefficient": interval(10**log_k, 10 ** drawn[:, 0]),
        "exponent": interval(exponent, drawn[:, 1]),
    }
