"""The loss that fitted laws foretell, and the points they were fitted to, ready to be drawn or tabled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyllama.plan.render import counted

Array = NDArray[np.float64]


def law_loss(
    name: str, values: Mapping[str, ArrayLike], params: ArrayLike, tokens: ArrayLike, unique: ArrayLike | None = None
) -> Array:
    """The loss in nats a token by the law of this name (hoffmann, repeated, overtrained) with these parameter values.

    All that is given is broadcast together. `unique` are the distinct ones among the tokens, NaN or None where none is
    seen twice. Sources: arXiv 2203.15556, 2305.16264 and 2403.08540. Errors: ValueError for a name that is no law's.
    """
    v = {key.rstrip("*"): np.asarray(value, float) for key, value in values.items()}
    n, d = np.asarray(params, float), np.asarray(tokens, float)
    loss: Array
    if name == "hoffmann":
        loss = v["E"] + v["A"] * n ** -v["alpha"] + v["B"] * d ** -v["beta"]
    elif name == "overtrained":
        m, c = d / n, 6 * n * d
        loss = v["E"] + (v["a"] * m ** v["eta"] + v["b"] * m ** -v["eta"]) * c ** -v["eta"]
    elif name == "repeated":
        fresh = d if unique is None else np.fmin(d, np.asarray(unique, float))
        called_for = np.minimum(n, (v["A"] / v["B"]) ** (1 / v["alpha"]) * fresh)  # the size that is optimal for them
        size, worth = _worth(n, called_for, v["R_N"]), _worth(d, fresh, v["R_D"])
        loss = v["E"] + v["A"] * size ** -v["alpha"] + v["B"] * worth ** -v["alpha"]
    else:
        raise ValueError(f"{name!r} is not a law; choose hoffmann, repeated or overtrained")
    return loss


def _worth(taken: Array, base: Array, scale: Array) -> Array:
    """Base and what is taken beyond it, at an exponentially falling worth; an infinite scale loses none."""
    repeats = taken / base - 1
    finite = np.where(np.isinf(scale), 1.0, scale)
    return base + base * np.where(np.isinf(scale), repeats, -finite * np.expm1(-repeats / finite))


class Band(NamedTuple):
    """What a law foretells at each of several places."""

    value: Array
    low: Array | None
    """5th percentile of the bootstrap; None without samples, as is `high`."""
    high: Array | None


def foretold(
    name: str, law: Mapping[str, Any], params: ArrayLike, tokens: ArrayLike, unique: ArrayLike | None = None
) -> Band:
    """The loss at each place of one-dimensional arrays, with the 90% band of the law's bootstrap samples."""
    return _band(law, lambda values: law_loss(name, values, params, tokens, unique))


def least_loss(law: Mapping[str, Any], flops: ArrayLike) -> Band:
    """The loss of the best size for each training compute, by a law of hoffmann's form (its paper's equation 4)."""
    sixth = np.asarray(flops, float) / 6

    def best(values: Mapping[str, Any]) -> Array:
        a, b, alpha, beta = (values[name] for name in ("A", "B", "alpha", "beta"))
        params = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * sixth ** (beta / (alpha + beta))
        return law_loss("hoffmann", values, params, sixth / params)

    return _band(law, best)


def _band(law: Mapping[str, Any], evaluate: Callable[[Mapping[str, Any]], Array]) -> Band:
    value = evaluate({key: interval["value"] for key, interval in law["parameters"].items()})
    samples = np.array([row for row in law["samples"] if all(one is not None for one in row)], float)
    if not samples.size:
        return Band(value, None, None)
    columns = dict(zip(law["parameters"], samples.T[:, :, None], strict=True))
    low, high = np.percentile(evaluate(columns), [5, 95], axis=0)
    return Band(value, low, high)


class Series(NamedTuple):
    """Points of one size, and where it matters of one number of unique tokens."""

    label: str
    params: float
    unique: float
    """NaN where no token is seen twice, or where that is not told apart."""
    points: Sequence[Mapping[str, Any]]
    """By number of tokens."""


def series(points: Sequence[Mapping[str, Any]], *, by_unique: bool = False) -> list[Series]:
    """Points by size, smallest first, sizes that agree in three digits together; `by_unique` tells apart how many
    unique tokens they drew on, too, where they saw some twice."""
    grouped: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for point in sorted(points, key=lambda point: (point["params"], point["tokens"])):
        unique = float(f"{point['unique_tokens']:.2g}") if by_unique and is_repeated(point) else math.inf
        grouped.setdefault((float(f"{point['params']:.3g}"), unique), []).append(point)
    found = []
    for (_, unique), members in sorted(grouped.items(), key=lambda item: (item[0][0], -item[0][1])):
        told = "" if math.isinf(unique) else f", {counted(unique)} unique"
        drawn_on = math.nan if math.isinf(unique) else float(members[0]["unique_tokens"])
        params = float(np.mean([point["params"] for point in members]))
        found.append(Series(counted(params) + told, params, drawn_on, members))
    return found


def is_repeated(point: Mapping[str, Any]) -> bool:
    """Whether a point saw some of its tokens more than once."""
    return point["unique_tokens"] is not None and point["unique_tokens"] < point["tokens"]


def flops(point: Mapping[str, Any]) -> float:
    """Training compute, C = 6 N D."""
    return 6.0 * float(point["params"]) * float(point["tokens"])
