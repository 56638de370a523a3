"""A Llama-2-style decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyllama.config.schema import Model
from tinyllama.kernels import Ops
from tinyllama.model.layers import Block, Head, KeyValues, RMSNorm


class Llama(nn.Module):
    """Token embedding, decoder blocks, a last norm, an untied output matrix; no biases.

    The weights are left as they were allocated: `model.init` gives them values, and so does a checkpoint.
    """

    def __init__(self, shape: Model, *, ops: Ops, recompute: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.recompute = recompute
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape, ops) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.d_model, shape.norm_eps, ops)
        self.head = Head(shape, ops)

    def forward(self, tokens_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss in nats over the targets that are not ignored, and their count."""
        x_btd = self.embedding(tokens_bt)
        for block in self.blocks:
            if self.recompute and self.training:
                x_btd, _ = checkpoint(block, x_btd, use_reentrant=False)
            else:
                x_btd, _ = block(x_btd)
        loss: tuple[Tensor, Tensor] = self.head(self.norm(x_btd), targets_bt)
        return loss

    def logits(self, tokens_bt: Tensor, past: Sequence[KeyValues] | None = None) -> tuple[Tensor, list[KeyValues]]:
        """Logits [b, t, v] of every position, and each layer's keys and values to pass in with the next tokens.

        Raises ValueError where the positions would pass the model's context.
        """
        length = tokens_bt.shape[1] + (past[0][0].shape[1] if past else 0)
        if length > self.shape.context:
            raise ValueError(f"{length} positions are more than the model's context of {self.shape.context}")
        x_btd = self.embedding(tokens_bt)
        present = []
        for layer, block in enumerate(self.blocks):
            x_btd, key_values = block(x_btd, past[layer] if past else None)
            present.append(key_values)
        return self.head(self.norm(x_btd), None), present
