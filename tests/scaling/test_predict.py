"""What a fit foretells, from its dictionary alone, against the published laws' own formulas."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.scaling.planted import HOFFMANN, MUENNIGHOFF, corpora, grid, planted
from tinyllama.plan import laws
from tinyllama.scaling import forms
from tinyllama.scaling.fit import fit_all
from tinyllama.scaling.predict import frontier, lifetime, predict


def as_fit(**named: tuple[forms.Form, tuple[float, ...]]) -> dict[str, Any]:
    """A fit whose laws are known exactly: every sample is the law."""
    told = {
        key: {
            "parameters": {name: {"value": value} for name, value in zip(form.names, law, strict=True)},
            "samples": [list(law)] * 3,
            "range": {"params": [1e8, 1e9], "tokens": [1e9, 1e11]},
        }
        for key, (form, law) in named.items()
    }
    return {"laws": told, "not_fitted": {"overtrained": "it takes at least 6 points: there are 5"}}


FIT = as_fit(hoffmann=(forms.HOFFMANN, HOFFMANN), repeated=(forms.REPEATED, MUENNIGHOFF))


def test_it_is_the_law_with_how_far_beyond_its_points() -> None:
    told = predict(FIT, params=2e9, tokens=5e8)
    loss = laws.HOFFMANN.loss(2e9, 5e8)
    assert told["loss"] == pytest.approx({"value": loss, "low": loss, "high": loss})
    assert (told["law"], told["params_beyond"], told["tokens_beyond"]) == ("hoffmann", 2, 2)
    inside = predict(FIT, params=5e8, tokens=5e9)
    assert (inside["params_beyond"], inside["tokens_beyond"]) == (1, 1)


def test_repeated_tokens_have_the_law_of_repeats() -> None:
    told = predict(FIT, params=6.34e9, tokens=242e9, unique_tokens=25e9)
    assert told["law"] == "repeated"
    assert told["loss"]["value"] == pytest.approx(2.2256440889984477, rel=1e-12)
    assert predict(FIT, params=6.34e9, tokens=242e9, unique_tokens=242e9)["law"] == "hoffmann"
    assert predict(FIT, params=6.34e9, tokens=242e9, unique_tokens=25e9, law="hoffmann")["law"] == "hoffmann"


def test_what_cannot_be_foretold_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"^law overtrained: it was not fitted: it takes at least 6 points: there are 5: fitted were hoff",
    ):
        predict(FIT, params=1e9, tokens=1e9, law="overtrained")
    with pytest.raises(ValueError, match=r"^law mine: it was not fitted: there is no such law: fitted were hoffmann"):
        predict(FIT, params=1e9, tokens=1e9, law="mine")
    with pytest.raises(ValueError, match=r"^tokens is -1, which is no positive number: give a count$"):
        predict(FIT, params=1e9, tokens=-1)


def test_samples_make_the_interval_and_it_widens_with_distance() -> None:
    fit = json.loads(json.dumps(fit_all(planted(forms.HOFFMANN, HOFFMANN, grid(), noise=0.003), replicates=60)))
    near, far = (predict(fit, params=n, tokens=d)["loss"] for n, d in ((3e8, 6e9), (1e11, 4e12)))
    assert near["low"] < near["value"] < near["high"]
    assert 0 < near["high"] - near["low"] < (far["high"] - far["low"]) / 3


def test_the_frontier_is_the_optimum_of_the_law() -> None:
    [told] = frontier(FIT["laws"]["hoffmann"], flops=[5.76e23])
    best = laws.HOFFMANN.optimum(5.76e23)
    assert told["flops"] == 5.76e23
    for name, value in (("params", best.parameters), ("tokens", best.tokens), ("loss", laws.HOFFMANN.loss(*best))):
        assert told[name] == pytest.approx({"value": value, "low": value, "high": value}, rel=1e-9)


def test_a_lifetime_has_the_loss_of_the_best_training() -> None:
    best = laws.HOFFMANN.optimum(1e22)
    told = lifetime(FIT["laws"]["hoffmann"], flops=1e22, inference_tokens=2e12)
    assert told is not None
    assert told["loss"] == pytest.approx(laws.HOFFMANN.loss(*best), rel=1e-9)
    least = laws.least_lifetime(laws.HOFFMANN, loss=told["loss"], inference_tokens=2e12)
    assert told["params"]["value"] == pytest.approx(least.parameters, rel=1e-6)
    assert told["tokens"]["value"] == pytest.approx(least.tokens, rel=1e-6)
    taken = [laws.lifetime_flops(size, inference_tokens=2e12) for size in (least, best)]
    assert told["saved"]["value"] == pytest.approx(1 - taken[0] / taken[1], abs=1e-6)
    assert 0 < told["saved"]["value"] < 1


def test_a_study_of_repeats_foretells_repeats() -> None:
    fit = fit_all(planted(forms.REPEATED, MUENNIGHOFF, corpora()), replicates=5)
    told = predict(fit, params=1e9, tokens=3e10, unique_tokens=3e9)
    assert told["law"] == "repeated"
    assert told["loss"]["value"] == pytest.approx(laws.MUENNIGHOFF.loss(1e9, 3e10, 3e9), rel=1e-4)
