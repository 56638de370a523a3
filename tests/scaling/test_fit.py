"""All laws on all points: what a fit holds, what it refuses, and what it says of runs that were held out."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.scaling.planted import GADRE, HOFFMANN, MUENNIGHOFF, corpora, grid, planted
from tinyllama.scaling import forms
from tinyllama.scaling.fit import fit_all, refusal
from tinyllama.scaling.points import Point


@pytest.fixture(scope="module")
def points() -> list[Point]:
    return planted(forms.HOFFMANN, HOFFMANN, grid(), noise=0.003)


@pytest.fixture(scope="module")
def fit(points: list[Point]) -> dict[str, Any]:
    return fit_all(
        points,
        excluded=[{"name": "spoilt", "reason": "its loss is nan"}],
        source="runs/*",
        inference_tokens=1e12,
        replicates=60,
    )


def is_interval(one: dict[str, float]) -> bool:
    return set(one) == {"value", "low", "high"} and one["low"] <= one["high"]


def test_a_fit_has_all_that_its_readers_look_for(fit: dict[str, Any]) -> None:
    assert json.loads(json.dumps(fit, allow_nan=False)) == fit
    assert list(fit) == [
        "format", "source", "points", "excluded", "conventions", "laws", "not_fitted", "isoflop", "frontier",
        "lifetime",
    ]  # fmt: skip
    assert (fit["format"], fit["source"]) == (1, "runs/*")
    assert fit["excluded"] == [{"name": "spoilt", "reason": "its loss is nan"}]
    assert set(fit["conventions"]) == {"params", "tokens", "loss", "flops"}
    assert set(fit["laws"]) == {"hoffmann", "overtrained"} and set(fit["not_fitted"]) == {"repeated"}
    assert {tuple(point) for point in fit["points"]} == {
        ("name", "params", "tokens", "unique_tokens", "loss", "held_out")
    }
    for law in fit["laws"].values():
        assert list(law) == [
            "title", "formula", "source", "parameters", "objective", "rmse", "identified", "warnings", "held_out",
            "held_out_error", "samples", "range",
        ]  # fmt: skip
        assert set(law["identified"]) == set(law["parameters"])
        assert all(is_interval(one) for one in law["parameters"].values())
        assert np.array(law["samples"]).shape == (60, len(law["parameters"]))
        assert law["range"] == {"params": pytest.approx([2e7, 1e9]), "tokens": pytest.approx([4e8, 4e10])}


def test_the_planted_law_is_fitted_to_all_points(fit: dict[str, Any]) -> None:
    law = fit["laws"]["hoffmann"]
    for (name, found), true in zip(law["parameters"].items(), HOFFMANN, strict=True):
        assert found["value"] == pytest.approx(true, rel=0.4 if name in "AB" else 0.06)
        assert found["low"] < found["value"] < found["high"]
    assert 0.002 < law["rmse"] < 0.004
    assert law["warnings"] == []


def test_the_largest_runs_are_foretold_from_the_rest(points: list[Point], fit: dict[str, Any]) -> None:
    largest = sorted(points, key=lambda point: point.flops)[-6:]
    assert {p["name"] for p in fit["points"] if p["held_out"]} == {p.name for p in largest}
    told = fit["laws"]["hoffmann"]["held_out"]
    assert {one["name"]: one["loss"] for one in told} == {p.name: p.loss for p in largest}
    off = [abs(math.log(one["predicted"]["value"] / one["loss"])) for one in told]
    assert fit["laws"]["hoffmann"]["held_out_error"] == pytest.approx(sum(off) / 6)
    assert 0 < sum(off) / 6 < 0.006
    # they had no part in it: a wrong loss moves what is foretold of none
    spoilt = [replace(p, loss=2 * p.loss) if p in largest else p for p in points]
    again = fit_all(spoilt, replicates=60)["laws"]["hoffmann"]
    assert [one["predicted"] for one in again["held_out"]] == [one["predicted"] for one in told]
    assert again["held_out_error"] > 0.5
    assert again["parameters"] != fit["laws"]["hoffmann"]["parameters"]


def test_runs_to_hold_out_can_be_named(points: list[Point]) -> None:
    fit = fit_all(points, held_out=[points[3].name], replicates=5)
    assert [one["name"] for one in fit["laws"]["hoffmann"]["held_out"]] == [points[3].name]
    none = fit_all(points, held_out_fraction=0, replicates=5)["laws"]["hoffmann"]
    assert (none["held_out"], none["held_out_error"]) == ([], None)
    with pytest.raises(ValueError, match=r"^held out: no point is called gone: name runs that are fitted to$"):
        fit_all(points, held_out=["gone"])
    with pytest.raises(
        ValueError, match=r"^held_out_fraction is 1, which is not at least 0 and below 1: 0\.2 is usual$"
    ):
        fit_all(points, held_out_fraction=1)


def test_too_few_points_beside_those_held_out_are_said() -> None:
    law = fit_all(planted(forms.HOFFMANN, HOFFMANN, grid(3, 3), noise=0.003), held_out_fraction=0.5, replicates=5)
    told = law["laws"]["hoffmann"]
    assert told["held_out_error"] is None
    assert (
        "the largest runs could not be foretold from the rest: it takes at least 7 points: there are 5"
        in told["warnings"]
    )


def test_the_same_points_and_seed_are_the_same_fit(points: list[Point]) -> None:
    first, second, other = (fit_all(points, replicates=10, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first["laws"]["hoffmann"]["samples"] != other["laws"]["hoffmann"]["samples"]


def test_it_says_what_it_does(points: list[Point]) -> None:
    said: list[str] = []
    fit_all(points, replicates=5, report=said.append)
    assert said == [
        "Size and length: 30 points, 5 replicates",
        "Compute and tokens a parameter: 30 points, 5 replicates",
    ]


@pytest.mark.parametrize(
    ("form", "points", "why"),
    [
        (forms.HOFFMANN, [], "it takes at least 7 points: there are 0"),
        (forms.HOFFMANN, grid(2, 3), "it takes at least 7 points: there are 6"),
        (forms.HOFFMANN, grid(2, 4), "it takes at least 3 sizes: there are 2"),
        (forms.HOFFMANN, grid(4, 2), "it takes at least 3 lengths: there are 2"),
        (forms.HOFFMANN, grid(3, 3), None),
        (forms.OVERTRAINED, grid(1, 5), "it takes at least 6 points: there are 5"),
        (forms.OVERTRAINED, grid(2, 3), None),
        (forms.REPEATED, corpora()[:7], "it takes at least 8 points whose unique tokens are known: there are 7"),
        (
            forms.REPEATED,
            [point for point in corpora() if point.epochs == 1],
            "it takes at least 3 points that see their tokens at least 1.5 times: there are 0",
        ),
        (
            forms.REPEATED,
            [point for point in corpora() if point.epochs in (1, 4)],
            "it takes at least 2 different numbers of epochs: there are 1",
        ),
        (forms.REPEATED, corpora(), None),
    ],
)
def test_points_that_cannot_hold_a_law_are_refused(form: forms.Form, points: list[Point], why: str | None) -> None:
    assert refusal(form, points) == why


def test_no_points_are_no_laws() -> None:
    fit = fit_all([], replicates=5, inference_tokens=1e12)
    assert (fit["laws"], fit["isoflop"], fit["frontier"], fit["lifetime"]) == ({}, None, [], None)
    assert set(fit["not_fitted"]) == {"hoffmann", "repeated", "overtrained"}


@pytest.mark.parametrize(
    ("field", "value"), [("loss", math.nan), ("tokens", 0.0), ("params", -1.0), ("unique_tokens", math.inf)]
)
def test_a_point_that_is_no_number_is_refused(points: list[Point], field: str, value: float) -> None:
    bad = replace(points[0], name="a", **{field: value})
    with pytest.raises(ValueError, match=f"^a: {field} is .*, which is no positive number: leave the run out$"):
        fit_all([*points, bad])


def test_a_wrong_law_is_told_by_what_it_says_of_held_out_runs() -> None:
    fit = fit_all(planted(forms.REPEATED, MUENNIGHOFF, corpora(), noise=0.003), replicates=5)
    right, wrong = (fit["laws"][key]["held_out_error"] for key in ("repeated", "hoffmann"))
    assert right < 0.01 < 5 * right < wrong
    assert "36 of 48 points see tokens again, which this law takes for new ones" in fit["laws"]["hoffmann"]["warnings"]
    assert fit["laws"]["repeated"]["warnings"] == []


def test_seeds_of_one_run_are_points_of_their_own() -> None:
    twice = [p for seed in (0, 1) for p in planted(forms.OVERTRAINED, GADRE, grid(3, 3), noise=0.003, seed=seed)]
    fit = fit_all(twice, replicates=5)
    assert len(fit["points"]) == 18 and fit["laws"]["overtrained"]["parameters"]["eta"]["value"] == pytest.approx(
        0.16, rel=0.1
    )
