"""The laws as they are drawn, against the published ones and against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.scaling.fitted import point
from tinyllama.plan.laws import HOFFMANN, MUENNIGHOFF
from tinyllama.scaling.curves import foretold, is_repeated, law_loss, least_loss, series

PUBLISHED = {
    "E": HOFFMANN.floor, "A": math.exp(HOFFMANN.log_a), "B": math.exp(HOFFMANN.log_b),
    "alpha": HOFFMANN.alpha, "beta": HOFFMANN.beta,
}  # fmt: skip
FRESH = MUENNIGHOFF.fresh
REPEATED = {
    "E": FRESH.floor, "A": math.exp(FRESH.log_a), "B": math.exp(FRESH.log_b), "alpha": FRESH.alpha,
    "R_D": MUENNIGHOFF.repeats, "R_N": MUENNIGHOFF.excess,
}  # fmt: skip


def test_losses_of_tinyllama_by_hoffmann() -> None:
    losses = law_loss("hoffmann", PUBLISHED, 1.1e9, [22e9, 300e9, 3e12])
    assert [f"{loss:.4f}" for loss in losses] == ["2.5064", "2.2626", "2.1565"]


def test_repeats_as_the_plans_law_has_them() -> None:
    params, tokens = np.array([6.34e9, 8.67e9, 1e9, 1e8]), np.array([242e9, 178e9, 10e9, 5e12])
    unique = np.array([25e9, 25e9, 25e9, 1e9])
    expected = [MUENNIGHOFF.loss(*row) for row in zip(params, tokens, unique, strict=True)]
    assert law_loss("repeated", REPEATED, params, tokens, unique) == pytest.approx(expected, rel=1e-12)
    assert expected[0] == pytest.approx(2.2256440889984477, rel=1e-12)
    starred = {f"{name}*" if name.startswith("R_") else name: value for name, value in REPEATED.items()}
    assert law_loss("repeated", starred, params, tokens, unique) == pytest.approx(expected, rel=1e-12)


def test_tokens_that_are_not_known_to_repeat_are_new() -> None:
    expected = MUENNIGHOFF.loss(1e9, 30e9, 30e9)
    assert law_loss("repeated", REPEATED, 1e9, 30e9) == pytest.approx(expected, rel=1e-12)
    assert law_loss("repeated", REPEATED, 1e9, 30e9, math.nan) == pytest.approx(expected, rel=1e-12)


def test_repeats_of_endless_worth_are_new_tokens() -> None:
    endless = REPEATED | {"R_D": math.inf, "R_N": math.inf}
    assert law_loss("repeated", endless, 5e9, 80e9, 1e9) == pytest.approx(FRESH.loss(5e9, 80e9), rel=1e-12)


def test_overtraining_by_hand() -> None:
    # M = 100 and C = 6e18: 10^1 and 10^-1 at eta .5, over sqrt(6e18)
    values = {"E": 1.5, "a": 2e8, "b": 3e9, "eta": 0.5}
    expected = 1.5 + (2e8 * 10 + 3e9 / 10) / math.sqrt(6e18)
    assert law_loss("overtrained", values, 1e8, 1e10) == pytest.approx(expected, rel=1e-12)


def test_a_name_that_is_no_laws_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^'hofman' is not a law; choose hoffmann, repeated or overtrained$"):
        law_loss("hofman", PUBLISHED, 1e9, 1e9)


def test_a_band_is_the_middle_nine_tenths_of_the_samples() -> None:
    parameters = {name: {"value": value} for name, value in PUBLISHED.items()}
    rows = [list((PUBLISHED | {"E": floor}).values()) for floor in np.linspace(1, 2, 101)]
    band = foretold("hoffmann", {"parameters": parameters, "samples": [*rows, [None] * 5]}, 1.1e9, [22e9, 3e12])
    assert band.low is not None and band.high is not None
    assert band.value == pytest.approx([HOFFMANN.loss(1.1e9, 22e9), HOFFMANN.loss(1.1e9, 3e12)])
    assert band.low == pytest.approx(band.value - HOFFMANN.floor + 1.05)
    assert band.high == pytest.approx(band.value - HOFFMANN.floor + 1.95)
    assert foretold("hoffmann", {"parameters": parameters, "samples": []}, 1.1e9, [22e9]).low is None


def test_the_least_loss_is_that_of_the_best_size() -> None:
    law = {"parameters": {name: {"value": value} for name, value in PUBLISHED.items()}, "samples": []}
    expected = [HOFFMANN.loss(*HOFFMANN.optimum(flops)) for flops in (1e18, 5.76e23)]
    assert least_loss(law, [1e18, 5.76e23]).value == pytest.approx(expected, rel=1e-12)


def test_points_are_told_apart_by_size_and_where_asked_by_unique_tokens() -> None:
    rows = [
        point("b", 2e9, 9e9, 3.0),
        point("a2", 1e9, 8e9, 3.1, unique=4e9),
        point("a1", 1.0004e9, 4e9, 3.2, unique=4e9),
        point("a3", 1e9, 16e9, 3.0, unique=1e9),
    ]
    assert [is_repeated(row) for row in rows] == [False, True, False, True]
    assert [(line.label, [p["name"] for p in line.points]) for line in series(rows)] == [
        ("1B", ["a2", "a3", "a1"]),
        ("2B", ["b"]),
    ]
    by_unique = series(rows, by_unique=True)
    assert [line.label for line in by_unique] == ["1B", "1B, 4B unique", "1B, 1B unique", "2B"]
    assert [line.unique for line in by_unique[1:3]] == [4e9, 1e9]
    assert math.isnan(by_unique[0].unique)
