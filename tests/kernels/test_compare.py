"""The comparison itself: what it must not let through."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernels.compare import assert_close, draw

EXPECTED = draw(100, 10)


def test_equal_tensors_pass_at_no_tolerance() -> None:
    assert_close(EXPECTED.clone(), EXPECTED, ratio=0.0)
    assert_close(torch.zeros(3), torch.zeros(3), ratio=0.0)
    assert_close(draw(5, 2, dtype=torch.bfloat16), draw(5, 2).bfloat16().double(), ratio=0.0, dtype=torch.bfloat16)


def altered(value: float) -> Tensor:
    other = EXPECTED.clone()
    other[57, 3] = value
    return other


@pytest.mark.parametrize(
    ("actual", "expected", "says"),
    [
        (EXPECTED * (1 + 2e-6), EXPECTED, "error ratio 2.00e-06, tolerance 1.00e-06"),
        (altered(float("nan")), EXPECTED, "error ratio nan"),
        (altered(float("inf")), EXPECTED, "error ratio inf"),
        (altered(float(EXPECTED[57, 3]) + 1e-4), EXPECTED, "error ratio 3."),
        (EXPECTED.float(), EXPECTED, "dtype"),
        (EXPECTED[None], EXPECTED, "shape"),
        (torch.full((3,), 1e-30), torch.zeros(3), "error ratio inf"),
    ],
)
def test_a_difference_raises(actual: Tensor, expected: Tensor, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        assert_close(actual, expected, ratio=1e-6)
