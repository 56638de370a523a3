"""A Llama-2-style decoder."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tinyllama.config.schema import Model
from tinyllama.kernels import Ops
from tinyllama.model.cache import Cache, KeyValues
from tinyllama.model.layers import Angles, Block, Head, RMSNorm, rope_tables


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

    def __init__(
        self,
        shape: Model,
        *,
        ops: Ops,
        recompute: bool = False,
        document_end: int | None = None,
        compiled: bool = False,
    ) -> None:
        """With document_end, the token that ends a document, no position sees past the one its document starts with.

        Compiled, a training step runs each block and the loss as what torch.compile makes of them at the first call.
        """
        super().__init__()
        self.shape = shape
        self.recompute = recompute
        self.document_end = document_end
        self.compiled = compiled
        self.embedding = nn.Embedding(shape.vocab_size, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape, ops) for _ in range(shape.n_layers))
        self.norm = RMSNorm(shape.d_model, shape.norm_eps, ops)
        self.head = Head(shape, ops)
        # of all blocks alike, which differ in their weights alone
        compile_ = partial(torch.compile, dynamic=False) if compiled else lambda part: part
        self._trained_block, self._trained_end = compile_(Block.__call__), compile_(_loss)

    def forward(self, tokens_bt: Tensor, targets_bt: Tensor | None = None) -> tuple[Tensor, Tensor] | Tensor:
        """Mean loss in nats over the targets that are not ignored, and their count; without targets, the logits."""
        if targets_bt is None:
            return self.logits(tokens_bt)[0]
        starts_bt = None if self.document_end is None else document_starts(tokens_bt, self.document_end)
        angles = self._angles(tokens_bt)
        # lengths and batches that are evaluated vary: each would be compiled anew
        run, end = (self._trained_block, self._trained_end) if self.training else (Block.__call__, _loss)
        if self.recompute and self.training:
            run = partial(checkpoint, run, use_reentrant=False)
        x_btd, update_btd = self.embedding(tokens_bt), None
        for block in self.blocks:
            x_btd, update_btd, _ = run(block, x_btd, update_btd, angles, starts_bt)
        loss: tuple[Tensor, Tensor] = end(self.norm, self.head, x_btd, update_btd, targets_bt)
        return loss

    def logits(self, tokens_bt: Tensor, *, last: bool = False) -> tuple[Tensor, list[KeyValues]]:
        """Logits [b, t, v] of every position, or [b, 1, v] of the last, and each layer's keys and values for a cache.

        The tokens are taken to be of one document. Raises ValueError where they are more than the context.
        """
        length = tokens_bt.shape[1]
        if length > self.shape.context:
            raise ValueError(f"{length} positions are more than the model's context of {self.shape.context}")
        angles = self._angles(tokens_bt)
        x_btd, update_btd = self.embedding(tokens_bt), None
        present = []
        for block in self.blocks:
            x_btd, update_btd, key_values = block(x_btd, update_btd, angles)
            present.append(key_values)
        normed_btd, _ = self.norm(x_btd, update_btd)
        if last:
            normed_btd = normed_btd[:, -1:].contiguous()  # or PyTorch copies the output matrix for each text
        return self.head(normed_btd, None), present

    def next_logits(self, tokens_b: Tensor, cache: Cache) -> Tensor:
        """Logits [b, v] of one more position of each of a cache's texts, whose tokens these are; the cache grows."""
        positions_b, attends = cache.grow()
        cos, sin = self._tables(tokens_b.device)
        angles = cos[positions_b], sin[positions_b]
        x_1bd, update_1bd = self.embedding(tokens_b)[None], None
        for block, attend in zip(self.blocks, attends, strict=True):
            x_1bd, update_1bd, _ = block(x_1bd, update_1bd, angles, attend=attend)
        normed_1bd, _ = self.norm(x_1bd, update_1bd)
        logits_1bv: Tensor = self.head(normed_1bd, None)
        return logits_1bv[0]

    def _angles(self, tokens_bt: Tensor) -> Angles:
        cos, sin = self._tables(tokens_bt.device)
        return cos[: tokens_bt.shape[1]], sin[: tokens_bt.shape[1]]

    def _tables(self, device: torch.device) -> Angles:
        return rope_tables(self.shape.context, self.shape.head_dim, self.shape.rope_theta, device)


def _loss(norm: RMSNorm, head: Head, x_btd: Tensor, update_btd: Tensor | None, targets_bt: Tensor) -> Any:
    normed_btd, _ = norm(x_btd, update_btd)
    return head(normed_btd, targets_bt)
