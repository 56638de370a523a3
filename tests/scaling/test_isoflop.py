"""Curves of equal compute: planted minima come back, and curves without one are not used."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.scaling.planted import HOFFMANN, planted
from tinyllama.plan import laws
from tinyllama.scaling import forms
from tinyllama.scaling.isoflop import budgets, isoflop
from tinyllama.scaling.points import Point

TIMES = (0.2, 0.4, 0.7, 1.0, 1.5, 2.5, 5.0)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def curve(flops: float, best: float, *, bend: float = 0.1, times: tuple[float, ...] = TIMES) -> list[Point]:
    """A budget whose loss is exactly a parabola about a length."""
    return [
        Point(
            name=f"{flops:g} {m}",
            params=flops / (6 * best * m),
            tokens=best * m,
            loss=3 + bend * np.log10(m) ** 2,
        )
        for m in times
    ]


def test_exact_parabolas_come_back() -> None:
    points = [p for flops in (1e18, 1e19, 1e20) for p in curve(flops, 2 * flops**0.5)]
    told = isoflop(points[::-1], replicates=10, rng=rng())
    assert told is not None
    for budget, flops in zip(told["budgets"], (1e18, 1e19, 1e20), strict=True):
        assert budget["usable"] and budget["reason"] is None
        assert budget["flops"] == pytest.approx(flops)
        assert budget["tokens_best"] == pytest.approx(2 * flops**0.5, rel=1e-6)
        assert budget["params_best"] == pytest.approx(flops**0.5 / 12, rel=1e-6)
        assert budget["loss_best"] == pytest.approx(3)
        c0, c1, c2 = budget["curve"]
        x = np.log10(budget["tokens"])
        assert c0 + c1 * x + c2 * x**2 == pytest.approx(np.array(budget["losses"]), rel=1e-9)
    assert told["tokens_power"]["coefficient"]["value"] == pytest.approx(2, rel=1e-5)
    assert told["tokens_power"]["exponent"]["value"] == pytest.approx(0.5, rel=1e-6)
    assert told["params_power"]["coefficient"]["value"] == pytest.approx(1 / 12, rel=1e-5)
    assert told["params_power"]["exponent"]["value"] == pytest.approx(0.5, rel=1e-6)


def test_the_exponent_of_a_planted_law_is_within_its_interval() -> None:
    alpha, beta = HOFFMANN[3:]
    points = []
    for flops in np.geomspace(1e18, 1e21, 5):
        best = laws.HOFFMANN.optimum(flops)
        points += curve(flops, best.tokens, times=(0.4, 0.6, 0.8, 1.0, 1.3, 1.7, 2.5))
    hits = 0
    for seed in range(20):
        told = isoflop(planted(forms.HOFFMANN, HOFFMANN, points, noise=0.002, seed=seed), replicates=100, rng=rng())
        assert told is not None
        exponent = told["tokens_power"]["exponent"]
        hits += exponent["low"] <= alpha / (alpha + beta) <= exponent["high"]
    assert hits >= 14, "fewer come of 90% once in five hundred times"


@pytest.mark.parametrize(
    ("points", "reason"),
    [
        (curve(1e19, 1e9, bend=-0.1), "its parabola has no minimum"),
        (curve(1e19, 1e9, times=(1.5, 2.0, 3.0, 4.0)), "its minimum lies outside its samples"),
    ],
)
def test_a_curve_without_a_minimum_is_told_and_not_used(points: list[Point], reason: str) -> None:
    told = isoflop([*points, *curve(1e20, 3e9)], replicates=5, rng=rng())
    assert told is not None
    bad, good = told["budgets"]
    assert (bad["usable"], bad["reason"], good["usable"]) == (False, reason, True)
    assert bad["tokens_best"] == min(points, key=lambda p: p.loss).tokens
    assert told["tokens_power"] is told["params_power"] is None


def test_runs_within_five_percent_are_one_budget() -> None:
    wobbly = [replace(p, params=p.params * m) for p, m in zip(curve(1e19, 1e9), (1, 0.96, 1.04) * 3, strict=False)]
    assert [len(group) for group in budgets([*wobbly, *curve(1.3e19, 1e9)])] == [7, 7]
    assert budgets(curve(1e19, 1e9)[:2]) == []
    assert isoflop(curve(1e19, 1e9)[:2], replicates=5, rng=rng()) is None
    assert budgets([curve(1e19, 1e9)[0]] * 5) == []  # of one length


def test_runs_on_several_small_corpora_stay_out() -> None:
    fresh = curve(1e19, 1e9)
    again = [replace(p, unique_tokens=p.tokens / times) for p, times in zip(fresh, (2, 5, 9), strict=False)]
    assert budgets([*fresh, *again]) == [fresh]
    one = [replace(p, unique_tokens=min(p.tokens, 1e9)) for p in fresh]
    assert budgets(one) == [one]
