"""Published laws, against the values published or worked out for them."""

from __future__ import annotations

import math

import pytest

from tinyllama.plan.forecast import forecasts, lifetime
from tinyllama.plan.laws import (
    BESIROGLU,
    HOFFMANN,
    MUENNIGHOFF,
    Allocation,
    Parametric,
    Range,
    least_lifetime,
    lifetime_flops,
)


@pytest.mark.parametrize(
    ("law", "losses"),
    [(HOFFMANN, ["2.5064", "2.2626", "2.1565"]), (BESIROGLU, ["2.5053", "2.2942", "2.2191"])],
    ids=["Hoffmann", "Besiroglu"],
)
def test_losses_of_tinyllama(law: Parametric, losses: list[str]) -> None:
    assert [f"{law.loss(1.1e9, tokens):.4f}" for tokens in (22e9, 300e9, 3e12)] == losses


@pytest.mark.parametrize(
    ("law", "parameters", "tokens"),
    [(HOFFMANN, "40.36", "2.379"), (BESIROGLU, "72.36", "1.327")],
    ids=["Hoffmann", "Besiroglu"],
)
def test_optimum_of_chinchillas_compute(law: Parametric, parameters: str, tokens: str) -> None:
    best = law.optimum(5.76e23)
    assert (f"{best.parameters / 1e9:.2f}", f"{best.tokens / 1e12:.3f}") == (parameters, tokens)
    assert best.flops == pytest.approx(5.76e23)
    assert law.matched_size(best.tokens) == pytest.approx(best.parameters)
    for factor in (0.9, 1.1):  # no better beside it
        assert law.loss(best.parameters * factor, best.tokens / factor) > law.loss(*best)


def test_repeated_tokens_are_worth_less_and_less() -> None:
    assert MUENNIGHOFF.loss(6.34e9, 242e9, 25e9) == pytest.approx(2.2256440889984477, rel=1e-12)
    assert MUENNIGHOFF.loss(8.67e9, 178e9, 25e9) == pytest.approx(2.2269634075087867, rel=1e-12)
    # nothing repeats: the law beneath, where the size is not more than the tokens call for
    assert MUENNIGHOFF.loss(1e9, 25e9, 25e9) == MUENNIGHOFF.loss(1e9, 25e9, 1e12) == MUENNIGHOFF.fresh.loss(1e9, 25e9)
    assert MUENNIGHOFF.effective_tokens(25e9, 25e9) == 25e9
    worth = [MUENNIGHOFF.effective_tokens(epochs * 25e9, 25e9) for epochs in (1, 2, 4, 1000)]
    assert worth == sorted(worth)
    assert worth[1] < 2 * worth[0]
    assert worth[-1] == pytest.approx(25e9 * (1 + MUENNIGHOFF.repeats))  # there is no more in them


def test_best_allocation_of_repeated_tokens() -> None:
    best = MUENNIGHOFF.optimum(1e22, 25e9)
    # the published search stops a little off the minimum, where the loss is flat
    published = Allocation(7022364735.88, 237336955477.55)
    assert best.tokens == pytest.approx(published.tokens, rel=1e-3)
    assert best.parameters == pytest.approx(published.parameters, rel=1e-3)
    assert f"{best.tokens / 25e9:.2f}" == "9.49"
    assert MUENNIGHOFF.loss(*best, 25e9) <= MUENNIGHOFF.loss(*published, 25e9)


def test_inference_calls_for_a_smaller_model_trained_for_longer() -> None:
    best = least_lifetime(HOFFMANN, loss=2.0238, inference_tokens=2e12)
    assert (f"{best.parameters / 1e9:.2f}", f"{best.tokens / 1e12:.3f}") == ("7.12", "1.296")
    assert HOFFMANN.loss(*best) == pytest.approx(2.0238, rel=1e-9)
    optimal = least_lifetime(HOFFMANN, loss=2.0238, inference_tokens=0)
    assert HOFFMANN.optimum(optimal.flops).parameters == pytest.approx(optimal.parameters, rel=1e-4)
    saved = 1 - lifetime_flops(best, inference_tokens=2e12) / lifetime_flops(optimal, inference_tokens=2e12)
    assert f"{saved:.1%}" == "16.3%"


def test_a_loss_below_the_floor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a loss of 1\.6 is not above the law's floor of 1\.69337: no model has it$"):
        least_lifetime(HOFFMANN, loss=1.6, inference_tokens=0)
    assert HOFFMANN.tokens_for(1.1e9, HOFFMANN.floor + HOFFMANN.from_size(1.1e9)) is None


def test_a_forecast_says_how_far_beyond_its_law_it_is() -> None:
    assert Range(least=2, most=8).outside(4) == Range(least=2, most=8).outside(8) == 1
    assert Range(least=2, most=8).outside(1) == Range(least=2, most=8).outside(16) == 2
    worth = MUENNIGHOFF.effective_tokens(3e12, 950e9)
    told = forecasts(1_100_048_384, tokens=3 * 10**12, unique_tokens=950 * 10**9, effective_tokens=round(worth))
    assert [one.law.partition(" ")[0] for one in told] == ["Hoffmann", "Besiroglu", "Muennighoff"]
    assert [f"{one.tokens_beyond:.2f}" for one in told] == ["6.00", "6.00", "3.33"]
    assert {one.parameters_beyond for one in told} == {1}
    assert told[2].loss == pytest.approx(MUENNIGHOFF.loss(1_100_048_384, 3e12, 950e9), rel=1e-9)
    assert len(forecasts(1_100_048_384, tokens=10**9, unique_tokens=None, effective_tokens=None)) == 2


def test_a_lifetime_is_compared_at_equal_loss() -> None:
    life = lifetime(1_100_048_384, tokens=3 * 10**12, inference_tokens=2 * 10**12)
    assert life is not None
    assert math.isclose(HOFFMANN.loss(*life.best), life.loss, rel_tol=1e-9)
    assert life.flops == 2 * 1_100_048_384 * (3 * 3e12 + 2e12)
    assert 0 < life.saved == 1 - lifetime_flops(life.best, inference_tokens=2e12) / life.flops
    assert lifetime(1, tokens=1, inference_tokens=None) is None
