"""Fits of many parameter vectors side by side: the sum of Huber losses of residuals of ln L.

Levenberg and Marquardt's method on squares that are weighted anew at each step (a residual beyond Huber's corner weighs
corner / residual), all vectors at once. The last word on a point estimate is SciPy's L-BFGS, as in the papers.

Shapes: r vectors, n points, p parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize

from tinyllama.scaling.forms import Array, Design, Form

CORNER = 1e-3
"""Where Huber's loss turns from a square to a line, in ln L (Hoffmann et al. 2022)."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is to be fitted to what."""

    form: Form
    at: Design
    log_loss: Array
    """Measured, [n]."""


EXACT = 1e-17
"""An objective that is as good as zero: residuals of a billionth."""


class Value(NamedTuple):
    """An objective where it was evaluated."""

    objective: Array
    """[r]"""
    gradient: Array
    """[r, p]"""
    residuals: Array
    """Law less measured, in ln L, [r, n]."""
    slopes: Array
    """Of the residuals, [r, n, p]."""


def evaluate(problem: Problem, x_rp: Array, weights_rn: Array | None = None) -> Value:
    """The summed Huber loss, each point's times its weight."""
    log_loss, slopes = problem.form.evaluate(x_rp, problem.at)
    residuals = log_loss - problem.log_loss
    size = np.abs(residuals)
    huber = np.where(size <= CORNER, residuals**2 / 2, CORNER * (size - CORNER / 2))
    bent = np.clip(residuals, -CORNER, CORNER)
    if weights_rn is not None:
        huber, bent = huber * weights_rn, bent * weights_rn
    return Value(huber.sum(axis=1), np.einsum("rn,rnp->rp", bent, slopes), residuals, slopes)


def descend(
    problem: Problem,
    x_rp: Array,
    *,
    weights_rn: Array | None = None,
    held_p: Array | None = None,
    steps: int = 200,
    gain: float = 1e-9,
) -> tuple[Array, Array]:
    """Each vector at the foot of its valley and the objective there, [r, p] and [r].

    Where held is 1 ([p], or [r, p]) a parameter stays. A vector is done when a step lowers its objective by less than
    this share of it, when none lowers it, or when it fits exactly.
    """
    form, x_rp = problem.form, np.clip(x_rp, problem.form.low, problem.form.high)
    n_rows, n_parameters = x_rp.shape
    weights = np.ones((n_rows, len(problem.log_loss))) if weights_rn is None else weights_rn
    free = np.ones((n_rows, n_parameters)) - (0 if held_p is None else held_p)
    damping, live = np.full(n_rows, 1e-2), np.arange(n_rows)
    now = evaluate(problem, x_rp, weights)
    least = now.objective.copy()
    for _ in range(steps):
        x, w = x_rp[live], weights[live]
        pulled = w * np.minimum(1, CORNER / np.maximum(np.abs(now.residuals), 1e-300))
        # what stands at a bound and would go beyond it is held for this step
        inward = free[live] * ~((x <= form.low) & (now.gradient > 0) | (x >= form.high) & (now.gradient < 0))
        slopes = now.slopes * inward[:, None, :]
        curvature = np.matmul((slopes * pulled[:, :, None]).transpose(0, 2, 1), slopes)
        diagonal = np.einsum("rpp->rp", curvature)
        ridge = damping[live, None] * diagonal + 1e-18 + (diagonal <= 1e-18)
        step = np.linalg.solve(
            curvature + ridge[:, :, None] * np.eye(n_parameters), -(now.gradient * inward)[:, :, None]
        )
        tried_x = np.clip(x + step[:, :, 0], form.low, form.high)
        tried = evaluate(problem, tried_x, w)
        lower = tried.objective < now.objective
        gained = (now.objective - tried.objective) > gain * now.objective
        damping[live] = np.where(lower, np.maximum(damping[live] / 10, 1e-12), damping[live] * 8)
        x_rp[live[lower]] = tried_x[lower]
        now = Value(
            *(np.where(lower.reshape(-1, *[1] * (new.ndim - 1)), new, old) for new, old in zip(tried, now, strict=True))
        )
        least[live] = now.objective
        going = (gained | ~lower) & (damping[live] < 1e8) & (now.objective > EXACT)
        live, now = live[going], Value(*(part[going] for part in now))
        if not len(live):
            break
    return x_rp, least


def polish(problem: Problem, x: Array) -> tuple[Array, float]:
    """One vector [p] taken to its foot by L-BFGS within the form's bounds, and the objective there."""

    def cost(x: Array) -> tuple[float, Array]:
        value = evaluate(problem, x[None])
        return float(value.objective[0]), value.gradient[0]

    bounds = list(zip(problem.form.low, problem.form.high, strict=True))
    options = {"maxiter": 2000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-10}
    found = minimize(cost, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(found.x, dtype=np.float64), float(found.fun)
