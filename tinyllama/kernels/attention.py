"""Causal grouped-query attention that never holds the scores (FlashAttention-2, arXiv 2307.08691): the forward.

    s = q k^T / sqrt(c)      p = softmax(s) over the keys that the query sees      o = p v

Query i sees keys starts[i] to i, its document so far; without documents, keys 0 to i. A program owns a tile of queries
of one head, walks over the keys with a running maximum and sum, and keeps of them only their logarithm. Key-value heads
are read where they lie, once for each of the query heads that share them. Logarithms and exponentials are of base 2,
which is what the hardware has.

Shapes are as in `reference`, with m for tiles of queries and n for tiles of keys.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyllama.kernels import attention_backward, sdpa, target
from tinyllama.kernels.target import Target

HEAD_SIZES = (16, 32, 64, 128)
"""Head sizes that the kernels take; others are PyTorch's."""


@triton.jit
def _gather(
    b_out, b_sum, b_max, b_q, p_k, p_v, stride_k, stride_v, o_m, b_start, scale, lo, hi, t,
    C: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """The running output, sum and maximum past keys lo to hi."""
    o_c = tl.arange(0, C)
    for n in range(lo, hi, BLOCK_N):
        o_n = n + tl.arange(0, BLOCK_N)
        if MASKED:
            m_n = (o_n < t)[:, None]
            b_k = tl.load(p_k + o_n[:, None] * stride_k + o_c[None, :], mask=m_n, other=0.0)
            b_v = tl.load(p_v + o_n[:, None] * stride_v + o_c[None, :], mask=m_n, other=0.0)
        else:
            b_k = tl.load(p_k + o_n[:, None] * stride_k + o_c[None, :])
            b_v = tl.load(p_v + o_n[:, None] * stride_v + o_c[None, :])
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="tf32x3")
        if MASKED:
            m = o_n[None, :] <= o_m[:, None]
            if DOCUMENTS:
                m = m & (o_n[None, :] >= b_start[:, None])
            b_s = tl.where(m, b_s, float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_s, axis=1) * scale)
        b_p = tl.exp2(b_s * scale - b_new[:, None])
        b_shrink = tl.exp2(b_max - b_new)
        b_sum = b_sum * b_shrink + tl.sum(b_p, axis=1)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_shrink[:, None], input_precision="tf32x3")
        b_max = b_new
    return b_out, b_sum, b_max


@triton.jit
def _forward_kernel(
    p_q, p_k, p_v, p_starts, p_out, p_lse, t,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, scale,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    # the tiles that see most keys first, so that the last to finish are short
    first = (tl.num_programs(0) - 1 - tl.program_id(0)) * BLOCK_M
    i_b = (tl.program_id(1) // HEADS).to(tl.int64)
    i_h = tl.program_id(1) % HEADS
    i_k = i_h // GROUPS
    o_m, o_c = first + tl.arange(0, BLOCK_M), tl.arange(0, C)
    m_m = o_m < t
    p_k += i_b * stride_kb + i_k * stride_kh
    p_v += i_b * stride_vb + i_k * stride_vh
    o_q = i_b * stride_qb + i_h * stride_qh + o_m[:, None] * stride_qt + o_c[None, :]
    b_q = tl.load(p_q + o_q, mask=m_m[:, None], other=0.0)

    b_out = tl.zeros((BLOCK_M, C), dtype=tl.float32)
    b_sum = tl.zeros((BLOCK_M,), dtype=tl.float32)
    # finite, so that a row all of whose keys are masked so far stays without NaN
    b_max = tl.full((BLOCK_M,), -1e30, dtype=tl.float32)
    b_start, full = o_m, 0
    if DOCUMENTS:
        p_starts += i_b * t
        b_start = tl.load(p_starts + o_m, mask=m_m, other=0)
        # before `lo` no query of the tile sees a key; from `full` on and before the tile, every one sees every key
        lo = tl.load(p_starts + first) // BLOCK_N * BLOCK_N
        full = tl.cdiv(tl.load(p_starts + tl.minimum(first + BLOCK_M, t) - 1), BLOCK_N) * BLOCK_N
        full = tl.minimum(full, first)
        b_out, b_sum, b_max = _gather(
            b_out, b_sum, b_max, b_q, p_k, p_v, stride_kt, stride_vt, o_m, b_start, scale, lo, full, t,
            C, BLOCK_N, True, True,
        )  # fmt: skip
    b_out, b_sum, b_max = _gather(
        b_out, b_sum, b_max, b_q, p_k, p_v, stride_kt, stride_vt, o_m, b_start, scale, full, first, t,
        C, BLOCK_N, False, DOCUMENTS,
    )  # fmt: skip
    b_out, b_sum, b_max = _gather(
        b_out, b_sum, b_max, b_q, p_k, p_v, stride_kt, stride_vt, o_m, b_start, scale,
        first, tl.minimum(first + BLOCK_M, t), t, C, BLOCK_N, True, DOCUMENTS,
    )  # fmt: skip

    o_row = (i_b * t + o_m) * HEADS + i_h
    tl.store(
        p_out + o_row[:, None] * C + o_c[None, :], (b_out / b_sum[:, None]).to(p_out.dtype.element_ty), m_m[:, None]
    )
    tl.store(p_lse + (i_b * HEADS + i_h) * t + o_m, b_max + tl.log2(b_sum), m_m)


class Launch(NamedTuple):
    """How a kernel is started."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def launch(head_dim: int, dtype: torch.dtype, *, on: Target) -> Launch:
    """The largest tiles that spill no registers."""
    if dtype == torch.float32 or on.shared_bytes < 100_000:
        return Launch(32, 32, 4, 2)
    return Launch(128, 64, 8, 3 if on.arch >= 90 else 2)


def _forward(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output and each query's log2 of the sum of its exponentials, [b, h, t]."""
    b, t, h, c = q.shape
    q, k, v = (target.dense(x) for x in (q, k, v))
    out, lse = q.new_empty(q.shape), q.new_empty(b, h, t, dtype=torch.float32)
    how = launch(c, q.dtype, on=target.of(q.device))
    _forward_kernel[(triton.cdiv(t, how.block_m), b * h)](
        q, k, v, q if starts is None else starts, out, lse, t,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], math.log2(math.e) / math.sqrt(c),
        HEADS=h, GROUPS=h // k.shape[2], C=c, BLOCK_M=how.block_m, BLOCK_N=how.block_n, DOCUMENTS=starts is not None,
        num_warps=how.num_warps, num_stages=how.num_stages,
    )  # fmt: skip
    return out, lse


_attention = torch.library.custom_op("tinyllama::attention", _forward, mutates_args=())


@_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(b, h, t, dtype=torch.float32)


_attention_backward = torch.library.custom_op(
    "tinyllama::attention_backward", attention_backward.backward, mutates_args=()
)


@_attention_backward.register_fake
def _(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _gradients(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return (*torch.ops.tinyllama.attention_backward(dout, *ctx.saved_tensors), None)


_attention.register_autograd(_gradients, setup_context=_save)


def attention(q_bthc: Tensor, k_bskc: Tensor, v_bskc: Tensor, starts_bt: Tensor | None = None) -> Tensor:
    """`reference.attention` on Triton; with a cache, and for head sizes other than HEAD_SIZES, PyTorch's.

    starts is then int32, and does not fall from one position to the next.
    """
    if not target.takes(q_bthc) or q_bthc.shape[1] != k_bskc.shape[1] or q_bthc.shape[3] not in HEAD_SIZES:
        return sdpa.attention(q_bthc, k_bskc, v_bskc, starts_bt)
    starts = None if starts_bt is None else starts_bt.to(torch.int32).contiguous()
    out: Tensor = _attention(q_bthc, k_bskc, v_bskc, starts)[0]
    return out
