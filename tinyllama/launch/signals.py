"""What signals ask of a launcher while its ranks run."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any, Self

from tinyllama.launch.lifeline import LATE_SIGNALS, STOP_SIGNALS, Board


class Stopped(Exception):  # noqa: N818 - not an error: what was asked for has happened
    """A run has stopped early because it was asked to; the same command goes on with it."""

    def __init__(self, *, by_user: bool) -> None:
        super().__init__("stopped by Ctrl-C" if by_user else "stopped by a signal or the time limit")
        self.by_user = by_user
        """Whether by Ctrl-C, and not by a scheduler or the clock."""


class StopRequests:
    """Handlers that ask the ranks to stop, in place of the former ones. For a main thread.

    The ranks are asked through their board, not by a signal each: that reaches one that is still importing, too. A
    second Ctrl-C kills them and raises KeyboardInterrupt.
    """

    def __init__(self, board: Board) -> None:
        self.by_user = False
        self._board = board
        self._waiting = True
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (*STOP_SIGNALS, signal.SIGINT, signal.SIGQUIT):
            self._former[number] = signal.getsignal(number)
            # ignored from the start is what nohup and a shell's & mean
            spared = number in (signal.SIGHUP, signal.SIGINT) and self._former[number] == signal.SIG_IGN
            if number != signal.SIGQUIT and not spared:  # that one is the elastic agent's
                signal.signal(number, self._asked)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            if handler is not None:  # it was not Python's
                signal.signal(number, handler)

    def _asked(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.by_user:
                for process in multiprocessing.active_children():
                    process.kill()
                raise KeyboardInterrupt
            self.by_user = True
        self._board.ask_to_stop()
        if self._waiting:
            self._waiting = False
            raise Stopped(by_user=self.by_user)

    def there_are_no_ranks(self) -> None:
        """From here on a request raises Stopped; so does this where there has been one."""
        self._waiting = True
        if self._board.stop_asked():
            self._waiting = False
            raise Stopped(by_user=self.by_user)

    @contextmanager
    def ranks_are_started(self) -> Iterator[None]:
        """From here on a request is for the ranks to see; inside, processes start with those signals blocked.

        A signal that reaches one of them while it is importing, for seconds, then waits until it can be taken.
        """
        self._waiting = False
        former = signal.pthread_sigmask(signal.SIG_BLOCK, LATE_SIGNALS)
        try:
            resource_tracker.ensure_running()  # unblocks two of them after it has started its process
            signal.pthread_sigmask(signal.SIG_BLOCK, LATE_SIGNALS)
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
