"""PyTorch's fused attention behind the signature of `reference.attention`."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def attention(q_bthc: Tensor, k_bskc: Tensor, v_bskc: Tensor) -> Tensor:
    """Causal grouped-query attention, [b, t, h, c]; the last query is aligned with the last key."""
    t, s = q_bthc.shape[1], k_bskc.shape[1]
    # PyTorch's causal mask aligns the first query with the first key, which is right only where there is no cache
    mask = None if t in (1, s) else torch.ones(t, s, dtype=torch.bool, device=q_bthc.device).tril(s - t)
    q, k, v = (x.transpose(1, 2) for x in (q_bthc, k_bskc, v_bskc))
    gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=t == s, enable_gqa=True)
    return gathered.transpose(1, 2)
