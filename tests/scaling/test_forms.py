"""The laws to fit say what the published laws say, and their gradients are theirs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.scaling.planted import GADRE, HOFFMANN, MUENNIGHOFF, corpora, grid, public
from tinyllama.plan import laws
from tinyllama.scaling import forms
from tinyllama.scaling.estimate import problem
from tinyllama.scaling.forms import Form, design
from tinyllama.scaling.minimise import evaluate
from tinyllama.scaling.points import Point

CASES = [(forms.HOFFMANN, HOFFMANN), (forms.REPEATED, MUENNIGHOFF), (forms.OVERTRAINED, GADRE)]
KEYS = [form.key for form, _ in CASES]


def point(params: float, tokens: float, unique: float | None = None) -> Point:
    return Point(name="", params=params, tokens=tokens, loss=1, unique_tokens=unique)


def loss(form: Form, law: Sequence[float], *points: Point) -> list[float]:
    return [float(x) for x in np.exp(form.log_loss(form.fitted([law]), design(points))[0])]


def test_losses_of_tinyllama() -> None:
    runs = [point(1.1e9, tokens) for tokens in (22e9, 300e9, 3e12)]
    assert [f"{x:.4f}" for x in loss(forms.HOFFMANN, HOFFMANN, *runs)] == ["2.5064", "2.2626", "2.1565"]
    besiroglu = [np.exp(0.59711196), np.exp(6.17795598), np.exp(7.64273236), 0.34781303, 0.36585412]
    assert [f"{x:.4f}" for x in loss(forms.HOFFMANN, besiroglu, *runs)] == ["2.5053", "2.2942", "2.2191"]


def test_losses_of_repeated_tokens() -> None:
    runs = [point(6.34e9, 242e9, 25e9), point(8.67e9, 178e9, 25e9)]
    assert loss(forms.REPEATED, MUENNIGHOFF, *runs) == pytest.approx(
        [2.2256440889984477, 2.2269634075087867], rel=1e-12
    )


def test_they_say_what_a_plan_says() -> None:
    fresh = grid()
    assert loss(forms.HOFFMANN, HOFFMANN, *fresh) == pytest.approx(
        [laws.HOFFMANN.loss(p.params, p.tokens) for p in fresh], rel=1e-12
    )
    runs = [*corpora(), point(1e9, 25e9, 1e12), point(1e9, 25e9)]
    assert loss(forms.REPEATED, MUENNIGHOFF, *runs) == pytest.approx(
        [laws.MUENNIGHOFF.loss(p.params, p.tokens, p.unique_tokens or p.tokens) for p in runs], rel=1e-12
    )


def test_overtraining_is_the_law_of_one_exponent() -> None:
    """N = sqrt(C / 6 M) and D = sqrt(C M / 6): with alpha = beta = 2 eta, A = a 6^-eta and B = b 6^-eta."""
    e, a, b, eta = GADRE
    tied = (e, a * 6**-eta, b * 6**-eta, 2 * eta, 2 * eta)
    assert loss(forms.OVERTRAINED, GADRE, *grid()) == pytest.approx(loss(forms.HOFFMANN, tied, *grid()), rel=1e-12)


@pytest.mark.parametrize(("form", "law"), CASES, ids=KEYS)
def test_gradients_are_those_of_finite_differences(form: Form, law: Sequence[float]) -> None:
    at = design([*grid(), *corpora()])
    rng = np.random.default_rng(0)
    x_rp = form.fitted([law]) + rng.normal(scale=0.02, size=(4, len(law)))
    gradient = form.evaluate(x_rp, at)[1]
    step = 1e-6
    for i, move in enumerate(step * np.eye(len(law))):
        slope = (form.log_loss(x_rp + move, at) - form.log_loss(x_rp - move, at)) / (2 * step)
        np.testing.assert_allclose(gradient[:, :, i], slope, rtol=0, atol=2e-8)


@pytest.mark.parametrize(("form", "law"), CASES, ids=KEYS)
def test_parameters_there_and_back(form: Form, law: Sequence[float]) -> None:
    assert form.natural(form.fitted([law]))[0] == pytest.approx(law, rel=1e-12)
    assert form.grid().shape[1] == len(form.names) == len(law)
    assert ((form.low <= form.grid()) & (form.grid() <= form.high)).all()


def test_the_grid_of_the_paper() -> None:
    assert len(forms.HOFFMANN.grid()) == 5 * 5 * 5 * 6 * 6


def test_the_published_objective() -> None:
    task = problem(forms.REPEATED, public())
    assert f"{evaluate(task, forms.REPEATED.fitted([MUENNIGHOFF])).objective[0]:.6f}" == "0.015826"
