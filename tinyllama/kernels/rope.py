"""Rotary position embedding on the packed projection, which it splits into queries, keys and values on the way.

    first' = first cos - second sin      second' = second cos + first sin

Every value is read once and written once. The backward is the inverse rotation, and writes the packed gradient that
the projection's own backward reads, so that neither way a copy is made. A row is one head at one position.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyllama.kernels import reference, target


@triton.jit
def _rows(p_cos, p_sin, n_rows, t, stride_table, TURNED, N: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
          BLOCK_HALF: tl.constexpr):  # fmt: skip
    """Rows of this program: their number, batch, position, head, columns, mask, whether they turn, cos and sin."""
    o_row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    o_c = tl.arange(0, BLOCK_HALF)[None, :]
    i_t, i_n = (o_row // N % t)[:, None], (o_row % N)[:, None]
    m = (o_row < n_rows)[:, None] & (o_c < HALF)
    m_turned = m & (i_n < TURNED)
    b_cos = tl.load(p_cos + i_t * stride_table + o_c, mask=m_turned, other=1.0)
    b_sin = tl.load(p_sin + i_t * stride_table + o_c, mask=m_turned, other=0.0)
    return o_row[:, None], (o_row // N // t)[:, None], i_t, i_n, o_c, m, m_turned, b_cos, b_sin


@triton.jit
def _forward_kernel(
    p_x, p_q, p_k, p_v, p_cos, p_sin, n_rows, t, stride_xb, stride_xt, stride_xn, stride_table,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    n: tl.constexpr = HEADS + 2 * KV_HEADS
    o_row, i_b, i_t, i_n, o_c, m, m_turned, b_cos, b_sin = _rows(
        p_cos, p_sin, n_rows, t, stride_table, HEADS + KV_HEADS, n, HALF, BLOCK, BLOCK_HALF
    )
    o_x = i_b * stride_xb + i_t * stride_xt + i_n * stride_xn + o_c
    b_1, b_2 = tl.load(p_x + o_x, mask=m, other=0.0), tl.load(p_x + o_x + HALF, mask=m, other=0.0)
    b_w1, b_w2 = b_1.to(tl.float32), b_2.to(tl.float32)
    b_y1 = tl.where(m_turned, (b_w1 * b_cos - b_w2 * b_sin).to(b_1.dtype), b_1)
    b_y2 = tl.where(m_turned, (b_w2 * b_cos + b_w1 * b_sin).to(b_2.dtype), b_2)
    o_token = o_row // n
    o_q = (o_token * HEADS + i_n) * (2 * HALF) + o_c
    o_k = (o_token * KV_HEADS + i_n - HEADS) * (2 * HALF) + o_c
    o_v = o_k - KV_HEADS * 2 * HALF
    m_q, m_v = m & (i_n < HEADS), m & (i_n >= HEADS + KV_HEADS)
    m_k = m_turned & (i_n >= HEADS)
    tl.store(p_q + o_q, b_y1, mask=m_q)
    tl.store(p_q + o_q + HALF, b_y2, mask=m_q)
    tl.store(p_k + o_k, b_y1, mask=m_k)
    tl.store(p_k + o_k + HALF, b_y2, mask=m_k)
    tl.store(p_v + o_v, b_y1, mask=m_v)
    tl.store(p_v + o_v + HALF, b_y2, mask=m_v)


@triton.jit
def _backward_kernel(
    p_dq, p_dk, p_dv, p_dx, p_cos, p_sin, n_rows, t, stride_qb, stride_qt, stride_qh,
    stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, stride_table,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    n: tl.constexpr = HEADS + 2 * KV_HEADS
    o_row, i_b, i_t, i_n, o_c, m, m_turned, b_cos, b_sin = _rows(
        p_cos, p_sin, n_rows, t, stride_table, HEADS + KV_HEADS, n, HALF, BLOCK, BLOCK_HALF
    )
    m_q, m_v = m & (i_n < HEADS), m & (i_n >= HEADS + KV_HEADS)
    m_k = m_turned & (i_n >= HEADS)
    o_q = i_b * stride_qb + i_t * stride_qt + i_n * stride_qh + o_c
    o_k = i_b * stride_kb + i_t * stride_kt + (i_n - HEADS) * stride_kh + o_c
    o_v = i_b * stride_vb + i_t * stride_vt + (i_n - HEADS - KV_HEADS) * stride_vh + o_c
    # each row lies in one of the three
    b_1 = tl.load(p_dq + o_q, m_q, 0.0) + tl.load(p_dk + o_k, m_k, 0.0) + tl.load(p_dv + o_v, m_v, 0.0)
    b_2 = tl.load(p_dq + o_q + HALF, m_q, 0.0) + tl.load(p_dk + o_k + HALF, m_k, 0.0)
    b_2 += tl.load(p_dv + o_v + HALF, m_v, 0.0)
    b_w1, b_w2 = b_1.to(tl.float32), b_2.to(tl.float32)
    b_y1 = tl.where(m_turned, (b_w1 * b_cos + b_w2 * b_sin).to(b_1.dtype), b_1)
    b_y2 = tl.where(m_turned, (b_w2 * b_cos - b_w1 * b_sin).to(b_2.dtype), b_2)
    o_x = o_row * (2 * HALF) + o_c
    tl.store(p_dx + o_x, b_y1, mask=m)
    tl.store(p_dx + o_x + HALF, b_y2, mask=m)


class Launch(NamedTuple):
    """How a kernel is started."""

    programs: int
    block: int
    block_half: int


def launch(n_rows: int, head_dim: int) -> Launch:
    """Tiles of about 4,096 values, whole heads."""
    block_half = triton.next_power_of_2(head_dim // 2)
    block = max(1, 2048 // block_half)
    return Launch(triton.cdiv(n_rows, block), block, block_half)


def _tables(cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """The two with the same strides, the last of them 1."""
    return (cos, sin) if cos.stride() == sin.stride() and cos.stride(1) == 1 else (cos.contiguous(), sin.contiguous())


def _forward(qkv: Tensor, cos: Tensor, sin: Tensor, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    qkv, (cos, sin) = target.dense(qkv), _tables(cos, sin)
    q, k, v = _empty(qkv, n_kv_heads)
    b, t, n, c = qkv.shape
    how = launch(b * t * n, c)
    _forward_kernel[(how.programs,)](
        qkv, q, k, v, cos, sin, b * t * n, t, *qkv.stride()[:3], cos.stride(0),
        HEADS=q.shape[2], KV_HEADS=n_kv_heads, HALF=c // 2, BLOCK=how.block, BLOCK_HALF=how.block_half,
    )  # fmt: skip
    return q, k, v


def _backward(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    (dq, dk, dv), (cos, sin) = (target.dense(x) for x in (dq, dk, dv)), _tables(cos, sin)
    dqkv = _empty_packed(dq, dk)
    b, t, n, c = dqkv.shape
    how = launch(b * t * n, c)
    _backward_kernel[(how.programs,)](
        dq, dk, dv, dqkv, cos, sin, b * t * n, t, *dq.stride()[:3], *dk.stride()[:3], *dv.stride()[:3], cos.stride(0),
        HEADS=dq.shape[2], KV_HEADS=dk.shape[2], HALF=c // 2, BLOCK=how.block, BLOCK_HALF=how.block_half,
    )  # fmt: skip
    return dqkv


_rope = torch.library.custom_op("tinyllama::rope", _forward, mutates_args=())
_rope_backward = torch.library.custom_op("tinyllama::rope_backward", _backward, mutates_args=())


@_rope.register_fake
def _(qkv: Tensor, cos: Tensor, sin: Tensor, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(qkv, n_kv_heads)


@_rope_backward.register_fake
def _(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _empty_packed(dq, dk)


def _empty(qkv: Tensor, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    b, t, n, c = qkv.shape
    q, k, v = (qkv.new_empty(b, t, heads, c) for heads in (n - 2 * n_kv_heads, n_kv_heads, n_kv_heads))
    return q, k, v


def _empty_packed(dq: Tensor, dk: Tensor) -> Tensor:
    b, t, h, c = dq.shape
    return dq.new_empty(b, t, h + 2 * dk.shape[2], c)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[1:3])


def _gradients(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.tinyllama.rope_backward(dq, dk, dv, *ctx.saved_tensors), None, None, None


_rope.register_autograd(_gradients, setup_context=_save)


def rope(qkv_btnc: Tensor, cos_tc: Tensor, sin_tc: Tensor, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.rope` on Triton; the three are tensors of their own."""
    if not target.takes(qkv_btnc):
        return reference.rope(qkv_btnc, cos_tc, sin_tc, n_kv_heads)
    q, k, v = _rope(qkv_btnc, cos_tc, sin_tc, n_kv_heads)
    return q, k, v
