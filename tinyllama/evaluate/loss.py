"""Held-out loss per source, over all ranks, in nats a token and in bits a byte."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tinyllama.data.loader import IGNORED, HeldOut
from tinyllama.engine.distributed import Ranks, anywhere, sum_over_ranks

Ask = Callable[[], bool]
Tell = Callable[[str, int, int], None]
"""Hears of what how much is done, of how much."""


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


class Engine(Protocol):
    """What can be measured: a training engine, or a model alone."""

    ranks: Ranks
    device: torch.device

    def evaluate(self, tokens_bt: Tensor, targets_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over the targets that count, and their number; every rank calls it equally often."""


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

    def measure(
        self, *, max_tokens: int | None = None, stop: Ask | None = None, tell: Tell = lambda *_: None
    ) -> dict[str, SourceLoss]:
        """Each source's loss on its first max_tokens held-out tokens, rounded up to whole windows, or on all of them.

        Every rank has to call it; every rank gets the answer. tell hears on the way how many windows of a source are
        done, and of how many. Raises Interrupted, on all ranks, once `stop` is true on any.
        """
        return {name: self._measure(name, max_tokens, stop, tell) for name in self._sources}

    def _measure(self, name: str, max_tokens: int | None, stop: Ask | None, tell: Tell) -> SourceLoss:
        held_out = self._sources[name]
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
            tell(name, min(n_windows, together + ranks.world_size * self._micro_batch), n_windows)
        nats, tokens, size = sum_over_ranks(sums.to(self._engine.device)).tolist()
        return SourceLoss(loss=nats / tokens, bits_per_byte=bits_per_byte(nats, int(size)), tokens=int(tokens))
