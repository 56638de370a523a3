"""Each rank's line to the launcher that started it: what both can read at any time, whatever the other is stuck in.

The line is a small file that both map into memory, not a pipe: writing to it waits for no reader, and it holds a
failure's traceback too, whose room is taken beforehand because the disk may be full by then.
"""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import mmap
import os
import signal
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)
"""What schedulers send some time before they kill, and a terminal that is closed."""

LATE_SIGNALS = {*STOP_SIGNALS, signal.SIGINT, signal.SIGUSR1}
"""What a rank can take only once it has its handlers: it is started with them blocked."""

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that is full, or the user's share of it."""

_FINAL = (ValueError, ArithmeticError, FileNotFoundError)
_PR_SET_PDEATHSIG = 1

_STOP = 0
_HEADER = 1
_STATE, _BEAT, _STEP = range(3)
_SLOT = 3
_TEXT = 1 << 16


class State(IntEnum):
    """How far a rank is."""

    STARTING = 0
    BEATING = 1
    RESTING = 2
    FINISHED = 3
    FAILED = 4
    FAILED_FOR_GOOD = 5
    DISK_FULL = 6
    OUT_OF_MEMORY = 7


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a rank raised."""

    at: float
    state: State
    message: str
    traceback: str


class Board:
    """The memory that a launcher shares with its ranks on this machine: numbers of 8 bytes, then room for tracebacks.

    A number is written by one side only and in one move of the processor, so nothing here is locked.
    """

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        self.ranks = (len(memory) - 8 * _HEADER) // (8 * _SLOT + _TEXT)
        numbers = 8 * (_HEADER + _SLOT * self.ranks)
        self._numbers = memoryview(memory)[:numbers].cast("d")
        self._texts = memoryview(memory)[numbers:]

    @classmethod
    def in_memory(cls) -> Board:
        """A board of one rank that no launcher looks at."""
        return cls(bytearray(_size(1)))

    @classmethod
    def create(cls, path: Path, *, ranks: int) -> Board:
        """A new board in a file, for so many ranks."""
        path.write_bytes(bytes(_size(ranks)))  # not a hole: writing to it later takes no disk
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> Board:
        """A board that has been created."""
        with path.open("r+b") as file:
            return cls(mmap.mmap(file.fileno(), 0))

    def clear(self) -> None:
        """Make every rank's slot that of one which has not started; what was asked of all stays asked."""
        for index in range(_HEADER, len(self._numbers)):
            self._numbers[index] = 0

    def ask_to_stop(self) -> None:
        """Ask every rank, also of a later attempt, to stop."""
        self._numbers[_STOP] = 1

    def stop_asked(self) -> bool:
        """Whether all ranks are to stop."""
        return self._numbers[_STOP] != 0

    def state(self, local: int) -> State:
        """How far a rank is."""
        return State(int(self._numbers[_HEADER + _SLOT * local + _STATE]))

    def beat(self, local: int) -> float:
        """When a rank gave its last sign of life, on the clock of time.monotonic, which all processes share."""
        return self._numbers[_HEADER + _SLOT * local + _BEAT]

    def step(self, local: int) -> int:
        """The step that a rank last named."""
        return int(self._numbers[_HEADER + _SLOT * local + _STEP])

    def write(self, local: int, *, beat: float | None = None, step: int | None = None, state: State | None) -> None:
        """Change what a rank's slot says."""
        at = _HEADER + _SLOT * local
        if beat is not None:
            self._numbers[at + _BEAT] = beat
        if step is not None:
            self._numbers[at + _STEP] = step
        if state is not None:  # last, as the others are looked at by it
            self._numbers[at + _STATE] = state

    def write_failure(self, local: int, error: BaseException) -> None:
        """Keep what a rank raised."""
        state = State.FAILED_FOR_GOOD if isinstance(error, _FINAL) else State.FAILED
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            state = State.DISK_FULL
        if type(error).__name__ == "OutOfMemoryError" and not self.step(local):
            state = State.OUT_OF_MEMORY  # torch's; once a step was taken, what it needs does fit
        message = f"{type(error).__name__}: {error}".replace("\0", "")[: _TEXT // 16]
        calls = "".join(traceback.format_exception(error)).replace("\0", "")
        begin = message.encode(errors="replace") + b"\0"
        room = _TEXT - len(begin) - 1
        text = begin + calls.encode(errors="replace")[-room:] + b"\0"
        self._texts[_TEXT * local : _TEXT * local + len(text)] = text
        self.write(local, beat=time.monotonic(), state=state)

    def failure(self, local: int) -> Failure | None:
        """What a rank raised, if it did."""
        state = self.state(local)
        if state < State.FAILED:
            return None
        text = bytes(self._texts[_TEXT * local : _TEXT * (local + 1)]).split(b"\0")
        message, calls = (part.decode(errors="replace") for part in text[:2])
        return Failure(at=self.beat(local), state=state, message=message, traceback=calls)


def _size(ranks: int) -> int:
    return 8 * _HEADER + (8 * _SLOT + _TEXT) * ranks


def end_with(parent: int, number: signal.Signals) -> None:
    """Let this process get a signal when the one with this process id, which started it, ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it died before
        os._exit(1)


class Lifeline:
    """A rank's end of the line. One that is made without a board belongs to no launcher, as in a test."""

    def __init__(self, board: Board | None = None, *, local: int = 0) -> None:
        self._board = board or Board.in_memory()
        self._local = local
        self._asked = False
        self._resting = False

    @classmethod
    def attach(cls, board: Path, *, local: int, parent: int, stacks: Path) -> Lifeline:
        """Make this process a rank: it ends with its parent, which has this process id, and takes signals as asked.

        Its main thread only. From here on SIGUSR1 writes all stacks into `stacks`, whatever the threads are stuck in.
        """
        # Kills a rank that is stopped or stuck in C as well. It fires when the thread that started this process ends,
        # which is the main thread of the launcher or of its fork server.
        end_with(parent, signal.SIGKILL)
        line = cls(Board.open(board), local=local)
        # faulthandler writes to the descriptor from a signal handler in C: the file is open as long as the process
        faulthandler.register(signal.SIGUSR1, file=os.open(stacks, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), chain=False)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the launcher asks instead
        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored is what nohup means
                signal.signal(number, line._ask)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LATE_SIGNALS)
        return line

    def _ask(self, *_: object) -> None:
        self._asked = True

    def beat(self, step: int | None = None) -> None:
        """Say that this rank is alive, and at which step; from the first time on its silence is a fault."""
        self._board.write(self._local, beat=time.monotonic(), step=step, state=None if self._resting else State.BEATING)

    def rest(self) -> None:
        """Be watched no longer, for good: this rank waits for no other one any more."""
        self._resting = True
        self._board.write(self._local, beat=time.monotonic(), state=State.RESTING)

    def stop_asked(self) -> bool:
        """Whether to stop: a signal has reached this rank or the launcher. Ranks differ in it."""
        return self._asked or self._board.stop_asked()

    def finish(self) -> None:
        """Say that this rank's function has returned."""
        self._board.write(self._local, beat=time.monotonic(), state=State.FINISHED)

    def fail(self, error: BaseException) -> None:
        """Keep what this rank's function raised where the launcher finds it."""
        self._board.write_failure(self._local, error)


def first(failures: Iterable[tuple[int, Failure]]) -> tuple[int, Failure] | None:
    """The failure that others followed from: of those that trying again would not mend, else of all, the earliest."""
    return min(failures, key=lambda one: (one[1].state == State.FAILED, one[1].at), default=None)
