"""PyTorch's fused attention behind the signature of `reference.attention`."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tinyllama.kernels import reference


def attention(q_bthc: Tensor, k_bskc: Tensor, v_bskc: Tensor, starts_bt: Tensor | None = None) -> Tensor:
    """`reference.attention` by PyTorch's own kernel, which takes documents only as a mask of all their pairs."""
    t, s = q_bthc.shape[1], k_bskc.shape[1]
    causal = t == s and starts_bt is None
    # PyTorch's causal mask aligns the first query with the first key, which is right only where there is no cache
    mask = None if causal or t == 1 else reference.visible(t, s, starts_bt, q_bthc.device)
    if starts_bt is not None and mask is not None:
        mask = mask[:, None]  # for all heads alike
    q, k, v = (x.transpose(1, 2) for x in (q_bthc, k_bskc, v_bskc))
    if mask is not None and (shared := q.shape[1] // k.shape[1]) > 1:
        # on a GPU no fused kernel surely takes a mask and shared key heads, and without one all scores are kept
        k, v = (x[:, :, None].expand(-1, -1, shared, -1, -1).flatten(1, 2) for x in (k, v))
    gathered = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
    return gathered.transpose(1, 2)
