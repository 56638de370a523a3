"""What signals and the time limit ask of a process, from its first moment to its last."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

from tinyllama.launch.lifeline import LATE_SIGNALS, STOP_SIGNALS, Board

PATIENCE = 5.0
"""Seconds that a library's C has to come back to Python after a request. The training of a tokenizer takes hours."""

_REQUESTS = (*STOP_SIGNALS, signal.SIGALRM, signal.SIGINT)


class Stopped(SystemExit):
    """Not an error: this process has stopped early because it was asked to; the same command goes on with its work.

    It passes every `except Exception`, and where nobody takes it the process ends with its status.
    """

    def __init__(self, *, by_user: bool) -> None:
        self.status = 130 if by_user else os.EX_TEMPFAIL
        super().__init__(self.status)
        self.by_user = by_user
        """Whether by Ctrl-C, and not by a scheduler or the clock."""

    def __str__(self) -> str:
        return "stopped by Ctrl-C" if self.by_user else "stopped by a signal or the time limit"


class StopRequests:
    """Handlers of the signals that ask a process to stop, and its time limit. For a main thread.

    A request raises Stopped in it, once. Ranks are asked through their board instead, not by a signal each: that
    reaches one that is still importing, too. A second Ctrl-C kills all that was started and raises KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.by_user = False
        self._began = time.monotonic()
        self._asked = False
        self._waiting = True
        self._board: Board | None = None

    def begin(self) -> None:
        """Take requests from here on; the time limit counts from where this was made."""
        for number in _REQUESTS:
            # ignored from the start is what nohup and a shell's & mean
            spared = number in (signal.SIGHUP, signal.SIGINT) and signal.getsignal(number) == signal.SIG_IGN
            if not spared:
                signal.signal(number, self._ask)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._insist, args=(reader,), name="requests", daemon=True).start()

    def around(self, work: Callable[[], int], *, say: Callable[[str], None]) -> int:
        """The exit status that work returns, or that of the request which ended it. Any later one comes too late."""
        try:
            try:
                status = work()
            except Exception:
                self.check()  # a library in whose midst a request is raised may make another error of it
                raise
        except Stopped as stopped:
            say(f"{stopped}: the same command goes on where this one stopped")
            status = stopped.status
        except KeyboardInterrupt:
            say("interrupted: the same command goes on from the newest checkpoint")
            status = 130
        for number in _REQUESTS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGINT else signal.SIG_IGN)
        return status

    def begin_part(self, time_limit: int | None) -> None:
        """A part of the work begins, which is to stop so many seconds after the process began; see `check`."""
        left = math.inf if time_limit is None else self._began + time_limit - time.monotonic()
        self._asked |= left <= 0
        signal.setitimer(signal.ITIMER_REAL, left if 0 < left < math.inf else 0)
        self.check()

    def check(self) -> None:
        """Raise Stopped where there has been a request; from here on one raises it. There are no ranks."""
        self._waiting = not self._asked
        if self._asked:
            raise Stopped(by_user=self.by_user)

    def _ask(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self.by_user:
                for process in multiprocessing.active_children():
                    process.kill()
                raise KeyboardInterrupt
            self.by_user = True
        self._asked = True
        if self._board is not None:
            self._board.ask_to_stop()
        if self._waiting:
            self._waiting = False
            raise Stopped(by_user=self.by_user)

    def _insist(self, reader: int) -> None:
        """A thread: what a handler would do, where the main thread is in C and takes none."""
        while number := os.read(reader, 1)[0]:
            if number in _REQUESTS:
                time.sleep(PATIENCE)
                if not self._asked and self._board is None:
                    os._exit(130 if number == signal.SIGINT else os.EX_TEMPFAIL)

    @contextmanager
    def passed_to(self, board: Board) -> Iterator[None]:
        """Within, requests are passed on to the ranks that read this board."""
        quit_ = signal.getsignal(signal.SIGQUIT)  # which the elastic agent takes
        self._board = board
        try:
            self.check()
            yield
        finally:
            self._board = None
            self._waiting = not self._asked
            if quit_ is not None:  # it was not Python's
                signal.signal(signal.SIGQUIT, quit_)

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


requests = StopRequests()
"""The process's own."""
