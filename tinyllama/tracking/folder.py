"""A run's folder: the names in it that others look for, and who may write into it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

CONFIG = "config.json"
READABLE = "config.yaml"
PLAN = "plan.json"
RESULT = "result.json"
CURVE = "curve.png"

PATIENCE = 1.0
"""Seconds to try again where a folder is kept by another process, which may only be looking who has it."""
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a filesystem says that has no locks."""
_log = logging.getLogger(__name__)


@contextmanager
def alone(run_dir: Path, *, meet: str | None = None) -> Iterator[bool]:
    """Keep every other process out of a run's folder. Raises ValueError where one is in it.

    The launchers of one run on several machines are let in together, by the address where they meet. Gives whether this
    one is the first of them: it keeps the folder, and it alone is to write down there what is trained. On a filesystem
    without locks nobody is kept out, and a warning says so. Raises OSError where the lock can not be had otherwise.
    """
    path = _lock(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _opened(path) as file:
        yield _is_first(file, path, run_dir=run_dir, meet=meet)


def is_kept(run_dir: Path) -> bool:
    """Whether a process keeps others out of a run's folder. It only looks, and two that look do not meet."""
    try:
        with _lock(run_dir).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return False


def _lock(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.lock")


def _opened(path: Path) -> IO[str]:
    try:
        return path.open("a")
    except OSError as error:
        raise _no_lock(path, error) from error


def _is_first(file: IO[str], path: Path, *, run_dir: Path, meet: str | None) -> bool:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if meet is not None and path.read_text() == meet:
                return False
            if time.monotonic() > end:
                raise ValueError(
                    f"run_dir: another process is training in {run_dir}: let it end, or stop it"
                ) from error
            time.sleep(PATIENCE / 20)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise _no_lock(path, error) from error
            _log.warning(
                "the filesystem of %s has no locks (%s): see to it that no other process trains in %s",
                path.parent,
                error.strerror,
                run_dir,
            )
            return True
        else:
            file.truncate(0)  # whom it was kept for before
            file.write(meet or "")
            file.flush()
            os.fsync(file.fileno())  # for other machines to read
            return True


def _no_lock(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"{path} can not be locked ({error.strerror}): let this user write there, or choose another folder for runs",
    )
