"""RMSNorm, and the residual addition fused with it.

    h = x + residual                    (the fused op alone)
    y = h / rms(h) * weight             rms(h) = sqrt(mean(h^2) + eps)
    dh = (g - h^ mean(g h^)) / rms(h)   g = dy weight, h^ = h / rms(h)
    dweight = sum over rows of dy h^

One row is read once: forward keeps only 1 / rms(h), four bytes a row. The backward's programs each walk over many rows
and leave one partial sum of dweight apiece, so that no atomics make its order, and so its digits, a matter of chance.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyllama.kernels import reference, target
from tinyllama.kernels.target import Target

WIDEST = 32768
"""Widths past this do not fit one program's registers."""


@triton.jit
def _forward_kernel(
    p_x, p_residual, p_weight, p_y, p_sum, p_rstd, n_rows, stride_x, stride_residual, eps,
    WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    o_row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_col = tl.arange(0, BLOCK_WIDTH)
    m_row = o_row < n_rows
    m = m_row[:, None] & (o_col < WIDTH)[None, :]
    o_dense = o_row[:, None] * WIDTH + o_col[None, :]

    b_h = tl.load(p_x + o_row[:, None] * stride_x + o_col[None, :], mask=m, other=0.0).to(tl.float32)
    if ADD:
        b_r = tl.load(p_residual + o_row[:, None] * stride_residual + o_col[None, :], mask=m, other=0.0)
        # the norm is of the sum as it is kept, rounded
        b_rounded = (b_h + b_r.to(tl.float32)).to(p_sum.dtype.element_ty)
        tl.store(p_sum + o_dense, b_rounded, mask=m)
        b_h = b_rounded.to(tl.float32)
    b_rstd = tl.rsqrt(tl.sum(b_h * b_h, axis=1) / WIDTH + eps)
    tl.store(p_rstd + o_row, b_rstd, mask=m_row)
    b_w = tl.load(p_weight + o_col, mask=o_col < WIDTH, other=0.0).to(tl.float32)
    b_y = b_h * b_rstd[:, None] * b_w[None, :]
    tl.store(p_y + o_dense, b_y.to(p_y.dtype.element_ty), mask=m)


@triton.jit
def _backward_kernel(
    p_dy, p_dsum, p_h, p_weight, p_rstd, p_dh, p_dweight, n_rows, stride_dy, stride_dsum, stride_h,
    WIDTH: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    o_col = tl.arange(0, BLOCK_WIDTH)
    m_col = o_col < WIDTH
    b_w = tl.load(p_weight + o_col, mask=m_col, other=0.0).to(tl.float32)
    b_dw = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), dtype=tl.float32)
    for i in range(tl.program_id(0), tl.cdiv(n_rows, BLOCK_ROWS), tl.num_programs(0)):
        o_row = tl.cast(i, tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        m_row = o_row < n_rows
        m = m_row[:, None] & m_col[None, :]
        b_dy = tl.load(p_dy + o_row[:, None] * stride_dy + o_col[None, :], mask=m, other=0.0).to(tl.float32)
        b_h = tl.load(p_h + o_row[:, None] * stride_h + o_col[None, :], mask=m, other=0.0).to(tl.float32)
        b_rstd = tl.load(p_rstd + o_row, mask=m_row, other=0.0)
        b_unit = b_h * b_rstd[:, None]
        b_dw += b_dy * b_unit
        b_g = b_dy * b_w[None, :]
        b_mean = tl.sum(b_g * b_unit, axis=1) / WIDTH
        b_dh = (b_g - b_unit * b_mean[:, None]) * b_rstd[:, None]
        if ADD:
            b_dh += tl.load(p_dsum + o_row[:, None] * stride_dsum + o_col[None, :], mask=m, other=0.0).to(tl.float32)
        tl.store(p_dh + o_row[:, None] * WIDTH + o_col[None, :], b_dh.to(p_dh.dtype.element_ty), mask=m)
    tl.store(p_dweight + tl.program_id(0) * WIDTH + o_col, tl.sum(b_dw, axis=0), mask=m_col)


class Launch(NamedTuple):
    """How a kernel is started."""

    programs: int
    block_rows: int
    block_width: int
    num_warps: int


def launch(n_rows: int, width: int, *, on: Target, backward: bool) -> Launch:
    """Tiles of 4,096 values; backward, of 2,048, and four programs for each multiprocessor share all rows."""
    if width > WIDEST:
        raise ValueError(f"RMSNorm of rows of {width:,}: the kernel takes up to {WIDEST:,}")
    block_width = triton.next_power_of_2(width)
    block_rows = max(1, (2048 if backward else 4096) // block_width)
    num_warps = min(16, max(4, block_rows * block_width // (256 if backward else 512)))
    blocks = triton.cdiv(n_rows, block_rows)
    return Launch(min(blocks, 4 * on.multiprocessors) if backward else blocks, block_rows, block_width, num_warps)


def _forward(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """y, the sum (x itself without a residual), 1 / rms."""
    flat = target.rows(x)
    other = flat if residual is None else target.rows(residual)
    y, rstd = flat.new_empty(flat.shape), flat.new_empty(len(flat), dtype=torch.float32)
    total = flat if residual is None else flat.new_empty(flat.shape)
    how = launch(*flat.shape, on=target.of(x.device), backward=False)
    _forward_kernel[(how.programs,)](
        flat, other, weight, y, total, rstd, len(flat), flat.stride(0), other.stride(0), eps,
        WIDTH=flat.shape[1], BLOCK_ROWS=how.block_rows, BLOCK_WIDTH=how.block_width, ADD=residual is not None,
        num_warps=how.num_warps,
    )  # fmt: skip
    return y.view(x.shape), total.view(x.shape), rstd


def _backward(dy: Tensor, dsum: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """dh and dweight."""
    flat_dy, flat_h = target.rows(dy), target.rows(h)
    other = flat_dy if dsum is None else target.rows(dsum)
    how = launch(*flat_h.shape, on=target.of(h.device), backward=True)
    dh, partial = flat_h.new_empty(flat_h.shape), flat_h.new_empty(how.programs, flat_h.shape[1], dtype=torch.float32)
    _backward_kernel[(how.programs,)](
        flat_dy, other, flat_h, weight, rstd, dh, partial,
        len(flat_h), flat_dy.stride(0), other.stride(0), flat_h.stride(0),
        WIDTH=flat_h.shape[1], BLOCK_ROWS=how.block_rows, BLOCK_WIDTH=how.block_width, ADD=dsum is not None,
        num_warps=how.num_warps,
    )  # fmt: skip
    return dh.view(h.shape), partial.sum(0).to(weight.dtype)


@torch.library.custom_op("tinyllama::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, _, rstd = _forward(x, None, weight, eps)
    return y, rstd


@torch.library.custom_op("tinyllama::add_rms_norm", mutates_args=())
def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _forward(x, residual, weight, eps)


_rms_norm_backward = torch.library.custom_op("tinyllama::rms_norm_backward", _backward, mutates_args=())


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


@_add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape), x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)


@_rms_norm_backward.register_fake
def _(dy: Tensor, dsum: Tensor | None, h: Tensor, weight: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    return h.new_empty(h.shape), weight.new_empty(weight.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *xs, weight, _ = inputs
    *_, h, rstd = output if len(xs) == 2 else (xs[0], output[1])
    ctx.save_for_backward(h, weight, rstd)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    h, weight, rstd = ctx.saved_tensors
    fused = len(others) == 2
    dsum = others[0] if fused else None
    if dy is None:  # the norm was not used
        dh, dweight = dsum, None
    else:
        dh, dweight = torch.ops.tinyllama.rms_norm_backward(dy, dsum, h, weight, rstd)
    return (dh, dh, dweight, None) if fused else (dh, dweight, None)


_rms_norm.register_autograd(_gradients, setup_context=_save)
_add_rms_norm.register_autograd(_gradients, setup_context=_save)


def rms_norm(x_btd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm` on Triton."""
    if not target.takes(x_btd):
        return reference.rms_norm(x_btd, weight_d, eps)
    y: Tensor = _rms_norm(x_btd, weight_d, eps)[0]
    return y


def add_rms_norm(x_btd: Tensor, residual_btd: Tensor, weight_d: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`reference.add_rms_norm` on Triton."""
    if not target.takes(x_btd):
        return reference.add_rms_norm(x_btd, residual_btd, weight_d, eps)
    y, total, _ = _add_rms_norm(x_btd, residual_btd, weight_d, eps)
    return y, total
