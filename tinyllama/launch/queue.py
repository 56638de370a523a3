"""Where the jobs of a study stand on SLURM."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ENDED = frozenset(
    {
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
        *("PREEMPTED", "REVOKED", "TIMEOUT", "GONE"),
    }
)
"""States that a job does not leave by itself: SLURM's own, and GONE."""


@dataclass(frozen=True, kw_only=True)
class JobState:
    """Where a job stands."""

    id: str
    """Its id, as in `812_3`."""
    state: str
    """SLURM's word for it, or GONE where SLURM no longer knows a job that left no status: it was killed."""
    status: int | None = None
    """The exit status that its command ended with; None while it has not, or where it was killed."""
    reason: str = ""
    """Why it is where it is, by SLURM."""

    @property
    def ended(self) -> bool:
        """Whether it will change no more."""
        return self.state in ENDED


def status_file(folder: Path, id_: str, task: str) -> Path:
    """Where the task of a job on one of its nodes leaves the exit status of its command."""
    return folder / f"{id_}_{task}_status"


def states(ids: Sequence[str], *, folder: Path) -> list[JobState]:
    """Where jobs stand, in their order. Raises subprocess.CalledProcessError where SLURM does not answer."""
    asking = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i %T %r"]
    answer = subprocess.run(asking, check=True, capture_output=True, text=True).stdout
    queue = {id_: rest for id_, *rest in (line.split(maxsplit=2) for line in answer.splitlines())}
    return [_state(id_, queue.get(id_), folder) for id_ in ids]


def _state(id_: str, queued: Sequence[str] | None, folder: Path) -> JobState:
    """Where one job stands, of which SLURM says a word and a reason, or nothing some minutes after its end."""
    state, reason = queued or ("", "")
    if state and state not in ENDED:
        return JobState(id=id_, state=state, reason=reason)
    status = max((int(file.read_text()) for file in folder.glob(status_file(Path(), id_, "*").name)), default=None)
    if state == "COMPLETED":
        status = 0  # a shared disk may be late
    elif not state:
        state = "GONE" if status is None else "FAILED" if status else "COMPLETED"
    return JobState(id=id_, state=state, status=status, reason=reason)


def wait(
    ids: Sequence[str],
    *,
    folder: Path,
    progress: Callable[[Sequence[JobState]], None],
    every: float = 30.0,
) -> list[JobState]:
    """Wait until all jobs have ended, and return where they then stand, in their order.

    Where they stand goes to `progress` at first and at each change. SLURM is asked every so many seconds, and asked
    again where it does not answer. Jobs that SLURM began to forget are told by what they left in `folder`.
    """
    told: list[JobState] = []
    while True:
        with suppress(subprocess.CalledProcessError):  # a controller that is started again
            now = states(ids, folder=folder)
            if now != told:
                progress(now)
            told = now
            if all(state.ended for state in told):
                return told
        time.sleep(every)
