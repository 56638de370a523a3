"""All ranks of a run as one that is asked: the first asks, and every rank answers its share of the rows.

The work that asks runs in a thread of the first rank, and all that ranks say to each other in their main threads, by
turns, at least one a second. So every rank gives signs of life and hears of a request to stop, however long the work
reads or downloads between two questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from tinyllama.engine.distributed import Ranks, sum_over_ranks
from tinyllama.evaluate.answers import Answer, Row, answers, read
from tinyllama.evaluate.loss import Ask, Interrupted

Result = TypeVar("Result")
PAUSE = 0.5
"""Seconds between two turns while nothing is asked."""


class Engine(Protocol):
    """What answers: a training engine."""

    ranks: Ranks
    device: torch.device
    beat: Callable[..., None]

    def logits(self, tokens_bt: Tensor) -> Tensor:
        """Logits [b, t, v] of every position; every rank calls it equally often."""


class Turn(IntEnum):
    """What the first rank says to the others."""

    WAIT = 1
    ROWS = 2
    END = 3


class Together:
    """The ranks of an engine; the first one's `Answerer`, in the thread of its work alone."""

    def __init__(self, engine: Engine, *, context: int, eos: int, n_tokens: int, stop: Ask) -> None:
        """eos ends a document, n_tokens are those that the tokenizer has; `stop` says whether this rank is to stop."""
        self._engine = engine
        self._context = context
        self._eos = eos
        self._n_tokens = n_tokens
        self._stop = stop
        self._asked: SimpleQueue[Sequence[Row] | None] = SimpleQueue()
        self._answered: SimpleQueue[list[Answer] | Exception] = SimpleQueue()

    def lead(self, work: Callable[[], Result]) -> Result:
        """The first rank's part: do the work, which may ask. Raises what it raises.

        Raises Interrupted, on all ranks, once any of them is to stop; work that does not ask again is left behind.
        """
        done: list[Result] = []
        raised: list[BaseException] = []

        def run() -> None:
            try:
                done.append(work())
            except BaseException as error:
                raised.append(error)
            finally:
                self._asked.put(None)

        Thread(target=run, name="harness", daemon=True).start()
        try:
            while True:
                try:
                    rows = self._asked.get(timeout=PAUSE)
                except Empty:
                    self._turn(Turn.WAIT)
                    continue
                if rows is None:
                    self._turn(Turn.END)
                    break
                self._answered.put(self._turn(Turn.ROWS, rows)[1])
        except Interrupted as interrupted:
            self._answered.put(interrupted)
            raise
        if raised:
            raise raised[0]
        return done[0]

    def follow(self) -> None:
        """Another rank's part: answer until the first has asked all. Raises Interrupted."""
        while self._turn()[0] != Turn.END:
            pass

    def answers(self, rows: Sequence[Row]) -> list[Answer]:
        """To every row, in order. Raises Interrupted, MemoryError where they are too many for a rank's memory."""
        self._asked.put(rows)
        answered = self._answered.get()
        if isinstance(answered, Exception):
            raise answered
        return answered

    def continued(self, prompt: Sequence[int], *, max_tokens: int, ended: Callable[[list[int]], bool]) -> list[int]:
        """The likeliest tokens after a prompt, each by a pass of its own: a training engine keeps no keys and values.

        Up to the end of the document or of the context, or until they have `ended`.
        """
        tokens: list[int] = []
        while len(tokens) < min(max_tokens, self._context - len(prompt)):
            [answer] = self.answers([Row([*prompt, *tokens], ())])
            if answer.following == self._eos:
                break
            tokens.append(answer.following)
            if ended(tokens):
                break
        return tokens

    def _turn(self, says: int = 0, rows: Sequence[Row] = ()) -> tuple[int, list[Answer] | Exception]:
        """One turn, in step with every other rank: what the first says, and the answers to its rows."""
        longest = max((len(row.inputs) for row in rows), default=0)
        header = torch.tensor([says, len(rows), longest, int(self._stop())], device=self._engine.device)
        says, n_rows, longest, stopped = sum_over_ranks(header).tolist()
        self._engine.beat()
        if stopped:
            raise Interrupted
        if says != Turn.ROWS:
            return says, []
        return says, self._shared(_unpacked(sum_over_ranks(_packed(rows, n_rows, longest).to(self._engine.device))))

    def _shared(self, rows: list[Row]) -> list[Answer] | Exception:
        """The answers of all ranks, each of which calls the engine once, on equally many rows."""
        world, rank = self._engine.ranks.world_size, self._engine.ranks.rank
        mine = rows[rank::world]
        spare = -(-len(rows) // world) - len(mine)
        numbers = torch.zeros(len(rows) + 1, 3, dtype=torch.float64, device=self._engine.device)
        try:
            found = answers(
                self._engine.logits,
                [*mine, *rows[:1] * spare],
                device=self._engine.device,
                n_tokens=self._n_tokens,
            )
            numbers[rank:-1:world] = found[: len(mine)]
        except torch.OutOfMemoryError:
            numbers[-1] = 1
        sum_over_ranks(numbers)
        if numbers[-1].any():
            return MemoryError("out of memory: set a smaller evaluate.batch")
        return read(numbers[:-1])


def _packed(rows: Sequence[Row], n_rows: int, longest: int) -> Tensor:
    """Rows as int64 [rows, 2 + 2 longest]: how many inputs and targets there are, then those; zeros without any."""
    packed = torch.zeros(n_rows, 2 + 2 * longest, dtype=torch.int64)
    for index, (inputs, targets) in enumerate(rows):
        whole = [len(inputs), len(targets), *inputs, *targets]
        packed[index, : len(whole)] = torch.tensor(whole)
    return packed


def _unpacked(packed: Tensor) -> list[Row]:
    return [Row(row[2 : 2 + n], row[2 + n : 2 + n + m]) for row in packed.tolist() for n, m in [row[:2]]]
