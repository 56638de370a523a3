"""Causal attention as matrix products over blocks of queries, which torch.compile makes faster than the fused kernel.

So it is on a CPU, in bf16 with AVX512, up to LONGEST positions; nothing else is worked out so. The backward works the
weights out again from the scores and the logarithm of each row's sum; torch.compile finds that it has had the scores
before, and keeps them. Beside the letters of `reference`, n counts pairs of a sequence and a key-value head, and r the
query heads that share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tinyllama.kernels import reference, sdpa

BLOCK = 256
"""Queries that are worked out at a time: keys after the last of them are left out."""
LONGEST = 512
"""Positions up to which it is used."""


def attention(q_bthc: Tensor, k_bskc: Tensor, v_bskc: Tensor, starts_bt: Tensor | None = None) -> Tensor:
    """`reference.attention`; by PyTorch's kernel where it is not being compiled, and where that is faster."""
    b, t, h, c = q_bthc.shape
    s, k = k_bskc.shape[1:3]
    if not torch.compiler.is_compiling() or starts_bt is not None or t != s or t > LONGEST:
        return sdpa.attention(q_bthc, k_bskc, v_bskc, starts_bt)
    q_nrtc = q_bthc.view(b, t, k, h // k, c).permute(0, 2, 3, 1, 4).reshape(b * k, h // k, t, c)
    k_nsc, v_nsc = (x.transpose(1, 2).reshape(b * k, s, c) for x in (k_bskc, v_bskc))
    gathered: Tensor = Blocked.apply(q_nrtc, k_nsc, v_nsc)
    return gathered.view(b, h, t, c).transpose(1, 2)


class Blocked(torch.autograd.Function):
    """Of queries [n, r, t, c], keys and values [n, t, c]."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What each query gathers, [n, r, t, c]."""
        gathered, sums = [], []
        for rows in _blocks(q.shape[2]):
            scores = _scores(q[:, :, rows], k[:, : rows.stop])
            most = scores.amax(-1, keepdim=True)
            weights = (scores - most).exp()
            total = weights.sum(-1, keepdim=True)
            gathered.append(_product(weights.to(q.dtype), v[:, : rows.stop]) / total)
            sums.append(most + total.log())
        out = torch.cat(gathered, dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, torch.cat(sums, dim=2))
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dv = p^T do, dp = do v^T, ds = p (dp - sum(do o)), dq = ds k, dk = ds^T q, with ds scaled as s is."""
        q, k, v, out, sums = ctx.saved_tensors
        delta = (dout.float() * out.float()).sum(-1, keepdim=True)
        dq, dk, dv = [], [], []
        for rows in _blocks(q.shape[2]):
            seen_k, seen_v, q_rows, dout_rows = k[:, : rows.stop], v[:, : rows.stop], q[:, :, rows], dout[:, :, rows]
            weights = (_scores(q_rows, seen_k) - sums[:, :, rows]).exp()
            dweights = _product(dout_rows, seen_v.transpose(1, 2)).float()
            dscores = (weights * (dweights - delta[:, :, rows]) * q.shape[-1] ** -0.5).to(q.dtype)
            dq.append(_product(dscores, seen_k))
            dk.append(dscores.flatten(1, 2).transpose(1, 2) @ q_rows.flatten(1, 2))
            dv.append(weights.to(q.dtype).flatten(1, 2).transpose(1, 2) @ dout_rows.flatten(1, 2))
        return torch.cat(dq, dim=2), _summed(dk, like=k), _summed(dv, like=v)


def _blocks(t: int) -> Iterator[slice]:
    for first in range(0, t, BLOCK):
        yield slice(first, min(first + BLOCK, t))


def _product(x: Tensor, y: Tensor) -> Tensor:
    """[n, r, t, x] and [n, x, c] to [n, r, t, c]: one product for all heads that share y."""
    product: Tensor = (x.flatten(1, 2) @ y).unflatten(1, x.shape[1:3])
    return product


def _scores(q_nrtc: Tensor, k_nsc: Tensor) -> Tensor:
    """In fp32; the last query sees the last key."""
    scores: Tensor = _product(q_nrtc, k_nsc.transpose(1, 2)).float() * q_nrtc.shape[-1] ** -0.5
    seen = reference.visible(q_nrtc.shape[2], k_nsc.shape[1], None, k_nsc.device)
    return scores.masked_fill(~seen, float("-inf"))


def _summed(parts: Iterable[Tensor], *, like: Tensor) -> Tensor:
    """The sum [n, s, c] of parts that are of the first positions alone."""
    padded = [F.pad(part.float(), (0, 0, 0, like.shape[1] - part.shape[1])) for part in parts]
    return sum(padded[1:], padded[0]).to(like.dtype)
