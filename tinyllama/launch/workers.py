"""Processes that do one job after the other: what starts slowly, imports and a fork server, is started once for many.

Each is told the next job, a file, and answers with its exit status, through a pair of connected sockets. What a job
says goes to a log beside its file; so does what its ranks say, whose fork server knows the first job's alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from tinyllama.launch.lifeline import end_with

OUTPUT = "TINYLLAMA_OUTPUT"
"""The environment's word for the log of the job that a worker is doing."""


class Worker:
    """One of them, from the side that hands out jobs. It is started for its first, and anew where it has died."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """`command FD` is to `serve` at that descriptor, with these variables in its environment beside ours."""
        self._command = command
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs: Connection | None = None

    def begin(self, job: Path) -> None:
        """Hand it a job; `ended` is to be asked before the next."""
        if self._process is None or self._jobs is None or self._process.poll() is not None:
            self.close()
            self._start(job)
        assert self._jobs is not None
        with suppress(ConnectionError):  # it has died just now, as `ended` will say
            self._jobs.send(str(job))

    def _start(self, job: Path) -> None:
        self._jobs, theirs = Pipe()
        with theirs, log_of(job).open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                env=os.environ | self._variables,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is passed on by this process, once
            )

    def ended(self) -> int | None:
        """The exit status of its job, or the worker's own where it has died of it; None while it goes on."""
        assert self._process is not None
        assert self._jobs is not None
        died = self._process.poll()  # before its answer is looked for, which may be its last act
        with suppress(EOFError, ConnectionError):
            if self._jobs.poll():
                status: int = self._jobs.recv()
                return status
        return died if died is None else died or 1

    def stop(self) -> None:
        """Ask it to stop in the midst of its job: it saves."""
        if self._process is not None:
            self._process.terminate()

    def close(self) -> None:
        """There are no more jobs: wait until it has ended."""
        if self._jobs is not None:
            self._jobs.close()
        if self._process is not None:
            self._process.wait()


def log_of(job: Path) -> Path:
    """Where what a job says goes."""
    return job.with_suffix(".log")


def serve(descriptor: int, do: Callable[[Path], int]) -> int:
    """Do each job that is handed over, and answer with its exit status; return 0 when there are no more."""
    end_with(os.getppid(), signal.SIGTERM)  # it saves and stops
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as jobs:
        while True:
            try:
                job = Path(jobs.recv())
            except EOFError:
                return 0
            os.environ[OUTPUT] = str(log_of(job))
            speak_into_log()
            jobs.send(do(job))


def speak_into_log() -> None:
    """In a worker and in its ranks: what is printed from here on goes to the log of the job. In others, as before."""
    if name := os.environ.get(OUTPUT):
        sys.stdout.flush()
        sys.stderr.flush()
        with Path(name).open("ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
