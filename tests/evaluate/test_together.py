"""Ranks that answer together: as one model alone does, however many they are, and all alike when something ends it.

The ranks are threads here, and their sums a table that they meet at; tests/e2e asks real ones.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.tiny import SHAPE, build
from tinyllama.evaluate import together as module
from tinyllama.evaluate.answers import Alone, Row
from tinyllama.evaluate.loss import Interrupted
from tinyllama.evaluate.together import Together

CPU = torch.device("cpu")
EOS = 2
MODEL = build(dtype=torch.float32, gain=3.0).eval().requires_grad_(False)
ALONE = Alone(MODEL, device=CPU, eos=EOS, n_tokens=SHAPE.vocab_size)
ROWS = [
    Row([(7 * n + k * k) % 61 for k in range(1 + n % 16)], [(n + k) % 61 for k in range(min(n % 4, 1 + n % 16))])
    for n in range(23)
]


class Table:
    """Where ranks meet: the sum of what each brings."""

    def __init__(self, world: int) -> None:
        self.world = world
        self._barrier = threading.Barrier(world, timeout=20)
        self._brought: dict[int, Tensor] = {}
        self.here = threading.local()

    def sum(self, mine: Tensor) -> Tensor:
        self._brought[self.here.rank] = mine.clone()
        self._barrier.wait()
        shapes = {tuple(each.shape) for each in self._brought.values()}
        assert len(shapes) == 1, "ranks are out of step"
        mine.copy_(torch.stack([self._brought[rank] for rank in range(self.world)]).sum(0))
        self._barrier.wait()
        return mine


class Rank:
    """An engine of one of them."""

    device = CPU

    def __init__(self, rank: int, world: int, *, full: bool = False) -> None:
        self.ranks: Any = SimpleNamespace(rank=rank, world_size=world, is_first=rank == 0)
        self.calls: list[int] = []
        self.beats: list[float] = []
        self._full = full

    def beat(self, step: int | None = None) -> None:
        self.beats.append(time.monotonic())

    def logits(self, tokens_bt: Tensor) -> Tensor:
        self.calls.append(len(tokens_bt))
        if self._full:
            raise torch.OutOfMemoryError
        logits: Tensor = MODEL(tokens_bt)
        return logits


def asked(
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Together], Any],
    *,
    world: int,
    stop: Callable[[int], bool] = lambda rank: False,
    full: int | None = None,
) -> tuple[list[Any], list[Rank]]:
    """What each rank came to: what the work gave or the error; None for another rank's good end."""
    table, came, ranks = Table(world), [None] * world, [Rank(rank, world, full=rank == full) for rank in range(world)]
    monkeypatch.setattr(module, "sum_over_ranks", table.sum)

    def run(rank: int) -> None:
        table.here.rank = rank
        one = Together(ranks[rank], context=SHAPE.context, eos=EOS, n_tokens=61, stop=lambda: stop(rank))
        try:
            came[rank] = one.lead(lambda: work(one)) if rank == 0 else one.follow()  # type: ignore[func-returns-value]
        except Exception as error:
            came[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return came, ranks


@pytest.mark.parametrize("world", [1, 2, 3])
def test_they_answer_as_one_alone(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """Rows of every length; more than there are ranks, and fewer."""
    came, ranks = asked(monkeypatch, lambda one: [one.answers(ROWS), one.answers(ROWS[:1])], world=world)
    expected = [ALONE.answers(ROWS), ALONE.answers(ROWS[:1])]
    for mine, other in zip(chain(*came[0]), chain(*expected), strict=True):
        assert mine.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-4)
        assert mine[1:] == other[1:]
    assert came[1:] == [None] * (world - 1)
    assert {tuple(rank.calls) for rank in ranks} == {(-(-len(ROWS) // world), 1)}, "equally often, on equally much"


def test_another_ranks_rows_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison sees rows that come back in another order."""
    came, _ = asked(monkeypatch, lambda one: one.answers(ROWS[::-1]), world=2)
    off = [abs(a.log_likelihood - b.log_likelihood) for a, b in zip(came[0], ALONE.answers(ROWS), strict=True)]
    assert max(off) > 1


@pytest.mark.parametrize("prompt", [[5], [9, 8, 7, 30], list(range(3, 18))])
def test_they_go_on_with_a_text_as_one_alone(monkeypatch: pytest.MonkeyPatch, prompt: list[int]) -> None:
    def work(one: Any) -> list[int]:
        tokens: list[int] = one.continued(prompt, max_tokens=9, ended=lambda tokens: len(tokens) == 6)
        return tokens

    expected = work(ALONE)
    assert expected
    assert asked(monkeypatch, work, world=2)[0][0] == expected


def slowly(one: Together) -> list[Any]:
    for _ in range(4):
        time.sleep(0.3)
        one.answers(ROWS[:2])
    return []


def test_work_that_reads_for_long_looks_like_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.05)
    began = time.monotonic()
    _, ranks = asked(monkeypatch, slowly, world=2)
    for rank in ranks:
        silences = [b - a for a, b in zip([began, *rank.beats], rank.beats, strict=False)]
        assert max(silences) < 0.25, "each beats between two turns"


@pytest.mark.parametrize("who", [0, 1])
def test_all_are_stopped_where_one_is_asked_to(monkeypatch: pytest.MonkeyPatch, who: int) -> None:
    """Also where the work would not ask again for a minute: it is left behind."""
    monkeypatch.setattr(module, "PAUSE", 0.05)
    began = time.monotonic()

    def work(one: Together) -> None:
        one.answers(ROWS[:3])
        time.sleep(60)

    came, _ = asked(monkeypatch, work, world=2, stop=lambda rank: rank == who and time.monotonic() - began > 0.5)
    assert [type(each) for each in came] == [Interrupted] * 2
    assert time.monotonic() - began < 10


def test_work_that_fails_ends_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(one: Together) -> None:
        one.answers(ROWS[:3])
        raise KeyError("no such column")

    came, _ = asked(monkeypatch, work, world=2)
    assert isinstance(came[0], KeyError)
    assert came[1] is None, "the others wait for nobody"


def test_a_rank_without_memory_fails_the_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(one: Together) -> str:
        with pytest.raises(MemoryError, match=r"set a smaller evaluate.batch"):
            one.answers(ROWS)
        return "went on"

    assert asked(monkeypatch, work, world=2, full=1)[0] == ["went on", None]
