"""One law on one set of points: the estimate, and samples of what it might as well have been."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyllama.scaling.forms import Array, Design, Form, design
from tinyllama.scaling.minimise import CORNER, Problem, descend, evaluate, polish
from tinyllama.scaling.points import Point

FROM_GRID = 60
"""Starts that are followed, the best of the grid's."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A law fitted to points."""

    problem: Problem
    x: Array
    """The optimum as it is fitted, [p]."""
    objective: float
    """The summed Huber loss there."""
    samples: Array
    """Bootstrap replicates as they are fitted, [replicates, p]."""

    @property
    def form(self) -> Form:
        """The law."""
        return self.problem.form

    @property
    def residuals(self) -> Array:
        """Law less measured in ln L, [n]."""
        return np.asarray(self.form.log_loss(self.x[None], self.problem.at)[0] - self.problem.log_loss)

    def loss(self, at: Design) -> list[dict[str, float]]:
        """What it foretells, with intervals."""
        value = np.exp(self.form.log_loss(self.x[None], at)[0])
        spread = np.exp(self.form.log_loss(self.samples, at))
        return [interval(value[i], spread[:, i]) for i in range(len(value))]


def interval(value: float, spread: Array | Sequence[float]) -> dict[str, float]:
    """A value with the 5th and the 95th percentile of its samples."""
    low, high = np.quantile(np.asarray(spread), [0.05, 0.95])
    return {"value": float(value), "low": float(low), "high": float(high)}


def problem(form: Form, points: Sequence[Point]) -> Problem:
    """A law to be fitted to points."""
    return Problem(form=form, at=design(points), log_loss=np.log([point.loss for point in points]))


def estimate(form: Form, points: Sequence[Point], *, replicates: int, rng: np.random.Generator) -> Estimate:
    """The law's optimum over the whole grid of starts, and its bootstrap.

    In each replicate every point has a weight from an exponential distribution. That is a bootstrap of points, and so
    it needs no noise of one size; but no size and no length is ever left out, which would send exponents astray. What
    few points leave too narrow is widened about the optimum by 1 / (1 - (p / n)^2), with which about nine intervals of
    ten hold what was planted from 12 points to 80 (benchmarks/planted_laws.py).
    """
    task = problem(form, points)
    feet, objectives = descend(task, best_starts(task), steps=80, gain=1e-7)
    x, objective = polish(task, feet[np.argmin(objectives)])
    valleys = np.concatenate([x[None], _others(feet, objectives, objective)])
    n, p = len(points), len(x)
    weights = rng.exponential(size=(replicates, n))
    weights *= n / weights.sum(axis=1, keepdims=True)
    feet, objectives = descend(
        task, np.repeat(valleys, replicates, axis=0), weights_rn=np.tile(weights, (len(valleys), 1))
    )
    best = np.argmin(objectives.reshape(len(valleys), replicates), axis=0)
    samples = feet.reshape(len(valleys), replicates, p)[best, np.arange(replicates)]
    samples = np.clip(x + (samples - x) / (1 - (p / n) ** 2), form.low, form.high)
    return Estimate(problem=task, x=x, objective=objective, samples=samples)


def _others(feet: Array, objectives: Array, least: float, *, count: int = 2) -> Array:
    """The best of the other valleys that a replicate might fall into, at most so many, [k, p]."""
    order = [i for i in np.argsort(objectives) if 1.001 * least + 1e-12 < objectives[i] < 2 * least]
    apart = [i for k, i in enumerate(order) if k == 0 or objectives[i] > 1.001 * objectives[order[k - 1]]]
    return feet[apart[:count]]


def best_starts(task: Problem, count: int = FROM_GRID) -> Array:
    """The starts of the grid with the least objectives, best first, [count, p]."""
    grid = task.form.grid()
    objectives = np.concatenate([evaluate(task, part).objective for part in np.array_split(grid, len(grid) // 256 + 1)])
    return grid[np.argsort(objectives, kind="stable")[:count]]


def profiles(found: Estimate, *, steps: int = 8) -> tuple[Array, Array]:
    """How the objective rises as one parameter is moved and the others follow it.

    Returns values of the moved parameter as it is fitted and the objectives there, each [p, 2, steps + 1]: from the
    estimate to the parameter's lower bound, and to its upper.
    """
    form, p = found.form, len(found.x)
    which, held = np.repeat(np.arange(p), 2), np.repeat(np.eye(p), 2, axis=0)
    ends = np.stack([form.low, form.high], axis=1).ravel()
    x = np.repeat(found.x[None], 2 * p, axis=0)
    values, objectives = [x[np.arange(2 * p), which]], [np.full(2 * p, found.objective)]
    for step in range(1, steps + 1):
        x[np.arange(2 * p), which] = found.x[which] + (ends - found.x[which]) * (step / steps) ** 2
        x, least = descend(found.problem, x, held_p=held, steps=30, gain=1e-4)
        values.append(x[np.arange(2 * p), which].copy())
        objectives.append(least)
    shape = (p, 2, steps + 1)
    return np.stack(values, axis=1).reshape(shape), np.stack(objectives, axis=1).reshape(shape)


def identified(found: Estimate) -> dict[str, str | None]:
    """None for a parameter that the points hold from both sides, else what is missing.

    It is held on a side where the objective at the bound is more than 90% chance would have it, as of a likelihood, and
    where at most 5% of the bootstrap ends at the bound.
    """
    form = found.form
    objectives = profiles(found)[1]
    size = np.abs(found.residuals)
    freedom = max(len(size) - len(found.x), 1)
    # of a sum of squares n ln(F / F') is chi-square, of a sum of absolute residuals 2 n ln(F / F')
    chance = math.exp(2.7055 / (freedom * (1 + np.mean(size > CORNER))))
    flat = objectives[:, :, -1] <= found.objective * chance + 1e-15
    told: dict[str, str | None] = {}
    for index, parameter in enumerate(form.parameters):
        sample = found.samples[:, index]
        away = [np.mean(sample <= parameter.low) > 0.05, np.mean(sample >= parameter.high) > 0.05]
        sides = [side for side in (0, 1) if flat[index, side] or away[side]]
        bound = {(): None, (0,): "no lower bound", (1,): "no upper bound", (0, 1): "no bound on either side"}
        missing = bound[tuple(sides)]
        told[parameter.name] = missing and f"{parameter.name} has {missing} on these points"
    return told


def warnings(found: Estimate) -> list[str]:
    """What is degenerate about an optimum, in sentences."""
    form, said = found.form, []
    for value, parameter in zip(found.x, form.parameters, strict=True):
        if not parameter.low < value < parameter.high:
            natural = math.exp(value) if parameter.logarithm else value
            said.append(f"{parameter.name} ended at {natural:.3g}, the end of where it is looked for")
    shares = evaluate(found.problem, found.x[None]).slopes[0]
    said += [
        f"the term of {name} is less than 0.1% of every loss: these points do without it"
        for name in ("E", "A", "B", "a", "b")
        if name in form.names and shares[:, form.names.index(name)].max() < 1e-3
    ]
    return said


def as_law(found: Estimate, points: Sequence[Point]) -> dict[str, Any]:
    """An estimate as a fit tells it, held-out runs aside."""
    form = found.form
    samples = form.natural(found.samples)
    values = form.natural(found.x)
    sizes, lengths = [float(point.params) for point in points], [float(point.tokens) for point in points]
    return {
        "title": form.title,
        "formula": form.formula,
        "source": form.source,
        "parameters": {name: interval(values[i], samples[:, i]) for i, name in enumerate(form.names)},
        "objective": found.objective,
        "rmse": float(np.sqrt(np.mean(found.residuals**2))),
        "identified": identified(found),
        "warnings": warnings(found),
        "held_out": [],
        "held_out_error": None,
        "samples": samples.tolist(),
        "range": {"params": [min(sizes), max(sizes)], "tokens": [min(lengths), max(lengths)]},
    }
