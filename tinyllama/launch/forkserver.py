"""The process that CPU ranks are forked from, with what they import imported already: a rank begins in a moment.

It is Python's own fork server. It is started early, to import while the launcher does other things, and serves all runs
of a launcher. It ends when the launcher does, whatever it or its ranks are stuck in, and its ranks end with it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path

from tinyllama.launch.lifeline import LATE_SIGNALS, end_with

MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
"""glibc gives large blocks back to the system and asks for them anew at every step: a tenth of a CPU step's time."""

_VARIABLES = MEMORY | {
    # a fork takes one thread along: these libraries would start others when they are imported
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}

_server: int | None = None
"""In the server and in what is forked from it: its process id."""
_preloaded: str | None = None
"""In a launcher: what its server imports."""


def start(module: str | None = None) -> None:
    """Start the server, which imports this module and goes on serving; or see that the one that was started lives.

    For the main thread: the server ends with the thread that starts it.
    """
    global _preloaded
    _preloaded = module or _preloaded
    assert _preloaded is not None  # it has been started once
    forkserver.set_forkserver_preload(["__main__", _preloaded])
    former = signal.pthread_sigmask(signal.SIG_BLOCK, LATE_SIGNALS)  # it hands them on blocked, and takes none itself
    try:
        resource_tracker.ensure_running()  # unblocks two of them after it has started its process
        signal.pthread_sigmask(signal.SIG_BLOCK, LATE_SIGNALS)
        # it does not look for modules where this process does: Python 3.11 forgets to tell it
        with environment(unset(_VARIABLES) | {"PYTHONPATH": os.pathsep.join(sys.path)}):
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def wait() -> None:
    """Return when the server has imported all: when it forks. A signal interrupts this; it does not the start of ranks.

    Raises ChildProcessError where the server has ended instead.
    """
    process = multiprocessing.get_context("forkserver").Process(target=int, daemon=True)
    try:
        process.start()
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError("the process that ranks are forked from ended as it imported what they need") from error
    process.join()


def is_started() -> bool:
    """Whether this process has started a server."""
    return _preloaded is not None


def serve() -> None:
    """For the module that the server imports: this process is the server, and ends with the launcher."""
    global _server
    _server = os.getpid()
    end_with(os.getppid(), signal.SIGKILL)  # of a launcher that is gone already, Python's server finds its pipe closed


def parent_of_ranks(launcher: int) -> int:
    """In a rank: the process that has to be its parent, the server that it was forked from or else its launcher."""
    return _server or launcher


def parent_of(pid: int) -> int | None:
    """The parent of a process, None where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])  # its name may hold anything
    except OSError:
        return None


def unset(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that the environment does not have: a user's own come before."""
    return {name: value for name, value in variables.items() if name not in os.environ}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Within, the environment has these variables."""
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
