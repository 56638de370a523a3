"""What a fit can show and what it cannot, worked out from the fit itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tinyllama.scaling.curves import flops, is_repeated
from tinyllama.scaling.notation import count, percent, ratio
from tinyllama.scaling.notation import flops as compute

_SHORT_SPAN = 100.0
"""Compute spans below two orders of magnitude say little of exponents."""
_FEW_SIZES, _FEW_BUDGETS = 4, 3


def shows(fit: Mapping[str, Any]) -> list[str]:
    """What the measurements span, and how well the laws foretold what they had not seen."""
    points: Sequence[Mapping[str, Any]] = fit["points"]
    if not points:
        return []
    said = [_span(points)]
    for law in fit["laws"].values():
        spread = f"“{law['title']}” misses the points it was fitted to by {percent(law['rmse'])} (RMSE of ln L)"
        if law["held_out"]:
            spread += (
                f", and {_counted(len(law['held_out']), 'held-out point')} by {percent(law['held_out_error'])} "
                f"on average; {_covered(law)} in the 90% intervals predicted"
            )
        said.append(spread + ".")
    return said


def does_not_show(fit: Mapping[str, Any]) -> list[str]:
    """What is beyond the measurements, or not settled by them."""
    return list(_gaps(fit)) if fit["points"] else ["There are no points: nothing was fitted."]


def _gaps(fit: Mapping[str, Any]) -> Iterator[str]:
    points, laws = fit["points"], fit["laws"]
    used = [point for point in points if not point["held_out"]] or points
    held_out = [point for point in points if point["held_out"]]
    if not laws:
        yield "No law could be fitted: the points say nothing beyond themselves."
    span = _times(map(flops, used))
    sizes = len({float(f"{point['params']:.3g}") for point in used})
    if laws and sizes < _FEW_SIZES:
        yield (
            f"With {_counted(sizes, 'size')} the exponent of size can hardly be told from its coefficient and the "
            f"floor: {_FEW_SIZES} sizes or more are needed to see whether the law bends."
        )
    if laws and span < _SHORT_SPAN:
        yield (
            f"Compute spans a factor of {ratio(span)}, less than two orders of magnitude: exponents from so short a "
            "span are a direction, and may not hold beyond it."
        )
    if laws and not held_out:
        yield "No point was held out, so nothing here shows that a law predicts a run that it has not seen."
    elif held_out:
        reach = max(map(flops, held_out)) / max(map(flops, used))
        yield (
            f"The largest held-out point takes {ratio(reach)} times the compute of the largest of those that it was "
            "predicted from: predictions further out than that are untested."
            if reach > 1
            else "No held-out point takes more compute than the others: interpolation was tested, not reach."
        )
    yield from _reach(fit, max(map(flops, points)))
    repeated = sum(map(is_repeated, points))
    if repeated and laws and "repeated" not in laws:
        yield (
            f"{_counted(repeated, 'point')} of {len(points)} saw tokens more than once, and no law of repeats could be "
            "fitted: the laws here count a token seen again as a new one."
        )
    for law in laws.values():
        for sentence in law["identified"].values():
            if sentence:
                yield f"“{law['title']}”: {sentence.rstrip('.')}."
    isoflop = fit["isoflop"]
    if isoflop:
        usable = sum(budget["usable"] for budget in isoflop["budgets"])
        if usable < _FEW_BUDGETS:
            yield (
                f"{_counted(usable, 'IsoFLOP budget')} of {len(isoflop['budgets'])} can be used: a power law through "
                f"fewer than {_FEW_BUDGETS} minima has nothing left over to test it."
            )
    if laws:
        yield (
            "The intervals come from fitting resampled points. They hold what that varies, not what all runs share: "
            "the corpus and tokenizer, the recipe of learning rates and batches, and the seed where only one was run."
        )


def _reach(fit: Mapping[str, Any], largest: float) -> Iterator[str]:
    """What is foretold further out than anything measured, held-out points included."""
    beyond = [row["flops"] for row in fit["frontier"] if row["flops"] > largest * 1.001]
    if beyond:
        yield (
            f"The frontier goes to {compute(max(beyond))} FLOPs, {ratio(max(beyond) / largest)} times the largest run "
            "measured: that part is extrapolation."
        )
    life = fit["lifetime"]
    if life:
        for name, what in (("params", "parameters"), ("tokens", "training tokens")):
            measured = [point[name] for point in fit["points"]]
            value = life[name]["value"]
            times = max(value / max(measured), min(measured) / value)
            if times > 1.001:
                yield (
                    f"The lifetime optimum of {count(value)} {what} lies {ratio(times)} times beyond the measured "
                    f"range of {count(min(measured))} to {count(max(measured))}."
                )


def _span(points: Sequence[Mapping[str, Any]]) -> str:
    sizes = [float(point["params"]) for point in points]
    tokens = [float(point["tokens"]) for point in points]
    used = [flops(point) for point in points]
    per_param = [point["tokens"] / point["params"] for point in points]
    orders = math.log10(_times(used))
    groups = len({f"{size:.3g}" for size in sizes})
    return (
        f"Measured: {_counted(len(points), 'point')} of {_counted(groups, 'size')}; "
        f"{count(min(sizes))} to {count(max(sizes))} parameters, {count(min(tokens))} to {count(max(tokens))} tokens, "
        f"{ratio(min(per_param))} to {ratio(max(per_param))} tokens a parameter, "
        f"{compute(min(used))} to {compute(max(used))} FLOPs ({orders:.1f} orders of magnitude)."
    )


def _covered(law: Mapping[str, Any]) -> str:
    within = sum(row["predicted"]["low"] <= row["loss"] <= row["predicted"]["high"] for row in law["held_out"])
    return f"{within} of {len(law['held_out'])} lie"


def _times(values: Iterable[float]) -> float:
    found = list(values)
    return max(found) / min(found)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
