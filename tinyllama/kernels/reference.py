"""The model's ops in plain PyTorch: slow, readable, and the specification that every kernel is held to.

Shapes: b batch, t positions, d model width, h query heads, k key-value heads, c head size, f SwiGLU width,
v vocabulary, n tokens. What would lose digits is worked out in fp32 (fp64 for fp64 inputs); results have the inputs'
dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

IGNORED = -100
"""A target that counts in no loss."""


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x @ weight.T over the last dimension."""
    return F.linear(x, weight)


def rms_norm(x_btd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467)."""
    x = _wide(x_btd)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (normed * _wide(weight_d)).to(x_btd.dtype)


def add_rms_norm(x_btd: Tensor, residual_btd: Tensor, weight_d: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and x + residual itself."""
    total = x_btd + residual_btd
    return rms_norm(total, weight_d, eps), total


def rope(qkv_btnc: Tensor, cos_tc: Tensor, sin_tc: Tensor, n_kv_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a packed projection, [b, t, h or k, c], the first two rotated by their position.

    A position's n = h + 2 k heads are its queries, its keys, its values. cos and sin are fp32 of shape [t, c / 2]. A
    head's first half pairs with its second, as in Hugging Face's Llama (arXiv 2104.09864).
    """
    turning, v_btkc = qkv_btnc[:, :, :-n_kv_heads], qkv_btnc[:, :, -n_kv_heads:]
    first, second = _wide(turning).chunk(2, dim=-1)
    cos, sin = cos_tc[:, None], sin_tc[:, None]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(qkv_btnc.dtype)
    return turned[:, :, :-n_kv_heads], turned[:, :, -n_kv_heads:], v_btkc


def swiglu(gate_up_bt2f: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202) of a packed projection, gate before up: [b, t, f]."""
    gate, up = gate_up_bt2f.chunk(2, dim=-1)
    return (F.silu(_wide(gate)) * _wide(up)).to(gate_up_bt2f.dtype)


def visible(t: int, s: int, starts_bt: Tensor | None, device: torch.device) -> Tensor:
    """Whether query i of t may see key j of s, bool [t, s], or [b, t, s] where documents start within.

    The last query is aligned with the last key: with a cache there are more keys than queries. starts is, for each
    position, the first position of its document; it needs as many keys as queries.
    """
    causal = torch.ones(t, s, dtype=torch.bool, device=device).tril(s - t)
    if starts_bt is None:
        return causal
    assert t == s, "documents are those of a whole sequence"
    return causal & (torch.arange(s, device=device) >= starts_bt[:, :, None])


def attention(q_bthc: Tensor, k_bskc: Tensor, v_bskc: Tensor, starts_bt: Tensor | None = None) -> Tensor:
    """Causal grouped-query attention, [b, t, h, c] (arXiv 2305.13245), of each query to what is `visible` to it."""
    b, t, h, c = q_bthc.shape
    s, k = k_bskc.shape[1:3]
    q_bkgtc = q_bthc.view(b, t, k, h // k, c).permute(0, 2, 3, 1, 4)
    k_bk1cs = k_bskc.permute(0, 2, 3, 1).unsqueeze(2)
    v_bk1sc = v_bskc.permute(0, 2, 1, 3).unsqueeze(2)
    scores = _wide(q_bkgtc * c**-0.5 @ k_bk1cs)
    seen = visible(t, s, starts_bt, scores.device)
    hidden = ~(seen if starts_bt is None else seen[:, None, None])
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(q_bthc.dtype)
    gathered: Tensor = weights @ v_bk1sc
    return gathered.permute(0, 3, 1, 2, 4).reshape(b, t, h, c)


def linear_cross_entropy(x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats of the logits x @ weight.T over the targets that are not IGNORED, and their count.

    Both are scalars, fp32 and int64. The mean over no targets is 0. With the count, means of several calls combine
    into the exact mean over all their tokens.
    """
    logits_nv = _wide(x_nd @ weight_vd.T)
    count = (targets_n != IGNORED).sum()
    total = F.cross_entropy(logits_nv, targets_n, ignore_index=IGNORED, reduction="sum")
    return total / count.clamp(min=1), count
