"""The keys and values of texts that grow together, in memory that is allocated once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tinyllama.config.schema import Model

KeyValues = tuple[Tensor, Tensor]
"""The keys and values of one layer, each [b, t, k, c]."""


Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""What one more position of every text gathers from its text so far, [b, h, c], in one layer: of queries [b, h, c],
keys and values [b, k, c]."""


class Cache:
    """What every layer keeps of b texts, whose last positions share a slot.

    A shorter text begins in a later slot, and what lies before it is hidden. A position is counted from the beginning
    of its own text, so that a text is the same in any company and has the whole context to itself.
    """

    def __init__(self, shape: Model, lengths: Sequence[int], *, room: int, like: Tensor) -> None:
        """Empty, for texts of these lengths and `room` more positions of each; dtype and device are those of `like`."""
        self._end = max(lengths)
        slots = self._end + room
        self._lengths_b = torch.tensor(lengths, device=like.device)
        # zeros, since what is hidden is multiplied by a weight of 0, which makes a NaN of one
        self._kept = like.new_zeros(shape.n_layers, 2, len(lengths), shape.n_kv_heads, slots, shape.head_dim)
        self._hidden: Tensor | None = None
        if min(lengths) < self._end:
            before = torch.arange(slots, device=like.device) < (self._end - self._lengths_b)[:, None]
            self._hidden = like.new_zeros(len(lengths), 1, 1, slots).masked_fill_(before[:, None, None], float("-inf"))

    def put(self, rows: Sequence[int], present: Sequence[KeyValues]) -> None:
        """Keep what each layer made of the whole texts of these rows, which are of one length."""
        for kept, (k_btkc, v_btkc) in zip(self._kept, present, strict=True):
            slots = slice(self._end - k_btkc.shape[1], self._end)
            for both, x_btkc in zip(kept, (k_btkc, v_btkc), strict=True):
                both[list(rows), :, slots] = x_btkc.transpose(1, 2)

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all rows but these, which are counted anew."""
        chosen = torch.tensor(rows, device=self._kept.device)
        self._kept, self._lengths_b = self._kept[:, :, chosen], self._lengths_b[chosen]
        self._hidden = None if self._hidden is None else self._hidden[chosen]

    def grow(self) -> tuple[Tensor, list[Attend]]:
        """A slot for one more position of every text: which position it is, [b], and its attention by layer."""
        positions_b = self._lengths_b
        self._lengths_b = positions_b + 1
        self._end += 1
        return positions_b, [partial(self._attend, kept) for kept in self._kept]

    def _attend(self, kept: Tensor, q_bhc: Tensor, k_bkc: Tensor, v_bkc: Tensor) -> Tensor:
        """Grouped-query attention of each text's last position to its text, [b, h, c]."""
        kept[0, :, :, self._end - 1], kept[1, :, :, self._end - 1] = k_bkc, v_bkc
        k_bksc, v_bksc = kept[:, :, :, : self._end]
        # the queries that share keys stand where PyTorch expects positions: all see the same
        q_bkgc = q_bhc.reshape(*k_bkc.shape[:2], -1, q_bhc.shape[-1])
        hidden = None if self._hidden is None else self._hidden[..., : self._end]
        return F.scaled_dot_product_attention(q_bkgc, k_bksc, v_bksc, attn_mask=hidden).view_as(q_bhc)
