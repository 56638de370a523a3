"""Held-out loss per source, over all ranks, in nats a token and in bits a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from tinyllama.data.loader import IGNORED, HeldOut
from tinyllama.engine.distributed import anywhere, sum_over_ranks
from tinyllama.engine.zero import Engine

Ask = Callable[[], bool]


@dataclass(frozen=True, kw_only=True)
class SourceLoss:
    """What a model makes of one source's held-out text."""

    loss: float
    """Mean cross-entropy in nats a token."""
    bits_per_byte: float
    """The same in bits over the text's UTF-8 bytes: comparable between tokenizers, and with a compressor."""
    tokens: int
    """Tokens it was measured on."""


class Interrupted(Exception):  # noqa: N818
    """A measurement was stopped, on all ranks alike."""


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """Bits a byte of a text whose tokens cost so many nats in sum."""
    return nats / math.log(2) / n_bytes


class Evaluator:
    """Measures an engine on held-out text, the same windows whatever the number of ranks."""

    def __init__(
        self, engine: Engine, sources: Mapping[str, HeldOut], *, token_bytes: np.ndarray, micro_batch: int
    ) -> None:
        """`token_bytes` [vocabulary] says how many bytes of text each token stands for."""
        self._engine = engine
        self._sources = sources
        self._token_bytes = torch.from_numpy(token_bytes.astype(np.int64))
        self._micro_batch = micro_batch

    def measure(self, *, max_tokens: int | None = None, stop: Ask | None = None) -> dict[str, SourceLoss]:
        """Each source's loss on its first max_tokens held-out tokens, rounded up to whole windows, or on all of them.

        Every rank has to call it; every rank gets the answer. Raises Interrupted, on all of them, once `stop` is true
        on any rank.
        """
        return {name: self._measure(held_out, max_tokens, stop) for name, held_out in self._sources.items()}

    def _measure(self, held_out: HeldOut, max_tokens: int | None, stop: Ask | None) -> SourceLoss:
        n_windows = len(held_out)
        if max_tokens is not None:
            n_windows = min(n_windows, math.ceil(max_tokens / held_out.context))
        ranks = self._engine.ranks
        sums = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
        for together in range(0, n_windows, ranks.world_size * self._micro_batch):
            if stop is not None and anywhere(stop(), device=self._engine.device):
                raise Interrupted
            mine = together + ranks.rank * self._micro_batch + np.arange(self._micro_batch)
            inputs, targets = (torch.from_numpy(part) for part in held_out.take(np.minimum(mine, n_windows - 1)))
            # ranks that have run out of windows go on in step with the others and score nothing
            targets[torch.from_numpy(mine >= n_windows)] = IGNORED
            loss, count = self._engine.evaluate(inputs, targets)
            scored = targets[targets != IGNORED]
            n_bytes = int(self._token_bytes[scored].sum())
            sums += torch.tensor([float(loss) * int(count), int(count), n_bytes], dtype=torch.float64)
        nats, tokens, size = sum_over_ranks(sums.to(self._engine.device)).tolist()
        return SourceLoss(loss=nats / tokens, bits_per_byte=bits_per_byte(nats, int(size)), tokens=int(tokens))
