"""The parts of a decoder. Shapes are named as in `kernels.reference`."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from tinyllama.config.schema import Model
from tinyllama.kernels import Ops
from tinyllama.model.cache import Attend, KeyValues

Angles = tuple[Tensor, Tensor]
"""cos and sin of each position's angles, fp32 [t, c / 2]."""


@lru_cache(maxsize=8)
def rope_tables(length: int, head_dim: int, theta: float, device: torch.device) -> Angles:
    """The angles of so many positions.

    Kept out of the module's buffers: an engine that casts a model to bf16 casts its buffers too, and positions past
    256 are not distinct in bf16.
    """
    with torch.inference_mode(mode=False):  # what is made in it can not be trained with, and these are kept
        frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
        return angles.cos().float().to(device), angles.sin().float().to(device)


class RMSNorm(nn.Module):
    """Root mean square normalisation with a learnt scale."""

    def __init__(self, width: int, eps: float, ops: Ops) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps
        self.ops = ops

    def forward(self, x_btd: Tensor, update_btd: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The scaled sum of the residual stream and what a block adds to it, and the sum itself."""
        if update_btd is None:
            return self.ops.rms_norm(x_btd, self.weight, self.eps), x_btd
        return self.ops.add_rms_norm(update_btd, x_btd, self.weight, self.eps)


class Linear(nn.Module):
    """A matrix without a bias."""

    def __init__(self, width: int, out: int, ops: Ops) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, width))
        self.ops = ops

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] to [..., out]."""
        return self.ops.linear(x, self.weight)


class Attention(nn.Module):
    """Causal grouped-query self-attention on one packed projection: query heads, key heads, value heads."""

    def __init__(self, shape: Model, ops: Ops) -> None:
        super().__init__()
        self.shape = shape
        self.ops = ops
        packed = (shape.n_heads + 2 * shape.n_kv_heads) * shape.head_dim
        self.qkv = Linear(shape.d_model, packed, ops)
        self.out = Linear(shape.d_model, shape.d_model, ops)

    def forward(
        self, x_btd: Tensor, angles: Angles, starts_bt: Tensor | None = None, attend: Attend | None = None
    ) -> tuple[Tensor, KeyValues]:
        """What each position gathers, [b, t, d], and the keys and values of these positions.

        With attend x is [1, b, d], the next position of each of a cache's texts.
        """
        shape = self.shape
        b, t, d = x_btd.shape
        packed = self.qkv(x_btd).view(b, t, -1, shape.head_dim)
        q_bthc, k_btkc, v_btkc = self.ops.rope(packed, *angles, shape.n_kv_heads)
        if attend is None:
            gathered = self.ops.attention(q_bthc, k_btkc, v_btkc, starts_bt)
        else:
            gathered = attend(q_bthc[0], k_btkc[0], v_btkc[0])
        return self.out(gathered.reshape(b, t, d)), (k_btkc, v_btkc)


class MLP(nn.Module):
    """SwiGLU on one packed projection."""

    def __init__(self, shape: Model, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.gate_up = Linear(shape.d_model, 2 * shape.d_ff, ops)
        self.down = Linear(shape.d_ff, shape.d_model, ops)

    def forward(self, x_btd: Tensor) -> Tensor:
        """[b, t, d]."""
        down: Tensor = self.down(self.ops.swiglu(self.gate_up(x_btd)))
        return down


class Block(nn.Module):
    """One decoder layer: each half normalises first and adds to the residual stream.

    What the MLP adds is left to the next layer's norm, which takes the addition along.
    """

    def __init__(self, shape: Model, ops: Ops) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.d_model, shape.norm_eps, ops)
        self.attention = Attention(shape, ops)
        self.mlp_norm = RMSNorm(shape.d_model, shape.norm_eps, ops)
        self.mlp = MLP(shape, ops)

    def forward(
        self,
        x_btd: Tensor,
        update_btd: Tensor | None,
        angles: Angles,
        starts_bt: Tensor | None = None,
        attend: Attend | None = None,
    ) -> tuple[Tensor, Tensor, KeyValues]:
        """The residual stream, what is yet to be added to it, and the keys and values of these positions."""
        normed_btd, x_btd = self.attention_norm(x_btd, update_btd)
        gathered_btd, present = self.attention(normed_btd, angles, starts_bt, attend)
        normed_btd, x_btd = self.mlp_norm(x_btd, gathered_btd)
        return x_btd, self.mlp(normed_btd), present


class Head(nn.Module):
    """The output matrix, with the loss beside it so that the logits of a training step need never exist."""

    def __init__(self, shape: Model, ops: Ops) -> None:
        super().__init__()
        self.ops = ops
        self.weight = nn.Parameter(torch.empty(shape.vocab_size, shape.d_model))

    def forward(self, x_btd: Tensor, targets_bt: Tensor | None) -> tuple[Tensor, Tensor] | Tensor:
        """Mean loss in nats and the count of targets; or, without targets, the logits [b, t, v]."""
        if targets_bt is None:
            return self.ops.linear(x_btd, self.weight)
        return self.ops.linear_cross_entropy(x_btd.flatten(0, 1), self.weight, targets_bt.flatten())
