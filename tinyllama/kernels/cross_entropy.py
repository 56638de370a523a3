"""Linear cross-entropy that holds the logits of only some tokens at a time.

    z = x w^T      loss = log sum exp(z) - z[target]      dz = softmax(z) - onehot(target)
    dx = dz w      dw = dz^T x, summed in fp32

The loss is the end of the network, so its gradients are made on the way: of each chunk the logits are worked out, one
kernel takes their losses and writes dz over them, and two products turn dz into dx and dw, for the mean to be taken
when the backward comes. All but that kernel is cuBLAS's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from tinyllama.kernels import reference, target
from tinyllama.kernels.reference import IGNORED

LOGITS_BYTES = 1 << 28
"""What a chunk of logits may take: dw in fp32 is read and written once for each."""


@triton.jit
def _kernel(
    p_logits, p_targets, p_losses, v,
    GRADIENTS: tl.constexpr, BLOCK: tl.constexpr, IGNORED: tl.constexpr,
):  # fmt: skip
    i_row = tl.program_id(0).to(tl.int64)
    p_logits += i_row * v
    i_target = tl.load(p_targets + i_row)
    o_v = tl.arange(0, BLOCK)
    b_max = tl.full((BLOCK,), float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros((BLOCK,), dtype=tl.float32)
    b_hit = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, v, BLOCK):
        b_z = tl.load(p_logits + first + o_v, mask=first + o_v < v, other=float("-inf")).to(tl.float32)
        b_new = tl.maximum(b_max, b_z)
        # of a lane that has seen nothing but -inf the exponent would be NaN
        b_base = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_sum = b_sum * tl.exp(b_max - b_base) + tl.exp(b_z - b_base)
        b_max = b_new
        b_hit = tl.where(first + o_v == i_target, b_z, b_hit)
    most = tl.max(b_max, axis=0)
    log_sum = most + tl.log(tl.sum(b_sum * tl.exp(b_max - most), axis=0))
    ignored = i_target == IGNORED
    loss = tl.where((i_target >= 0) & (i_target < v), log_sum - tl.sum(b_hit, axis=0), float("nan"))
    tl.store(p_losses + i_row, tl.where(ignored, 0.0, loss))
    if GRADIENTS:
        for first in range(0, v, BLOCK):
            m = first + o_v < v
            b_z = tl.load(p_logits + first + o_v, mask=m, other=float("-inf")).to(tl.float32)
            b_dz = tl.exp(b_z - log_sum) - tl.where(first + o_v == i_target, 1.0, 0.0)
            b_dz = tl.where(ignored, 0.0, b_dz)
            tl.store(p_logits + first + o_v, b_dz.to(p_logits.dtype.element_ty), mask=m)


class Launch(NamedTuple):
    """How the chunks are cut and the kernel is started."""

    chunk: int
    block: int
    num_warps: int


def launch(n_tokens: int, vocab: int, dtype: torch.dtype) -> Launch:
    """As many tokens as LOGITS_BYTES hold, in whole tiles of a matrix product; a program for each."""
    chunk = LOGITS_BYTES // (vocab * dtype.itemsize)
    chunk = max(1, chunk // 128 * 128 or chunk)
    block = min(4096, triton.next_power_of_2(vocab))
    return Launch(min(n_tokens, chunk), block, 8 if block > 1024 else 4)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Total, fp32, plus a @ b, not rounded before it is added."""
    if a.is_cuda and a.dtype != torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def _forward(x: Tensor, weight: Tensor, targets: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The mean loss, the count, and of the sum of losses dx, and dw in fp32 (both empty where not asked for)."""
    (n, _), vocab = x.shape, len(weight)
    targets = targets.contiguous()
    losses = x.new_empty(n, dtype=torch.float32)
    dx = x.new_empty(x.shape if gradients else 0)
    dw = torch.zeros_like(weight, dtype=torch.float32) if gradients else weight.new_empty(0, dtype=torch.float32)
    how = launch(n, vocab, x.dtype)
    logits = x.new_empty(how.chunk, vocab)
    for first in range(0, n, how.chunk or 1):
        rows = slice(first, min(first + how.chunk, n))
        z = logits[: rows.stop - first]
        torch.mm(x[rows], weight.T, out=z)
        _kernel[(len(z),)](
            z, targets[rows], losses[rows], vocab,
            GRADIENTS=gradients, BLOCK=how.block, IGNORED=IGNORED, num_warps=how.num_warps,
        )  # fmt: skip
        if gradients:
            torch.mm(z, weight, out=dx[rows])
            _add_product(dw, z.T, x[rows])
    count = (targets != IGNORED).sum()
    return losses.sum() / count.clamp(min=1), count, dx, dw


_linear_cross_entropy = torch.library.custom_op("tinyllama::linear_cross_entropy", _forward, mutates_args=())


@_linear_cross_entropy.register_fake
def _(x: Tensor, weight: Tensor, targets: Tensor, gradients: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dx = x.new_empty(x.shape if gradients else 0)
    dw = weight.new_empty(weight.shape if gradients else 0, dtype=torch.float32)
    return x.new_empty((), dtype=torch.float32), targets.new_empty((), dtype=torch.int64), dx, dw


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.dtype = inputs[1].dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dloss: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    if dloss is None:
        return None, None, None, None
    count, dx, dw = ctx.saved_tensors
    each = dloss / count.clamp(min=1)
    # rounded on the way, without a second copy in fp32
    dweight = torch.mul(dw, each, out=dw.new_empty(dw.shape, dtype=ctx.dtype))
    return dx * each, dweight, None, None


_linear_cross_entropy.register_autograd(_gradients, setup_context=_save)


def linear_cross_entropy(x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.linear_cross_entropy` on Triton; a target that is no token makes the loss NaN."""
    if not target.takes(x_nd):
        return reference.linear_cross_entropy(x_nd, weight_vd, targets_n)
    gradients = torch.is_grad_enabled() and (x_nd.requires_grad or weight_vd.requires_grad)
    loss, count, _, _ = _linear_cross_entropy(x_nd, weight_vd, targets_n, gradients)
    return loss, count
