"""How two tensors are compared here: by the RMS of their difference over the RMS of what is expected."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal values that are exact in dtype, the same in each but for their rounding."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def error_ratio(actual: Tensor, expected: Tensor) -> float:
    """0 for equal tensors; no finite number where a value is not finite or an expected zero is missed."""
    difference, size = (float(x.double().square().mean().sqrt()) for x in (actual.double() - expected, expected))
    if difference == 0:
        return 0.0
    return difference / size if size else math.inf


def assert_close(actual: Tensor, expected: Tensor, *, ratio: float, dtype: torch.dtype | None = None) -> None:
    """Raises AssertionError unless the shapes agree, the dtype is `dtype` (default: expected's) and the ratio holds."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    wanted = dtype or expected.dtype
    assert actual.dtype == wanted, f"dtype {actual.dtype}, expected {wanted}"
    error = error_ratio(actual.detach(), expected.detach().double())
    # a NaN is not at most anything
    assert error <= ratio, f"error ratio {error:.2e}, tolerance {ratio:.2e}"
