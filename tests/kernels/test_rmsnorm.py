"""RMSNorm's kernels, interpreted, against the reference in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.kernels import compare
from tests.kernels.twins import DEVICE, DTYPES, Op, assert_twins, draw, one_rounding
from tinyllama.kernels import reference, rmsnorm
from tinyllama.kernels.target import INTERPRETER

EPS = 1e-5
# one row, widths beside powers of two, more rows than the interpreter's programs take at once
SHAPES = [(1, 3), (1, 64), (3, 5, 33), (70, 128), (2, 3, 100), (2, 2049)]


def norm_inputs(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    sizes = torch.logspace(-2, 2, shape[0], dtype=torch.float64).view(-1, *[1] * (len(shape) - 1))
    return (compare.draw(*shape) * sizes).to(DEVICE, dtype), draw(shape[-1], seed=1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_is_its_twin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = norm_inputs(shape, dtype)

    def op(x: Tensor, weight: Tensor) -> Tensor:
        return rmsnorm.rms_norm(x, weight, EPS)

    def twin(x: Tensor, weight: Tensor) -> Tensor:
        return reference.rms_norm(x, weight, EPS)

    assert_twins(op, twin, [x, weight], ratios=one_rounding(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_fused_addition_is_its_twin(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = norm_inputs(shape, dtype)
    residual = draw(*shape, seed=2, dtype=dtype)

    def op(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return rmsnorm.add_rms_norm(x, residual, weight, EPS)

    def twin(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        # the sum is rounded before it is normalised, and fp64 would not
        total = Rounded.apply(x + residual, dtype)
        return reference.rms_norm(total, weight, EPS), total

    assert_twins(op, twin, [x, residual, weight], ratios=one_rounding(dtype))


class Rounded(torch.autograd.Function):
    """Values rounded to a dtype and kept in their own; gradients go through."""

    @staticmethod
    def forward(ctx: object, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return gradient, None


@pytest.mark.parametrize("unused", [0, 1])
def test_an_unused_output_has_no_gradient(unused: int) -> None:
    inputs = [draw(3, 40, seed=seed, dtype=torch.float32) for seed in (0, 1)]
    weight = draw(40, seed=2, dtype=torch.float32)

    def used(op: Callable[..., tuple[Tensor, Tensor]]) -> Op:
        return lambda x, residual: op(x, residual, weight.to(x.dtype), EPS)[1 - unused]

    assert_twins(used(rmsnorm.add_rms_norm), used(reference.add_rms_norm), inputs, ratios=one_rounding(torch.float32))


def test_rows_may_lie_apart_and_values_too() -> None:
    weight = draw(24, seed=1, dtype=torch.float32)
    apart, across = draw(9, 60, dtype=torch.float32)[:, 7:31], draw(24, 9, dtype=torch.float32).T
    for x in (
        apart,
        across,
        draw(2, 5, 9, 24, dtype=torch.float32).transpose(1, 2),
        draw(1, 24, dtype=torch.float32).expand(9, 24),
    ):
        out = rmsnorm.rms_norm(x, weight, EPS)
        assert out.is_contiguous()
        assert torch.equal(out, rmsnorm.rms_norm(x.contiguous(), weight, EPS))
        # an upstream gradient that lies as x does
        gradients = [
            torch.autograd.grad(rmsnorm.add_rms_norm(leaf, leaf, weight, EPS), leaf, (up, up))[0]
            for leaf, up in ((x.detach().requires_grad_(), x), (x.contiguous().requires_grad_(), x.contiguous()))
        ]
        assert torch.equal(*gradients)


def test_no_rows_are_no_work() -> None:
    x, weight = (torch.ones(*shape, device=DEVICE, requires_grad=True) for shape in ((0, 16), (16,)))
    out = rmsnorm.rms_norm(x, weight, EPS)
    dx, dweight = torch.autograd.grad(out, (x, weight), out)
    assert out.shape == dx.shape == x.shape
    assert not dweight.any()


def test_launches_cover_every_row() -> None:
    for n_rows in (1, 7, 16384):
        for width in (1, 64, 768, 2048, 2049):
            how = rmsnorm.launch(n_rows, width, on=INTERPRETER, backward=False)
            assert how.programs * how.block_rows >= n_rows
            assert how.block_width >= width
    with pytest.raises(ValueError, match="rows of 40,000: the kernel takes up to 32,768"):
        rmsnorm.launch(1, 40_000, on=INTERPRETER, backward=False)


def test_the_library_ops_are_well_formed() -> None:
    x, residual = (draw(4, 24, seed=seed, dtype=torch.float32).requires_grad_() for seed in (0, 1))
    weight = draw(24, seed=2, dtype=torch.float32).requires_grad_()
    torch.library.opcheck(torch.ops.tinyllama.rms_norm, (x, weight, EPS))
    torch.library.opcheck(torch.ops.tinyllama.add_rms_norm, (x, residual, weight, EPS))
