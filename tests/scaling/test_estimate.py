"""Planted laws come back; fast searches end where slow ones do; what the points do not hold is said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from tests.scaling.planted import GADRE, HOFFMANN, MUENNIGHOFF, corpora, grid, planted
from tinyllama.scaling import forms
from tinyllama.scaling.estimate import best_starts, estimate, identified, problem, profiles, warnings
from tinyllama.scaling.forms import Form
from tinyllama.scaling.minimise import CORNER, Problem, descend, evaluate, polish
from tinyllama.scaling.points import Point

CASES = [
    (forms.HOFFMANN, HOFFMANN, grid()),
    (forms.REPEATED, MUENNIGHOFF, corpora()),
    (forms.OVERTRAINED, GADRE, grid()),
]
KEYS = [form.key for form, _, _ in CASES]


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize(("form", "law", "points"), CASES, ids=KEYS)
def test_a_law_without_noise_comes_back(form: Form, law: Sequence[float], points: list[Point]) -> None:
    found = estimate(form, planted(form, law, points), replicates=2, rng=rng())
    assert form.natural(found.x) == pytest.approx(law, rel=2e-3)
    assert found.objective < 1e-12
    assert not warnings(found)


def test_the_objective_is_a_sum_of_huber_losses() -> None:
    task = problem(forms.HOFFMANN, planted(forms.HOFFMANN, HOFFMANN, grid(), noise=0.002))
    x = forms.HOFFMANN.fitted([HOFFMANN])
    residuals = forms.HOFFMANN.log_loss(x, task.at)[0] - task.log_loss
    expected = [r**2 / 2 if abs(r) <= CORNER else CORNER * abs(r) - CORNER**2 / 2 for r in residuals]
    assert 5 < sum(abs(residuals) > CORNER) < 25
    assert evaluate(task, x).objective[0] == pytest.approx(sum(expected), rel=1e-12)


def test_the_best_starts_lead_where_all_starts_lead() -> None:
    task = problem(forms.HOFFMANN, planted(forms.HOFFMANN, HOFFMANN, grid(4, 4), noise=0.004))
    few, all_of_them = (descend(task, x, gain=1e-6)[1].min() for x in (best_starts(task), forms.HOFFMANN.grid()[::3]))
    assert few == pytest.approx(all_of_them, rel=1e-4)
    assert few < 0.05 * evaluate(task, best_starts(task)).objective.min()


def slow(task: Problem, x: np.ndarray, weights: np.ndarray) -> float:
    def cost(x: np.ndarray) -> tuple[float, np.ndarray]:
        value = evaluate(task, x[None], weights[None])
        return float(value.objective[0]), value.gradient[0]

    bounds = list(zip(task.form.low, task.form.high, strict=True))
    options = {"maxiter": 5000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-11}
    return float(minimize(cost, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).fun)


@pytest.mark.parametrize(("form", "law", "points"), CASES, ids=KEYS)
def test_many_at_once_end_where_scipy_ends_one_by_one(form: Form, law: Sequence[float], points: list[Point]) -> None:
    task = problem(form, planted(form, law, points, noise=0.004))
    x = polish(task, descend(task, best_starts(task, 5))[0][0])[0]
    weights = rng().exponential(size=(6, len(points)))
    together = descend(task, np.repeat(x[None], 6, axis=0), weights_rn=weights)[1]
    alone = [slow(task, x, one) for one in weights]
    assert (together <= np.array(alone) * (1 + 1e-4)).all()
    assert (evaluate(task, np.repeat(x[None], 6, axis=0), weights).objective > together * 1.001).any()


def test_the_same_seed_is_the_same_fit() -> None:
    points = planted(forms.OVERTRAINED, GADRE, grid(), noise=0.004)
    first, second = (estimate(forms.OVERTRAINED, points, replicates=20, rng=rng()) for _ in range(2))
    assert (first.samples == second.samples).all() and (first.x == second.x).all()
    assert first.samples.std(axis=0).min() > 0


def test_a_profile_rises_from_the_estimate() -> None:
    found = estimate(forms.HOFFMANN, planted(forms.HOFFMANN, HOFFMANN, grid(), noise=0.004), replicates=20, rng=rng())
    values, objectives = profiles(found)
    assert (objectives >= found.objective * (1 - 1e-9)).all()
    assert (objectives[:, :, -1] > 1.2 * found.objective).all()
    assert values[:, 0, -1] == pytest.approx(forms.HOFFMANN.low)
    assert values[:, 1, -1] == pytest.approx(forms.HOFFMANN.high)
    assert set(identified(found).values()) == {None}


def test_what_the_points_do_not_hold_is_said() -> None:
    """No size is beyond what its tokens call for, and no token is seen often: nothing says when either wears out."""
    few = [
        replace(point, unique_tokens=point.tokens / epochs)
        for point in grid()
        if point.tokens > 20 * point.params
        for epochs in (1.0, 1.5, 2.0)
    ]
    points = planted(forms.REPEATED, MUENNIGHOFF, few, noise=0.004)
    said = identified(estimate(forms.REPEATED, points, replicates=40, rng=rng()))
    assert said["R_D*"] == "R_D* has no upper bound on these points"
    assert said["R_N*"] == "R_N* has no bound on either side on these points"
    assert said["alpha"] is None


def test_a_term_that_does_nothing_is_said() -> None:
    """Sizes that make no difference."""
    points = planted(forms.HOFFMANN, (1.7, 1e-3, 410.0, 0.3, 0.28), grid())
    found = estimate(forms.HOFFMANN, points, replicates=20, rng=rng())
    assert any(said.startswith(("the term of A is less than 0.1%", "A ended")) for said in warnings(found))
    assert identified(found)["alpha"] is not None
