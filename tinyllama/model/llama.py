"""A Llama-2-style decoder."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyllama.config.schema import Model
from tinyllama.kernels import Ops
from tinyllama.model.cache import Cache, KeyValues
from tinyllama.model.layers import Block, Head, RMSNorm, rope_tables


def document_starts(tokens_bt: Tensor, end: int) -> Tensor:
    """The position that each position's document starts at, int32 [b, t].

    A document starts with the end token of the one before it, as a prompt does that is to start a new one; the first of
    a window, with the window.
    """
    positions_t = torch.arange(tokens_bt.shape[1], device=tokens_bt.device, dtype=torch.int32)
    return torch.where(tokens_bt == end, positions_t, 0).cummax(dim=1).values


class Llama(nn.Module):
    """Token embedding, decoder blocks, a last norm, an untied output matrix; no biases.

    The weights are left as they were allocated: `model.init` gives them values, and so does a checkpoint.
    """

    def __init__(self, shape: Model, *, ops: Ops, recompute: bool = False, document_end: int | None = None) -> None:
        """With document_end, the token that ends a document, no position sees past the one its document starts with."""
        super().__init__()
        self.shape = shape
        self.recompute = recompute
        self.document_end = document_end
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape, ops) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.d_model, shape.norm_eps, ops)
        self.head = Head(shape, ops)

    def forward(self, tokens_bt: Tensor, targets_bt: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        """Mean loss in nats over the targets that are not ignored, and their count; without targets, the logits."""
        if targets_bt is None:
            return self.logits(tokens_bt)[0]
        starts_bt = None if self.document_end is None else document_starts(tokens_bt, self.document_end)
        x_btd, update_btd = self.embedding(tokens_bt), None
        for block in self.blocks:
            if self.recompute and self.training:
                x_btd, update_btd, _ = checkpoint(block, x_btd, update_btd, starts_bt, use_reentrant=False)
            else:
                x_btd, update_btd, _ = block(x_btd, update_btd, starts_bt)
        normed_btd, _ = self.norm(x_btd, update_btd)
        loss: tuple[Tensor, Tensor] = self.head(normed_btd, targets_bt)
        return loss

    def logits(self, tokens_bt: Tensor, *, last: bool = False) -> tuple[Tensor, list[KeyValues]]:
        """Logits [b, t, v] of every position, or [b, 1, v] of the last, and each layer's keys and values for a cache.

        The tokens are taken to be of one document. Raises ValueError where they are more than the context.
        """
        length = tokens_bt.shape[1]
        if length > self.shape.context:
            raise ValueError(f"{length} positions are more than the model's context of {self.shape.context}")
        x_btd, update_btd = self.embedding(tokens_bt), None
        present = []
        for block in self.blocks:
            x_btd, update_btd, key_values = block(x_btd, update_btd)
            present.append(key_values)
        normed_btd, _ = self.norm(x_btd, update_btd)
        if last:
            normed_btd = normed_btd[:, -1:].contiguous()  # or PyTorch copies the output matrix for each text
        return self.head(normed_btd, None), present

    def next_logits(self, tokens_b: Tensor, cache: Cache) -> Tensor:
        """Logits [b, v] of one more position of each of a cache's texts, whose tokens these are; the cache grows."""
        shape = self.shape
        tables = rope_tables(shape.context, shape.head_dim, shape.rope_theta, tokens_b.device)
        x_1bd, update_1bd = self.embedding(tokens_b)[None], None
        for block, step in zip(self.blocks, cache.steps(*tables), strict=True):
            x_1bd, update_1bd, _ = block(x_1bd, update_1bd, step=step)
        normed_1bd, _ = self.norm(x_1bd, update_1bd)
        logits_1bv: Tensor = self.head(normed_1bd, None)
        return logits_1bv[0]
