"""SwiGLU on a packed projection.

    y = gate s up      s = sigmoid(gate)
    dup = dy gate s    dgate = dy up s (1 + gate (1 - s))

Nothing is kept but the projection itself: the backward works s out again, and writes both gradients side by side, as
the projection's own backward reads them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyllama.kernels import reference, target


@triton.jit
def _forward_kernel(p_x, p_y, stride_x, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = o_f < WIDTH
    b_gate = tl.load(p_x + i_row * stride_x + o_f, mask=m, other=0.0).to(tl.float32)
    b_up = tl.load(p_x + i_row * stride_x + WIDTH + o_f, mask=m, other=0.0).to(tl.float32)
    b_y = b_gate * tl.sigmoid(b_gate) * b_up
    tl.store(p_y + i_row * WIDTH + o_f, b_y.to(p_y.dtype.element_ty), mask=m)


@triton.jit
def _backward_kernel(p_dy, p_x, p_dx, stride_dy, stride_x, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    i_row = tl.program_id(0).to(tl.int64)
    o_f = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m = o_f < WIDTH
    b_gate = tl.load(p_x + i_row * stride_x + o_f, mask=m, other=0.0).to(tl.float32)
    b_up = tl.load(p_x + i_row * stride_x + WIDTH + o_f, mask=m, other=0.0).to(tl.float32)
    b_dy = tl.load(p_dy + i_row * stride_dy + o_f, mask=m, other=0.0).to(tl.float32)
    b_s = tl.sigmoid(b_gate)
    b_dgate = b_dy * b_up * b_s * (1 + b_gate * (1 - b_s))
    b_dup = b_dy * b_gate * b_s
    p_dx += i_row * 2 * WIDTH
    tl.store(p_dx + o_f, b_dgate.to(p_dx.dtype.element_ty), mask=m)
    tl.store(p_dx + WIDTH + o_f, b_dup.to(p_dx.dtype.element_ty), mask=m)


class Launch(NamedTuple):
    """How a kernel is started."""

    grid: tuple[int, int]
    block: int


def launch(n_rows: int, width: int) -> Launch:
    """Pieces of rows of up to 2,048 values."""
    block = min(2048, triton.next_power_of_2(width))
    return Launch((n_rows, triton.cdiv(width, block)), block)


def _forward(x: Tensor) -> Tensor:
    flat, y = target.rows(x), _empty(x)
    how = launch(len(flat), y.shape[-1])
    if len(flat):
        _forward_kernel[how.grid](flat, y, flat.stride(0), WIDTH=y.shape[-1], BLOCK=how.block)
    return y


def _backward(dy: Tensor, x: Tensor) -> Tensor:
    flat_dy, flat, dx = target.rows(dy), target.rows(x), x.new_empty(x.shape)
    how = launch(len(flat), dy.shape[-1])
    if len(flat):
        _backward_kernel[how.grid](
            flat_dy, flat, dx, flat_dy.stride(0), flat.stride(0), WIDTH=dy.shape[-1], BLOCK=how.block
        )
    return dx


def _empty(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


_swiglu = torch.library.custom_op("tinyllama::swiglu", _forward, mutates_args=())
_swiglu_backward = torch.library.custom_op("tinyllama::swiglu_backward", _backward, mutates_args=())


@_swiglu.register_fake
def _(x: Tensor) -> Tensor:
    return _empty(x)


@_swiglu_backward.register_fake
def _(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> Tensor:
    dx: Tensor = torch.ops.tinyllama.swiglu_backward(dy, *ctx.saved_tensors)
    return dx


_swiglu.register_autograd(_gradients, setup_context=_save)


def swiglu(gate_up_bt2f: Tensor) -> Tensor:
    """`reference.swiglu` on Triton."""
    if not target.takes(gate_up_bt2f):
        return reference.swiglu(gate_up_bt2f)
    y: Tensor = _swiglu(gate_up_bt2f)
    return y
