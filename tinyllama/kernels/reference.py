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


def rms_norm(x_btd: Tensor, weight_d: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv 1910.07467)."""
    x = _wide(x_btd)
    normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return (normed * _wide(weight_d)).to(x_btd.dtype)


def rope(x_bthc: Tensor, cos_tc: Tensor, sin_tc: Tensor, n_rotated: int) -> Tensor:
    """Rotate the first n_rotated heads by their position (arXiv 2104.09864) and pass the others through.

    cos and sin are fp32 of shape [t, c / 2]. A head's first half pairs with its second, as in Hugging Face's Llama.
    """
    rotated, rest = x_bthc[:, :, :n_rotated], x_bthc[:, :, n_rotated:]
    first, second = _wide(rotated).chunk(2, dim=-1)
    cos, sin = cos_tc[:, None], sin_tc[:, None]
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((turned.to(x_bthc.dtype), rest), dim=2)


def swiglu(gate_up_bt2f: Tensor) -> Tensor:
    """silu(gate) * up (arXiv 2002.05202) of a packed projection, gate before up: [b, t, f]."""
    gate, up = gate_up_bt2f.chunk(2, dim=-1)
    return (F.silu(_wide(gate)) * _wide(up)).to(gate_up_bt2f.dtype)


def attention(q_bthc: Tensor, k_bskc: Tensor, v_bskc: Tensor) -> Tensor:
    """Causal grouped-query attention, [b, t, h, c] (arXiv 2305.13245).

    Query i of t sees the keys up to the one that stands at its own position: with a cache there are more keys (s) than
    queries (t), and the last query is aligned with the last key.
    """
    b, t, h, c = q_bthc.shape
    s, k = k_bskc.shape[1:3]
    q_bkgtc = q_bthc.view(b, t, k, h // k, c).permute(0, 2, 3, 1, 4)
    k_bk1cs = k_bskc.permute(0, 2, 3, 1).unsqueeze(2)
    v_bk1sc = v_bskc.permute(0, 2, 1, 3).unsqueeze(2)
    scores = _wide(q_bkgtc * c**-0.5 @ k_bk1cs)
    future = torch.ones(t, s, dtype=torch.bool, device=scores.device).triu(s - t + 1)
    weights = scores.masked_fill(future, float("-inf")).softmax(-1).to(q_bthc.dtype)
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
