"""Held-out loss: every token once, whatever the ranks, in nats a token and in bits a byte."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tinyllama.evaluate import loss as module
from tinyllama.evaluate.loss import Evaluator, bits_per_byte

CONTEXT = 4
TOKEN_BYTES = np.array([0, 1, 2, 3, 5], dtype=np.uint16)
TEXT = torch.tensor([1, 4, 2, 0, 3, 3, 1, 2, 4, 0, 1, 1, 4, 2, 3, 0, 2, 1])


class Windows:
    """TEXT in windows, the last one partial."""

    context = CONTEXT

    def __len__(self) -> int:
        return math.ceil(len(TEXT) / CONTEXT)

    def take(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        targets = np.full((len(windows), CONTEXT), module.IGNORED)
        for row, window in enumerate(windows):
            part = TEXT[window * CONTEXT : (window + 1) * CONTEXT]
            targets[row, : len(part)] = part
        return np.zeros_like(targets), targets


class Engine:
    """A rank whose loss of a token is a tenth of its id, and which counts its calls."""

    device = torch.device("cpu")

    def __init__(self, rank: int, world_size: int) -> None:
        self.ranks = SimpleNamespace(rank=rank, world_size=world_size)
        self.calls = 0

    def evaluate(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        scored = targets[targets != module.IGNORED]
        return scored.double().sum() / 10 / max(1, len(scored)), torch.tensor(len(scored))


def measured(
    monkeypatch: pytest.MonkeyPatch, *, world: int, micro_batch: int, max_tokens: int | None
) -> tuple[Any, set[int]]:
    """What all ranks together measure, and how often each called its engine."""
    sums: list[Tensor] = []
    engines = [Engine(rank, world) for rank in range(world)]
    result = None
    for number, engine in enumerate(engines):

        def together(mine: Tensor, last: bool = number == world - 1) -> Tensor:
            sums.append(mine)
            return torch.stack(sums).sum(0) if last else torch.ones_like(mine)

        monkeypatch.setattr(module, "sum_over_ranks", together)
        evaluator = Evaluator(engine, {"web": Windows()}, token_bytes=TOKEN_BYTES, micro_batch=micro_batch)  # type: ignore[arg-type, dict-item]
        result = evaluator.measure(max_tokens=max_tokens)["web"]
    return result, {engine.calls for engine in engines}


@pytest.mark.parametrize("max_tokens", [None, 1, 9, 1000])
@pytest.mark.parametrize("micro_batch", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_every_token_counts_once(
    monkeypatch: pytest.MonkeyPatch, world: int, micro_batch: int, max_tokens: int | None
) -> None:
    seen = TEXT if max_tokens is None else TEXT[: math.ceil(max_tokens / CONTEXT) * CONTEXT]
    nats, size = float(seen.sum()) / 10, int(TOKEN_BYTES[seen].sum())
    result, calls = measured(monkeypatch, world=world, micro_batch=micro_batch, max_tokens=max_tokens)
    assert result.tokens == len(seen)
    assert result.loss == pytest.approx(nats / len(seen), rel=1e-12)
    assert result.bits_per_byte == pytest.approx(nats / math.log(2) / size, rel=1e-12)
    assert len(calls) == 1, "a rank that calls its engine more often than another waits for ever"


@pytest.mark.parametrize("other", [False, True])
def test_it_is_stopped_on_all_ranks_alike(monkeypatch: pytest.MonkeyPatch, other: bool) -> None:
    """Where this rank is asked to stop, and where another is."""
    engine = Engine(0, 1)
    monkeypatch.setattr(module, "anywhere", lambda flag, device: flag or (other and engine.calls == 2))
    monkeypatch.setattr(module, "sum_over_ranks", lambda mine: mine)
    evaluator = Evaluator(engine, {"web": Windows()}, token_bytes=TOKEN_BYTES, micro_batch=1)  # type: ignore[arg-type, dict-item]
    with pytest.raises(module.Interrupted):
        evaluator.measure(stop=lambda: not other and engine.calls == 2)
    assert engine.calls == 2


def test_a_fair_coin_costs_a_bit() -> None:
    assert bits_per_byte(80 * math.log(2), 10) == pytest.approx(8)
