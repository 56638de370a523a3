"""An optimizer in the machine's memory trains as one on the GPU does, and hands over and takes the same states.

On a CPU both lie in one memory: what is shown is that DeepSpeed's other path comes to the same, and the engine with it.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.launched import measured
from tests.engine.test_zero import BF16_LOSS, FP32_LOSS

STATES = 1e-6
"""By tensor and relative norm: the norm that clips is summed in another order; measured 4e-7."""

pytestmark = [
    pytest.mark.parametrize("ranks", [1, 2]),
    pytest.mark.parametrize("stage", [1, 2, 3]),
    pytest.mark.parametrize("precision", ["fp32", "bf16"]),
]


def found(precision: str, stage: int, ranks: int) -> dict[str, Any]:
    one: dict[str, Any] = measured("offloaded.py", ranks=ranks)[f"{precision} stage {stage}"]
    return one


def test_losses_and_states_are_those_of_one_that_stays(precision: str, stage: int, ranks: int) -> None:
    """With refused steps in between, which the other did not take."""
    one = found(precision, stage, ranks)
    assert one["losses"][1] == pytest.approx(one["losses"][0], rel=FP32_LOSS)
    assert one["states"] < STATES


def test_a_refused_step_leaves_no_trace(precision: str, stage: int, ranks: int) -> None:
    """A loss above the ceiling, and one rank's gradient that is not a number."""
    one = found(precision, stage, ranks)
    assert one["refused"] == [True, True]
    assert one["untouched"]


def test_its_state_is_taken_again_and_by_one_that_stays(precision: str, stage: int, ranks: int) -> None:
    """By another that is offloaded, bit for bit; and at another stage by one that is not."""
    one = found(precision, stage, ranks)
    assert one["resumed"]
    theirs, ours = one["taken over"]
    assert ours == pytest.approx(theirs, rel=FP32_LOSS if precision == "fp32" else BF16_LOSS)
