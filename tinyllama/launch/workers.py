"""Processes that do one job after the other: what starts slowly, imports and a fork server, is started once for many.

Each is told the next job, a file, and answers with its exit status, through a pair of connected sockets. What a job
says goes to a log beside its file; so does what its ranks say, whose fork server knows the first job's alone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

from tinyllama.launch.lifeline import end_with
from tinyllama.launch.signals import requests

OUTPUT = "TINYLLAMA_OUTPUT"
"""The environment's word for the log of the job that a worker is doing."""


class Worker:
    """One of them, from the side that hands out jobs. It is started for its first, and anew where it has died."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """The command is started with `--jobs DESCRIPTOR --parent PID` and these variables, and is to call `serve`."""
        self._command = command
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs: Connection | None = None
        self._job: Path | None = None
        self._is_new = self._has_begun = False
        """Of this process: whether the job is its first; whether it has said that it does the job."""

    def begin(self, job: Path) -> None:
        """Hand it a job; `ended` is to be asked before the next."""
        self._job, self._has_begun = job, False
        self._is_new = self._process is None or self._process.poll() is not None
        if self._is_new:
            self.close()
            self._start(job)
        assert self._jobs is not None
        with suppress(ConnectionError):  # it has died just now, as `ended` will find
            self._jobs.send(str(job))

    def _start(self, job: Path) -> None:
        self._jobs, theirs = Pipe()
        with theirs, log_of(job).open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--jobs", str(theirs.fileno()), "--parent", str(os.getpid())],
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
        assert self._job is not None
        died = self._process.poll()  # before its answers are looked for, which may be its last act
        with suppress(EOFError, ConnectionError):
            while self._jobs.poll():
                status: int | None = self._jobs.recv()
                if status is not None:
                    return status
                self._has_begun = True
        if died is not None and not self._is_new and not self._has_begun:
            self.begin(self._job)  # it died of something else: another takes the job
            return None
        return died if died is None else died or 1

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to stop in the midst of its job, which is then saved; or kill it."""
        if self._process is not None:
            self._process.send_signal(number)

    def close(self) -> None:
        """There are no more jobs: wait until it has ended."""
        if self._jobs is not None:
            self._jobs.close()
        if self._process is not None:
            self._process.wait()


def stop(workers: Collection[Worker]) -> None:
    """Let them save what they do, and wait for it; a second Ctrl-C kills them."""
    for worker in workers:
        worker.stop()
    try:
        for worker in workers:
            worker.close()
    except KeyboardInterrupt:
        for worker in workers:
            worker.stop(signal.SIGKILL)
        raise


def log_of(job: Path) -> Path:
    """Where what a job says goes."""
    return job.with_suffix(".log")


def serve(descriptor: int, do: Callable[[Path], int], *, parent: int) -> int:
    """Do each job that is handed over, and answer with its exit status; return 0 when there are no more.

    Raises Stopped after a job in which this process was asked to stop.
    """
    end_with(parent, signal.SIGTERM)  # it saves and stops
    os.set_inheritable(descriptor, False)
    with Connection(descriptor) as jobs:
        while job := _taken(jobs):
            os.environ[OUTPUT] = str(log_of(job))
            speak_into_log()
            status = do(job)
            with suppress(ConnectionError):
                jobs.send(status)
            requests.check()
    return 0


def _taken(jobs: Connection) -> Path | None:
    """The next job, which is now this process's; None where there are no more."""
    with suppress(EOFError, ConnectionError):
        job = Path(jobs.recv())
        jobs.send(None)
        return job
    return None


def speak_into_log() -> None:
    """In a worker and in its ranks: what is printed from here on goes to the log of the job. In others, as before."""
    if name := os.environ.get(OUTPUT):
        sys.stdout.flush()
        sys.stderr.flush()
        with Path(name).open("ab") as log:
            for stream in (1, 2):
                os.dup2(log.fileno(), stream)
