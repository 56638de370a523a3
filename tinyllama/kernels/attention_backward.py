"""The backward of `attention`, in three kernels.

    delta = rowsum(do o)     p = exp(s - lse)     ds = p (do v^T - delta)
    dv = p^T do              dk = ds^T q / sqrt(c)                        dq = ds k / sqrt(c)

p is worked out again from the queries, the keys and the kept logarithms. A tile of keys walks over the queries that see
it, of all the heads that share it, so that dk and dv are summed in registers, without atomics and so always in the same
order; a tile of queries then walks over its keys for dq.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyllama.kernels import target
from tinyllama.kernels.target import Target


@triton.jit
def _delta_kernel(
    p_out, p_dout, p_delta, t, stride_db, stride_dt, stride_dh,
    HEADS: tl.constexpr, C: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    i_b = (tl.program_id(1) // HEADS).to(tl.int64)
    i_h = tl.program_id(1) % HEADS
    o_m, o_c = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, C)
    m_m = (o_m < t)[:, None]
    o_row = ((i_b * t + o_m) * HEADS + i_h)[:, None]
    b_out = tl.load(p_out + o_row * C + o_c[None, :], mask=m_m, other=0.0).to(tl.float32)
    o_d = i_b * stride_db + i_h * stride_dh + o_m[:, None] * stride_dt + o_c[None, :]
    b_dout = tl.load(p_dout + o_d, mask=m_m, other=0.0).to(tl.float32)
    tl.store(p_delta + (i_b * HEADS + i_h) * t + o_m, tl.sum(b_out * b_dout, axis=1), o_m < t)


@triton.jit
def _walk_queries(
    b_dk, b_dv, b_k, b_v, p_q, p_dout, p_lse, p_delta, p_starts, stride_q, stride_d, o_n, scale, lo, hi, t,
    C: tl.constexpr, BLOCK_M: tl.constexpr, EVEN: tl.constexpr, MASKED: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """dk and dv past the queries lo to hi of one head."""
    o_c = tl.arange(0, C)
    for m in range(lo, hi, BLOCK_M):
        o_m = m + tl.arange(0, BLOCK_M)
        if EVEN:
            b_q = tl.load(p_q + o_m[:, None] * stride_q + o_c[None, :])
            b_dout = tl.load(p_dout + o_m[:, None] * stride_d + o_c[None, :])
            b_lse, b_delta = tl.load(p_lse + o_m), tl.load(p_delta + o_m)
        else:
            m_m = o_m < t
            b_q = tl.load(p_q + o_m[:, None] * stride_q + o_c[None, :], mask=m_m[:, None], other=0.0)
            b_dout = tl.load(p_dout + o_m[:, None] * stride_d + o_c[None, :], mask=m_m[:, None], other=0.0)
            b_lse = tl.load(p_lse + o_m, mask=m_m, other=0.0)
            b_delta = tl.load(p_delta + o_m, mask=m_m, other=0.0)
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision="tf32x3")
        if MASKED:
            m_nm = o_n[:, None] <= o_m[None, :]
            if DOCUMENTS:
                b_start = tl.load(p_starts + o_m, mask=o_m < t, other=0)
                m_nm = m_nm & (o_n[:, None] >= b_start[None, :])
            b_s = tl.where(m_nm, b_s, float("-inf"))
        b_p = tl.exp2(b_s * scale - b_lse[None, :])
        b_dv = tl.dot(b_p.to(b_dout.dtype), b_dout, b_dv, input_precision="tf32x3")
        b_ds = b_p * (tl.dot(b_v, tl.trans(b_dout), input_precision="tf32x3") - b_delta[None, :])
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="tf32x3")
    return b_dk, b_dv


@triton.jit
def _keys_kernel(
    p_q, p_k, p_v, p_dout, p_lse, p_delta, p_starts, p_ends, p_dk, p_dv, t,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, scale, softmax_scale,
    HEADS: tl.constexpr, GROUPS: tl.constexpr, C: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, EVEN: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    n_kv_heads: tl.constexpr = HEADS // GROUPS
    i_b = (tl.program_id(1) // n_kv_heads).to(tl.int64)
    i_k = tl.program_id(1) % n_kv_heads
    first = tl.program_id(0) * BLOCK_N
    o_n, o_c = first + tl.arange(0, BLOCK_N), tl.arange(0, C)
    m_n = (o_n < t)[:, None]
    b_k = tl.load(p_k + i_b * stride_kb + i_k * stride_kh + o_n[:, None] * stride_kt + o_c[None, :], m_n, 0.0)
    b_v = tl.load(p_v + i_b * stride_vb + i_k * stride_vh + o_n[:, None] * stride_vt + o_c[None, :], m_n, 0.0)
    b_dk = tl.zeros((BLOCK_N, C), dtype=tl.float32)
    b_dv = tl.zeros((BLOCK_N, C), dtype=tl.float32)

    past = tl.minimum(first + BLOCK_N, t)
    full, hi = t, t
    p_starts += i_b * t
    if DOCUMENTS:
        # queries before `full` see the first key and so, past the tile, all of them; from `hi` on none is seen
        full = tl.maximum(tl.load(p_ends + i_b * t + first) // BLOCK_M * BLOCK_M, past)
        hi = tl.load(p_ends + i_b * t + past - 1)
    for g in range(GROUPS):
        i_h = i_k * GROUPS + g
        p_qh = p_q + i_b * stride_qb + i_h * stride_qh
        p_dh = p_dout + i_b * stride_db + i_h * stride_dh
        o_h = (i_b * HEADS + i_h) * t
        b_dk, b_dv = _walk_queries(
            b_dk, b_dv, b_k, b_v, p_qh, p_dh, p_lse + o_h, p_delta + o_h, p_starts, stride_qt, stride_dt, o_n, scale,
            first, past, t, C, BLOCK_M, EVEN, True, DOCUMENTS,
        )  # fmt: skip
        b_dk, b_dv = _walk_queries(
            b_dk, b_dv, b_k, b_v, p_qh, p_dh, p_lse + o_h, p_delta + o_h, p_starts, stride_qt, stride_dt, o_n, scale,
            past, full, t, C, BLOCK_M, EVEN, False, DOCUMENTS,
        )  # fmt: skip
        if DOCUMENTS:
            b_dk, b_dv = _walk_queries(
                b_dk, b_dv, b_k, b_v, p_qh, p_dh, p_lse + o_h, p_delta + o_h, p_starts, stride_qt, stride_dt, o_n,
                scale, full, hi, t, C, BLOCK_M, EVEN, True, True,
            )  # fmt: skip
    o_row = ((i_b * t + o_n) * n_kv_heads + i_k)[:, None]
    tl.store(p_dk + o_row * C + o_c[None, :], (b_dk * softmax_scale).to(p_dk.dtype.element_ty), m_n)
    tl.store(p_dv + o_row * C + o_c[None, :], b_dv.to(p_dv.dtype.element_ty), m_n)


@triton.jit
def _walk_keys(
    b_dq, b_q, b_dout, b_lse, b_delta, p_k, p_v, stride_k, stride_v, o_m, b_start, scale, lo, hi, t,
    C: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, DOCUMENTS: tl.constexpr,
):  # fmt: skip
    """dq past the keys lo to hi."""
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
        b_p = tl.exp2(b_s * scale - b_lse[:, None])
        b_ds = b_p * (tl.dot(b_dout, tl.trans(b_v), input_precision="tf32x3") - b_delta[:, None])
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="tf32x3")
    return b_dq


@triton.jit
def _queries_kernel(
    p_q, p_k, p_v, p_dout, p_lse, p_delta, p_starts, p_dq, t,
    stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    stride_db, stride_dt, stride_dh, scale, softmax_scale,
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
    b_q = tl.load(p_q + i_b * stride_qb + i_h * stride_qh + o_m[:, None] * stride_qt + o_c[None, :], m_m[:, None], 0.0)
    b_dout = tl.load(
        p_dout + i_b * stride_db + i_h * stride_dh + o_m[:, None] * stride_dt + o_c[None, :], m_m[:, None], 0.0
    )
    o_h = (i_b * HEADS + i_h) * t
    b_lse = tl.load(p_lse + o_h + o_m, mask=m_m, other=0.0)
    b_delta = tl.load(p_delta + o_h + o_m, mask=m_m, other=0.0)
    b_dq = tl.zeros((BLOCK_M, C), dtype=tl.float32)
    b_start, full = o_m, 0
    if DOCUMENTS:
        # as in the forward
        p_starts += i_b * t
        b_start = tl.load(p_starts + o_m, mask=m_m, other=0)
        lo = tl.load(p_starts + first) // BLOCK_N * BLOCK_N
        full = tl.cdiv(tl.load(p_starts + tl.minimum(first + BLOCK_M, t) - 1), BLOCK_N) * BLOCK_N
        full = tl.minimum(full, first)
        b_dq = _walk_keys(
            b_dq, b_q, b_dout, b_lse, b_delta, p_k, p_v, stride_kt, stride_vt, o_m, b_start, scale, lo, full, t,
            C, BLOCK_N, True, True,
        )  # fmt: skip
    b_dq = _walk_keys(
        b_dq, b_q, b_dout, b_lse, b_delta, p_k, p_v, stride_kt, stride_vt, o_m, b_start, scale, full, first, t,
        C, BLOCK_N, False, DOCUMENTS,
    )  # fmt: skip
    b_dq = _walk_keys(
        b_dq, b_q, b_dout, b_lse, b_delta, p_k, p_v, stride_kt, stride_vt, o_m, b_start, scale,
        first, tl.minimum(first + BLOCK_M, t), t, C, BLOCK_N, True, DOCUMENTS,
    )  # fmt: skip
    o_row = ((i_b * t + o_m) * HEADS + i_h)[:, None]
    tl.store(p_dq + o_row * C + o_c[None, :], (b_dq * softmax_scale).to(p_dq.dtype.element_ty), m_m[:, None])


class Launch(NamedTuple):
    """How a walking kernel is started: the tile that stays, the tiles that walk past it."""

    stays: int
    walks: int
    num_warps: int
    num_stages: int


def launch(head_dim: int, dtype: torch.dtype, *, on: Target) -> tuple[Launch, Launch]:
    """For the tiles of keys and the tiles of queries; `stays` is a multiple of `walks`.

    Keys hold two accumulators, so less walks past them: these are the largest tiles that spill no registers.
    """
    if dtype == torch.float32 or on.shared_bytes < 100_000:
        return Launch(32, 16, 4, 1), Launch(32, 32, 8 if head_dim > 64 else 4, 1)
    if head_dim > 64:
        return Launch(64, 64, 8, 2), Launch(64, 64, 8, 2)
    stages = 3 if on.arch >= 90 else 2
    return Launch(128, 32, 8, stages), Launch(128, 64, 8, stages)


def backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv; out and lse are those of the forward."""
    dout, q, k, v = (target.dense(x) for x in (dout, q, k, v))
    b, t, h, c = q.shape
    n_kv_heads = k.shape[2]
    delta = torch.empty_like(lse)
    block = 4096 // c
    _delta_kernel[(triton.cdiv(t, block), b * h)](
        out, dout, delta, t, *dout.stride()[:3], HEADS=h, C=c, BLOCK_M=block, num_warps=8
    )
    for_keys, for_queries = launch(c, q.dtype, on=target.of(q.device))
    dq, dk, dv = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *dout.stride()[:3])
    scales = (math.log2(math.e) / math.sqrt(c), 1 / math.sqrt(c))
    first = last = q
    if starts is not None:
        positions = torch.arange(t, device=q.device, dtype=torch.int32).expand_as(starts).contiguous()
        # one past each position's document
        first, last = starts, torch.searchsorted(starts, positions, right=True, out_int32=True)
    shape = {"HEADS": h, "GROUPS": h // n_kv_heads, "C": c, "DOCUMENTS": starts is not None}
    _keys_kernel[(triton.cdiv(t, for_keys.stays), b * n_kv_heads)](
        q, k, v, dout, lse, delta, first, last, dk, dv, t, *strides, *scales,
        BLOCK_M=for_keys.walks, BLOCK_N=for_keys.stays, EVEN=t % for_keys.stays == 0, **shape,
        num_warps=for_keys.num_warps, num_stages=for_keys.num_stages,
    )  # fmt: skip
    _queries_kernel[(triton.cdiv(t, for_queries.stays), b * h)](
        q, k, v, dout, lse, delta, first, dq, t, *strides, *scales,
        BLOCK_M=for_queries.stays, BLOCK_N=for_queries.walks, **shape,
        num_warps=for_queries.num_warps, num_stages=for_queries.num_stages,
    )  # fmt: skip
    return dq, dk, dv
