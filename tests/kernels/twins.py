"""A kernel beside its slow twin: outputs and every gradient, the twin in fp64 on the very same values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels import compare
from tests.kernels.compare import assert_close
from tinyllama.kernels.target import INTERPRETED

Op = Callable[..., Any]

DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = [torch.float32, torch.float16] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
"""The interpreter is wrong with bf16: that is the GPU's to show."""


def draw(*shape: int, dtype: torch.dtype, seed: int = 0, scale: float = 1.0) -> Tensor:
    """`compare.draw` where the kernels run."""
    return compare.draw(*shape, dtype=dtype, seed=seed, scale=scale).to(DEVICE)


def one_rounding(dtype: torch.dtype) -> float:
    """Tolerance of an op that is worked out in fp32 and rounded to dtype once.

    A rounding costs 0.2 eps of the values' RMS (see test_reference), a second one makes it 0.28. In fp32 each of an
    op's few steps rounds.
    """
    return torch.finfo(dtype).eps * (2 if dtype == torch.float32 else 0.24)


def results(op: Op, inputs: Sequence[Tensor], upstreams: Sequence[Tensor]) -> list[Tensor]:
    """An op's floating outputs, then the gradient of each input for these gradients of the outputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    outputs = op(*leaves)
    outputs = [out for out in (outputs if isinstance(outputs, tuple) else (outputs,)) if out.is_floating_point()]
    return [*(out.detach() for out in outputs), *torch.autograd.grad(outputs, leaves, upstreams)]


def assert_twins(op: Op, twin: Op, inputs: Sequence[Tensor], *, ratios: float | Sequence[float]) -> None:
    """Raise AssertionError unless op on inputs is what twin is in fp64, and unless smaller mistakes would show.

    ratios: the error ratio allowed to many values of each output and then of each input's gradient, or one for all.
    Each result is also seen to be refused with one value lost, and with all values off by twice what is allowed.
    """
    with torch.no_grad():
        shapes = twin(*(x.double() for x in inputs))
    shapes = [out for out in (shapes if isinstance(shapes, tuple) else (shapes,)) if out.is_floating_point()]
    upstreams = [draw(*out.shape, seed=90 + index, dtype=inputs[0].dtype) for index, out in enumerate(shapes)]
    actual = results(op, inputs, upstreams)
    expected = results(twin, [x.double() for x in inputs], [x.double() for x in upstreams])
    allowed = [ratios] * len(actual) if isinstance(ratios, float) else ratios
    for got, wanted, many in zip(actual, expected, allowed, strict=True):
        ratio = many * (1 + 4 / math.sqrt(got.numel()))  # the roundings of few values do not average out
        assert_close(got, wanted, ratio=ratio, dtype=inputs[0].dtype)
        for wrong in (one_lost(got), got.double() * (1 + 2 * ratio)):
            with pytest.raises(AssertionError, match="error ratio"):
                assert_close(wrong, wanted, ratio=ratio, dtype=wrong.dtype)


def one_lost(x: Tensor) -> Tensor:
    """x with a zero in place of the value nearest to its RMS: a middling one, no outlier."""
    flat = x.double().flatten()
    typical = flat.square().mean().sqrt()
    flat[(flat.abs() - typical).abs().argmin()] = 0
    return flat.view(x.shape)
