"""The ops for bf16 on a CPU that has no instructions for it: matrix products in fp32, rounded afterwards.

PyTorch would multiply number by number there, several times more slowly. The sums are in fp32 either way.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tinyllama.kernels import reference, sdpa


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T`."""
    return F.linear(x.float(), weight.float()).to(x.dtype)


def attention(q_bthc: Tensor, k_bskc: Tensor, v_bskc: Tensor, starts_bt: Tensor | None = None) -> Tensor:
    """`reference.attention`."""
    return sdpa.attention(q_bthc.float(), k_bskc.float(), v_bskc.float(), starts_bt).to(q_bthc.dtype)


def linear_cross_entropy(x_nd: Tensor, weight_vd: Tensor, targets_n: Tensor) -> tuple[Tensor, Tensor]:
    """`reference.linear_cross_entropy`, its logits not rounded."""
    return reference.linear_cross_entropy(x_nd.float(), weight_vd.float(), targets_n)
