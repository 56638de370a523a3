"""A fit like one that fit.json holds, of points that planted laws make."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinyllama.plan.laws import HOFFMANN, MUENNIGHOFF, Allocation, least_lifetime

SIZES = (44e6, 111e6, 271e6, 550e6, 1.1e9)
PARAMETERS: dict[str, dict[str, float]] = {
    "hoffmann": {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849},
    "overtrained": {"E": 1.6481, "a": 302.2, "b": 791.1, "eta": 0.15181},
    "repeated": {"E": 1.6515, "A": 239.13, "B": 631.33, "alpha": 0.30571, "R_D*": 9.007, "R_N*": 4000.0},
}
TITLES = {
    "hoffmann": ("Size and length", "L = E + A/N^alpha + B/D^beta", "Hoffmann et al. 2022, arXiv 2203.15556"),
    "overtrained": (
        "Compute and tokens a parameter",
        "L = E + (a M^eta + b M^-eta) C^-eta, M = D/N, C = 6 N D",
        "Gadre et al. 2024, arXiv 2403.08540",
    ),
    "repeated": (
        "Size and length with repeated tokens",
        "L = E + A/N'^alpha + B/D'^alpha, D' = U (1 + R_D* (1 - exp(-R_D/R_D*))), R_D = D/U - 1 for U unique tokens; "
        "N' the same of R_N* and of the size that U tokens call for",
        "Muennighoff et al. 2023, arXiv 2305.16264",
    ),
}


def interval(value: float, spread: float = 0.05) -> dict[str, float]:
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def points() -> list[dict[str, Any]]:
    """Five sizes at five lengths, the longest of the largest held out; the small one also sees its tokens again."""
    draw = np.random.default_rng(0)
    rows = []
    for size in SIZES:
        for multiple in (20, 60, 200, 600, 2000):
            tokens = size * multiple
            loss = HOFFMANN.loss(size, tokens) * float(np.exp(draw.normal(0, 0.003)))
            name = f"n{size / 1e6:.0f}m-{multiple}"
            held_out = size * tokens > 3e20
            rows.append(point(name, size, tokens, loss, held_out=held_out))
    for epochs in (4, 16, 64):
        loss = MUENNIGHOFF.loss(44e6, 1e9 * epochs, 1e9)
        rows.append(point(f"repeats-{epochs}", 44e6, 1e9 * epochs, loss, unique=1e9))
    return rows


def point(
    name: str, params: float, tokens: float, loss: float, *, unique: float | None = None, held_out: bool = False
) -> dict[str, Any]:
    return {
        "name": name, "params": params, "tokens": tokens, "unique_tokens": unique, "loss": loss, "held_out": held_out,
    }  # fmt: skip


def law(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    draw = np.random.default_rng(1)
    parameters = PARAMETERS[name]
    spread = {key: 0.02 if key in ("E", "alpha", "beta", "eta") else 0.05 for key in parameters}
    samples = [
        [value * float(np.exp(draw.normal(0, spread[key] / 4))) for key, value in parameters.items()]
        for _ in range(200)
    ]
    title, formula, source = TITLES[name]
    fitted = [row for row in rows if not row["held_out"]]
    held_out = [
        {"name": row["name"], "loss": row["loss"], "predicted": interval(row["loss"] * 1.01, 0.02)}
        for row in rows
        if row["held_out"]
    ]
    return {
        "title": title, "formula": formula, "source": source,
        "parameters": {key: interval(value, 2 * spread[key]) for key, value in parameters.items()},
        "objective": 0.0158264, "rmse": 0.00312,
        "identified": dict.fromkeys(parameters), "warnings": [],
        "held_out": held_out, "held_out_error": 0.00995 if held_out else None, "samples": samples,
        "range": {
            key: [min(row[key] for row in fitted), max(row[key] for row in fitted)] for key in ("params", "tokens")
        },
    }  # fmt: skip


def isoflop() -> dict[str, Any]:
    budgets = []
    for flops in (1e18, 1e19, 1e20, 1e21):
        best = HOFFMANN.optimum(flops)
        tokens = [best.tokens * factor for factor in (0.2, 0.45, 1, 2.2, 5)]
        params = [flops / 6 / count for count in tokens]
        losses = [HOFFMANN.loss(*pair) for pair in zip(params, tokens, strict=True)]
        curve = np.polynomial.Polynomial.fit(np.log10(tokens), losses, 2).convert().coef
        middle = -curve[1] / (2 * curve[2])
        usable = flops < 1e21
        budgets.append(
            {
                "flops": flops, "params": params, "tokens": tokens, "losses": losses, "curve": curve.tolist(),
                "tokens_best": float(10**middle), "params_best": float(flops / 6 / 10**middle),
                "loss_best": float(curve[0] + curve[1] * middle + curve[2] * middle**2), "usable": usable,
                "reason": None if usable else "its minimum lies outside its samples",
            }
        )  # fmt: skip
    powers = {}
    for name in ("tokens", "params"):
        at, best = (np.log([budget[key] for budget in budgets[:3]]) for key in ("flops", f"{name}_best"))
        exponent, logarithm = np.polyfit(at, best, 1)
        powers[f"{name}_power"] = {
            "coefficient": interval(float(np.exp(logarithm)), 0.3),
            "exponent": interval(exponent),
        }
    return {"budgets": budgets, **powers}


def frontier() -> list[dict[str, Any]]:
    rows = []
    for exponent in range(17, 25):
        flops, wide = 10.0**exponent, 0.03 * (exponent - 15)
        best: Allocation = HOFFMANN.optimum(flops)
        rows.append(
            {
                "flops": flops, "params": interval(best.parameters, wide), "tokens": interval(best.tokens, wide),
                "loss": interval(HOFFMANN.loss(*best), wide / 30),
            }
        )  # fmt: skip
    return rows


def planted() -> dict[str, Any]:
    """With everything in it."""
    rows = points()
    best = least_lifetime(HOFFMANN, loss=2.3, inference_tokens=2e12)
    laws = {name: law(name, rows) for name in PARAMETERS}
    laws["repeated"]["identified"]["R_D*"] = "R_D* has no upper bound on these points"
    laws["repeated"]["parameters"]["R_D*"]["high"] = float("inf")
    laws["repeated"]["warnings"] = ["3 of 200 resampled fits did not converge; the intervals leave them out"]
    return {
        "format": 1,
        "source": "runs/*",
        "points": rows,
        "excluded": [{"name": "n44m-5", "reason": "it stopped at step 120 of 4,000"}],
        "conventions": {
            "params": "N: all parameters, embeddings too",
            "tokens": "D: training tokens seen, repeats too",
            "loss": "L: held-out nats a token, the mean over sources",
            "flops": "C = 6 N D",
        },
        "laws": laws,
        "not_fitted": {},
        "isoflop": isoflop(),
        "frontier": frontier(),
        "lifetime": {
            "inference_tokens": 2e12, "loss": 2.3, "params": interval(best.parameters), "tokens": interval(best.tokens),
            "saved": interval(0.163),
        },
    }  # fmt: skip


def bare() -> dict[str, Any]:
    """With nothing in it."""
    return {
        "format": 1, "source": "", "points": [], "excluded": [], "conventions": {}, "laws": {}, "not_fitted": {},
        "isoflop": None, "frontier": [], "lifetime": None,
    }  # fmt: skip
