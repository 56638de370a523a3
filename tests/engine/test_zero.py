"""The engine beside a plain PyTorch loop, on one rank and on two: every ZeRO stage, both precisions, resumed and not.

One launch per number of ranks measures everything (`ranks.py`); the tests here read what it found.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.launched import measured
from tinyllama.engine.distributed import share_out

STAGES = ("stage 1", "stage 2", "stage 3")

FP32_LOSS = 1e-6
"""Twenty steps of sums in another order: a few units in the last place (1.2e-7) each; measured 1.2e-7."""
FP32_WEIGHTS = 3e-5
"""By tensor and relative norm: Adam divides by the gradient's size, so elements near zero turn rounding into whole
steps; measured 4.6e-8 here."""
BF16_LOSS = 2**-9
"""One rounding to bf16: both paths round alike but for the order in which gradients are summed."""
BF16_MOVED = 2**-5
"""Of the way the weights have moved: eight roundings' worth, since Adam's step is as large for a small gradient, of
which rounding is a larger part."""


@pytest.fixture(params=[1, 2], ids=["one rank", "two ranks"])
def found(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The same on one rank and on two."""
    return measured("ranks.py", ranks=request.param)


@pytest.mark.parametrize("stage", STAGES)
def test_fp32_equals_the_plain_loop(found: dict[str, Any], stage: str) -> None:
    assert found[f"fp32 {stage}"]["loss"] < FP32_LOSS
    assert found[f"fp32 {stage}"]["weights"] < FP32_WEIGHTS


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_equals_the_plain_loop(found: dict[str, Any], stage: str) -> None:
    assert found[f"bf16 {stage}"]["loss"] < BF16_LOSS
    assert found[f"bf16 {stage}"]["moved"] < BF16_MOVED


def test_a_dropped_micro_batch_would_show(found: dict[str, Any]) -> None:
    """The comparisons have teeth: one rank's mistake is far outside of every bound."""
    assert found["fp32 stage 1 dropped"]["loss"] > 2 * BF16_LOSS
    assert found["fp32 stage 1 dropped"]["weights"] > 2 * FP32_WEIGHTS
    assert found["fp32 stage 1 dropped"]["moved"] > 2 * BF16_MOVED


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_refused_step_leaves_no_trace(found: dict[str, Any], stage: str, precision: str) -> None:
    """A loss above the ceiling, and one rank's gradient that is not a number, the losses all finite."""
    key = f"{precision} {stage}"
    assert found[f"{key} refused"] == [True, True]
    assert found[f"{key} untouched"]
    assert found[f"{key} as if never"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_state_is_taken_back_in_mid_run(found: dict[str, Any], stage: str, precision: str) -> None:
    assert found[f"{precision} {stage} taken back"]


@pytest.mark.parametrize("ranks", [1, 2])
def test_votes_are_summed_over_the_ranks(ranks: int) -> None:
    assert measured("ranks.py", ranks=ranks)["fp32 stage 1 votes"] == [ranks, sum(range(ranks))]


def test_shares_are_even_and_whole() -> None:
    sizes = {"a": 70, "b": 40, "c": 30, "d": 9, "e": 1}
    owners = share_out(sizes, 2)
    assert owners.keys() == sizes.keys()
    assert [sum(sizes[name] for name in sizes if owners[name] == rank) for rank in (0, 1)] == [79, 71]
    assert set(share_out(sizes, 9).values()) == set(range(5))


@pytest.mark.parametrize("stage", ["stage 1", "stage 3"])
def test_recomputation_changes_nothing(found: dict[str, Any], stage: str) -> None:
    assert found[f"recompute {stage}"] == 0.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_stopped_and_resumed_twice_is_bit_for_bit_the_same(stage: str, precision: str) -> None:
    assert measured("ranks.py", ranks=1)[f"{precision} {stage} bit for bit"]


@pytest.mark.parametrize("change", ["stage 1 to 2", "stage 2 to 3", "stage 3 to 1"])
def test_a_state_fits_every_stage(change: str) -> None:
    assert measured("ranks.py", ranks=1)[change] < FP32_WEIGHTS
