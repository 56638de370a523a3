"""All laws on all points of a study, as one dictionary that goes into fit.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tinyllama.scaling.estimate import as_law, estimate
from tinyllama.scaling.forms import FORMS, OVERTRAINED, REPEATED, Form, design
from tinyllama.scaling.isoflop import isoflop
from tinyllama.scaling.points import Point
from tinyllama.scaling.predict import frontier, lifetime

FORMAT = 1
"""Of fit.json."""

CONVENTIONS = {
    "params": "all parameters, embeddings too",
    "tokens": "training tokens, counted each time they are seen",
    "loss": "held-out loss, nats a token",
    "flops": "6 N D: 6 times params times tokens",
}
"""What the numbers of a fit are."""

SAME = 1.02
"""Sizes, lengths or budgets within this ratio are one."""

FRONTIER_BEYOND = 100.0
"""Times the largest budget of the points that the frontier is drawn to."""


def fit_all(
    points: Sequence[Point],
    *,
    excluded: Iterable[Mapping[str, str]] = (),
    source: str = "",
    inference_tokens: float | None = None,
    held_out: Collection[str] | None = None,
    held_out_fraction: float = 0.2,
    replicates: int = 200,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Every law that the points allow, fitted without the largest runs to foretell them, and then to all points.

    Held out are the runs named, or else this fraction, those of the largest compute, at least one unless it is 0. What
    was excluded, each a name and a reason, is the caller's and only told. The same points and seed give the same fit.

    Raises ValueError for a point that has a number which is not positive, and for a name to hold out that no point has.
    """
    for point in points:
        _check(point)
    kept_back = _held_out(points, held_out, held_out_fraction)
    laws: dict[str, Any] = {}
    not_fitted: dict[str, str] = {}
    for number, form in enumerate(FORMS.values()):
        chosen = [i for i, point in enumerate(points) if form is not REPEATED or point.unique_tokens is not None]
        why = refusal(form, [points[i] for i in chosen])
        if why:
            not_fitted[form.key] = why
            continue
        if report:
            report(f"{form.title}: {len(chosen)} points, {replicates} replicates")
        rest = [points[i] for i in chosen if i not in kept_back]
        largest = [points[i] for i in chosen if i in kept_back]
        rngs = [np.random.default_rng([seed, number, stage]) for stage in (0, 1)]
        used = [points[i] for i in chosen]
        law = as_law(estimate(form, used, replicates=replicates, rng=rngs[0]), used)
        laws[form.key] = law
        law["warnings"] += _warnings(form, used)
        _foretell(law, form, rest, largest, replicates=replicates, rng=rngs[1])
    hoffmann = laws.get("hoffmann")
    flops = [point.flops for point in points]
    return {
        "format": FORMAT,
        "source": source,
        "points": [_told(point, held_out=i in kept_back) for i, point in enumerate(points)],
        "excluded": [dict(one) for one in excluded],
        "conventions": dict(CONVENTIONS),
        "laws": laws,
        "not_fitted": not_fitted,
        "isoflop": isoflop(points, replicates=replicates, rng=np.random.default_rng([seed, len(FORMS)])),
        "frontier": frontier(hoffmann, flops=_budgets(flops)) if hoffmann else [],
        "lifetime": lifetime(hoffmann, flops=max(flops), inference_tokens=inference_tokens)
        if hoffmann and inference_tokens
        else None,
    }


def refusal(form: Form, points: Sequence[Point]) -> str | None:
    """Why points are too few or too much alike for a law, in one sentence; None where they are not."""
    sizes, lengths = _distinct(point.params for point in points), _distinct(point.tokens for point in points)
    wanted: list[tuple[int, int, str]] = []
    if form is REPEATED:
        wanted.append((len(points), 8, "points whose unique tokens are known"))
        wanted += [(sizes, 2, "sizes"), (lengths, 3, "lengths")]
        repeating = [point.epochs for point in points if point.epochs and point.epochs >= 1.5]
        wanted.append((len(repeating), 3, "points that see their tokens at least 1.5 times"))
        wanted.append((_distinct(repeating), 2, "different numbers of epochs"))
    elif form is OVERTRAINED:
        wanted.append((len(points), 6, "points"))
        wanted.append((_distinct([point.flops for point in points]), 3, "budgets of compute"))
        wanted.append((_distinct([point.tokens / point.params for point in points]), 2, "ratios of tokens to params"))
    else:
        wanted += [(len(points), 7, "points"), (sizes, 3, "sizes"), (lengths, 3, "lengths")]
    return next(
        (f"it takes at least {least} {what}: there are {got}" for got, least, what in wanted if got < least), None
    )


def _distinct(values: Iterable[float]) -> int:
    """How many are different."""
    found = 0
    last = 0.0
    for value in sorted(values):
        if value > SAME * last:
            found, last = found + 1, value
    return found


def _check(point: Point) -> None:
    numbers = {"params": point.params, "tokens": point.tokens, "loss": point.loss}
    if point.unique_tokens is not None:
        numbers["unique_tokens"] = point.unique_tokens
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{point.name}: {name} is {value:g}, which is no positive number: leave the run out")


def _held_out(points: Sequence[Point], names: Collection[str] | None, fraction: float) -> set[int]:
    """The indices of the points to foretell."""
    if names is not None:
        missing = sorted(set(names) - {point.name for point in points})
        if missing:
            raise ValueError(f"held out: no point is called {', '.join(missing)}: name runs that are fitted to")
        return {i for i, point in enumerate(points) if point.name in names}
    if not 0 <= fraction < 1:
        raise ValueError(f"held_out_fraction is {fraction:g}, which is not at least 0 and below 1: 0.2 is usual")
    count = max(1, round(fraction * len(points))) if fraction else 0
    order = sorted(range(len(points)), key=lambda i: points[i].flops, reverse=True)
    return set(order[:count])


def _foretell(
    law: dict[str, Any],
    form: Form,
    rest: Sequence[Point],
    largest: Sequence[Point],
    *,
    replicates: int,
    rng: np.random.Generator,
) -> None:
    """Set what a fit to the rest says of the largest."""
    if not largest:
        return
    why = refusal(form, rest)
    if why:
        law["warnings"].append(f"the largest runs could not be foretold from the rest: {why}")
        return
    told = estimate(form, rest, replicates=replicates, rng=rng).loss(design(largest))
    law["held_out"] = [
        {"name": point.name, "loss": float(point.loss), "predicted": predicted}
        for point, predicted in zip(largest, told, strict=True)
    ]
    off = [abs(math.log(one["predicted"]["value"] / one["loss"])) for one in law["held_out"]]
    law["held_out_error"] = sum(off) / len(off)


def _warnings(form: Form, points: Sequence[Point]) -> list[str]:
    """What is wrong with taking a law to these points."""
    repeating = sum(point.epochs is not None and point.epochs > SAME for point in points)
    if form is REPEATED or not repeating:
        return []
    return [f"{repeating} of {len(points)} points see tokens again, which this law takes for new ones"]


def _told(point: Point, *, held_out: bool) -> dict[str, Any]:
    return {
        "name": point.name,
        "params": float(point.params),
        "tokens": float(point.tokens),
        "unique_tokens": None if point.unique_tokens is None else float(point.unique_tokens),
        "loss": float(point.loss),
        "held_out": held_out,
    }


def _budgets(flops: Sequence[float], *, count: int = 33) -> list[float]:
    """From the least of the points' to far beyond their largest, evenly in the logarithm."""
    return [float(one) for one in np.geomspace(min(flops), FRONTIER_BEYOND * max(flops), count)]
