"""What a fit foretells: read from the fit alone, with no point at hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyllama.plan.laws import Allocation, Parametric, Range, least_lifetime, lifetime_flops
from tinyllama.scaling.estimate import interval
from tinyllama.scaling.forms import FORMS, HOFFMANN, Array, Design, design
from tinyllama.scaling.points import Point


def predict(
    fit: Mapping[str, Any],
    *,
    params: float,
    tokens: float,
    unique_tokens: float | None = None,
    law: str | None = None,
) -> dict[str, Any]:
    """The mean loss of runs of a size and a length, with its interval, and how many times beyond the fitted points each
    is (1 within). Without a law: the one of repeats where tokens repeat and it was fitted, else Hoffmann's.

    Raises ValueError for a law that the fit has not, and for a size or a length that is not positive.
    """
    for name, value in (("params", params), ("tokens", tokens), ("unique_tokens", unique_tokens)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value:g}, which is no positive number: give a count")
    key = law or ("repeated" if unique_tokens and unique_tokens < tokens and "repeated" in fit["laws"] else "hoffmann")
    if key not in fit["laws"]:
        why = fit["not_fitted"].get(key, "there is no such law")
        others = ", ".join(fit["laws"]) or "none"
        raise ValueError(f"law {key}: it was not fitted: {why}: fitted were {others}")
    x_rp = _rows(fit["laws"][key], key)
    at = design([Point(name="", params=params, tokens=tokens, loss=1.0, unique_tokens=unique_tokens)])
    losses = np.exp(FORMS[key].log_loss(x_rp, at)[:, 0])
    span = fit["laws"][key]["range"]
    return {
        "law": key,
        "loss": interval(losses[0], losses[1:]),
        "params_beyond": _beyond(span["params"], params),
        "tokens_beyond": _beyond(span["tokens"], tokens),
    }


def _rows(law: Mapping[str, Any], key: str) -> Array:
    """The estimate and then each sample, as they are fitted, [1 + replicates, p]."""
    form = FORMS[key]
    return form.fitted([[law["parameters"][name]["value"] for name in form.names], *law["samples"]])


def _beyond(span: Sequence[float], value: float) -> float:
    return Range(least=span[0], most=span[1]).outside(value)


def frontier(law: Mapping[str, Any], *, flops: Sequence[float]) -> list[dict[str, Any]]:
    """The size and the length of least loss for each budget, by a fit of Hoffmann's law, as in a fit."""
    rows = _rows(law, "hoffmann")
    told = []
    for budget in flops:
        params, tokens, loss = _optima(rows, budget)
        parts = {"params": params, "tokens": tokens, "loss": loss}
        told.append({"flops": float(budget), **{name: interval(part[0], part[1:]) for name, part in parts.items()}})
    return told


def _optima(x_rp: Array, flops: float) -> tuple[Array, Array, Array]:
    """What `plan.laws.Parametric.optimum` says, and its loss, of many laws at once, each [r]."""
    _, a, b, alpha, beta = x_rp.T
    sixth = math.log(flops / 6)
    # where an exponent is next to nothing the optimum runs away
    size = np.clip((np.log(alpha / beta) + a - b + beta * sixth) / (alpha + beta), sixth - 300, 300)
    at = Design(params=size[:, None], tokens=sixth - size[:, None], unique=sixth - size[:, None])
    return np.exp(size), np.exp(sixth - size), np.exp(HOFFMANN.log_loss(x_rp, at)[:, 0])


def lifetime(law: Mapping[str, Any], *, flops: float, inference_tokens: float) -> dict[str, Any] | None:
    """The size and the length of least compute over a model's life at the loss that is best for a training budget, and
    the share that they save of the life of what is best for training alone. By a fit of Hoffmann's law, as in a fit;
    None where fewer than half of its samples come to that loss at all."""
    rows = _rows(law, "hoffmann")
    loss = float(_optima(rows[:1], flops)[2][0])
    lives = [_life(row, law["range"], loss, inference_tokens) for row in rows]
    drawn = np.array([life for life in lives[1:] if life])
    if lives[0] is None or 2 * len(drawn) < len(rows):
        return None
    parts = {name: interval(lives[0][i], drawn[:, i]) for i, name in enumerate(("params", "tokens", "saved"))}
    return {"inference_tokens": float(inference_tokens), "loss": loss, **parts}


def _life(row: Array, span: Mapping[str, Any], loss: float, inference_tokens: float) -> tuple[float, ...] | None:
    e, a, b, alpha, beta = (float(value) for value in row)
    law = Parametric(
        source="this fit",
        log_e=e,
        log_a=a,
        log_b=b,
        alpha=alpha,
        beta=beta,
        parameters=Range(least=span["params"][0], most=span["params"][1]),
        tokens=Range(least=span["tokens"][0], most=span["tokens"][1]),
    )
    try:
        best = least_lifetime(law, loss=loss, inference_tokens=inference_tokens)
        trained = least_lifetime(law, loss=loss, inference_tokens=0)
        taken = [lifetime_flops(size, inference_tokens=inference_tokens) for size in (best, trained)]
    except (ValueError, OverflowError, ZeroDivisionError):
        return None
    return _finite(best, saved=1 - taken[0] / taken[1])


def _finite(best: Allocation, *, saved: float) -> tuple[float, ...] | None:
    life = (best.parameters, best.tokens, saved)
    return life if all(math.isfinite(value) for value in life) else None
