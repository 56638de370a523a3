"""The launcher's watch over its ranks: none may be silent for long, and none may be left behind by one that died."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tinyllama.launch.lifeline import Board, State

GRACE = 8
"""Seconds that ranks have to end by themselves once one of them is lost. The elastic agent would give them 30."""

_INTERVAL = 0.5
_DUMP = 2
"""Seconds for all ranks to write their stacks: on a busy machine it takes tenths of one."""

_WORDS = {
    "R": "computing",
    "S": "waiting",
    "D": "waiting in the kernel",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
}


def dump_of(folder: Path, local: int) -> Path:
    """Where a rank writes its stacks when it gets SIGUSR1."""
    return folder / f"stacks-{local}"


@dataclass(frozen=True)
class Watched:
    """A rank of this machine."""

    local: int
    rank: int
    pid: int
    parent: int | None
    """The process that started it; None where it has ended already."""

    def state(self) -> str | None:
        """The kernel's letter for what its process does; None where it has ended."""
        try:
            # its name, in parentheses, may hold anything
            letter, parent = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            return None
        if letter in "ZX" or int(parent) != self.parent:  # another process has its number by now
            return None
        return letter


class Watch(threading.Thread):
    """Looks at the ranks twice a second, in a thread of its own: the main thread waits inside torch."""

    def __init__(self, board: Board, *, hang_after: int, dumps: Path, stacks: Path) -> None:
        super().__init__(name="watch", daemon=True)
        self.verdict: tuple[int, str] | None = None
        """The rank that hung in this attempt, and what is known of it."""
        self.killed: set[int] = set()
        """The local ranks that were killed from here, and so did not die of themselves."""
        self._board = board
        self._hang_after = hang_after
        self._dumps = dumps
        self._stacks = stacks
        self._group: Sequence[Watched] = ()
        self._lost_at: float | None = None
        self._turn = threading.Lock()
        self._looked_at = self._awake_at = time.monotonic()
        self._over = threading.Event()

    def begin(self, group: Sequence[Watched]) -> None:
        """Watch these ranks, whose slots have been cleared; what is being found of those before is dropped."""
        with self._turn:
            self.verdict, self.killed, self._lost_at = None, set(), None
            self._group = group

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """The thread."""
        while not self._over.wait(_INTERVAL):
            with self._turn:
                self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > 10 * _INTERVAL:
            # this process was stopped itself, as by Ctrl-Z: so were the ranks, and their silence counts from here
            self._awake_at = now
        self._looked_at = now
        states = {one: one.state() for one in self._group}
        alive = {one: state for one, state in states.items() if state is not None}
        said = {one: self._board.state(one.local) for one in states}
        if not alive or all(state == State.FINISHED for state in said.values()):
            return
        if any(one not in alive or said[one] >= State.FAILED for one in states):
            self._lost_at = self._lost_at or now
            late = now - self._lost_at > GRACE
            gone = len(alive) < len(states)  # else it is on its way out
            # a rank that has finished waits for the agent, which waits for the others
            self._kill(one for one in alive if late or (gone and said[one] == State.FINISHED))
            return
        beating = [one for one in alive if said[one] == State.BEATING]
        silent = [one for one in beating if now - max(self._board.beat(one.local), self._awake_at) > self._hang_after]
        if silent:
            # where all wait for one, that one is stopped, or it is behind
            worst = min(
                beating,
                key=lambda one: (
                    alive[one] not in "Tt",
                    one not in silent,
                    self._board.step(one.local),
                    self._board.beat(one.local),
                ),
            )
            told = f"no sign of life for {self._hang_after} s ({_words(alive[worst])}); "
            self.verdict = worst.rank, told + self._write_stacks(alive, now)
            self._kill(alive)

    def _write_stacks(self, alive: dict[Watched, str], now: float) -> str:
        heads = {one: self._head(one, state, now) for one, state in alive.items()}  # before those that can go on do
        for one, state in alive.items():
            with suppress(ProcessLookupError):
                if state == "T":
                    os.kill(one.pid, signal.SIGCONT)
                os.kill(one.pid, signal.SIGUSR1)
        time.sleep(_DUMP)
        try:
            self._stacks.mkdir(parents=True, exist_ok=True)
            for one, head in heads.items():
                dump = dump_of(self._dumps, one.local)
                stack = dump.read_text(errors="replace") if dump.exists() else ""
                (self._stacks / f"rank-{one.rank}.txt").write_text(f"{head}\n\n{stack or 'it wrote no stack'}")
        except OSError as error:
            return f"the stacks could not be written: {error}"
        return f"stacks of all ranks in {self._stacks}"

    def _head(self, one: Watched, state: str, now: float) -> str:
        beat = f"last sign of life {max(0.0, now - self._board.beat(one.local)):.1f} s before"
        starting = self._board.state(one.local) == State.STARTING
        how = "still starting" if starting else f"{beat}, at step {self._board.step(one.local)}"
        return f"rank {one.rank}, process {one.pid}: {_words(state)}; {how}"

    def _kill(self, ranks: Iterable[Watched]) -> None:
        for one in ranks:
            self.killed.add(one.local)
            with suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)


def _words(state: str) -> str:
    return _WORDS.get(state, state)
