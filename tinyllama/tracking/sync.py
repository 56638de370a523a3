"""task=sync: what MLflow lacks of runs that have been, from their journals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tinyllama.tracking.folder import CONFIG, CURVE, PLAN, READABLE, RESULT, is_kept
from tinyllama.tracking.journal import JOURNAL, read_both
from tinyllama.tracking.mlflow import MlflowRun, Status
from tinyllama.tracking.store import Mirror, reach, series, without_password

ARTIFACTS = (READABLE, PLAN, RESULT, CURVE)
REACH_WITHIN = 5.0
"""Seconds in which a store has to take a connection."""


class StoreError(OSError):
    """An MLflow store did not take what it was sent."""


def find_runs(runs_dir: Path) -> list[Path]:
    """The run folders in a folder that have a journal. Raises ValueError where there is none."""
    found = sorted(path.parent for path in runs_dir.glob(f"*/{CONFIG}") if (path.parent / JOURNAL).exists())
    if not found:
        raise ValueError(f"runs_dir: {runs_dir} holds no run with a journal: set runs_dir, or sync.run to one run")
    return found


def sync(run_dirs: Iterable[Path], *, uri: str | None, report: Callable[[str], None]) -> int:
    """Bring runs to MLflow as their folders tell them, each to its own store or all to `uri`; how many there were.

    What a store already has is not sent again. Each run is a line to `report`. Raises ValueError, before anything is
    sent, where a folder holds no run, and StoreError at the first run that its store does not take.
    """
    runs = [(run_dir, *_told(run_dir, uri)) for run_dir in run_dirs]
    for run_dir, mirror, records in runs:
        store, status = without_password(mirror.uri), _status(run_dir)
        try:
            reach(mirror.uri, timeout=REACH_WITHIN)
            sent = _send(mirror, records, status)
        except Exception as error:
            why = without_password(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
            raise StoreError(
                f"MLflow at {store} did not take {run_dir} ({why}): see that it runs, or set tracking.uri, and sync "
                f"again; {run_dir / JOURNAL} has every number"
            ) from error
        numbers = sum(len(series(record)) for record in records)
        report(f"{run_dir}: {sent:,} of {numbers:,} numbers were missing at {store}, now {status or 'RUNNING'}")
    return len(runs)


def close(run_dir: Path) -> None:
    """End a run's MLflow run as the folder says it ended, where the store still has it as running."""
    mirror, records = _told(run_dir, None)
    status = _status(run_dir)
    if status is not None and MlflowRun(mirror, running=False).is_running:
        _send(mirror, records, status)


def _told(run_dir: Path, uri: str | None) -> tuple[Mirror, list[dict[str, Any]]]:
    """What a run folder says: the frozen configuration as it is, so that runs of other versions can be read as well."""
    try:
        whole = json.loads((run_dir / CONFIG).read_text())
        records, stretches = read_both(run_dir / JOURNAL)
        mirror = Mirror.of(run_dir, whole["config"], digest=whole["digest"], stretches=stretches, uri=uri)
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{run_dir} holds no run with a journal ({error}): name the folder of a run") from error
    return mirror, records


def _send(mirror: Mirror, records: list[dict[str, Any]], status: Status | None) -> int:
    """Everything of one run; how many numbers were missing."""
    times = [record["time"] for record in records] or [None]
    run = MlflowRun(mirror, started=times[0], running=status is None)
    sent = run.replay(records)
    for path in (mirror.run_dir / name for name in ARTIFACTS):
        if path.exists():
            run.upload(path)
    if status is not None:
        run.end(status, at=times[-1])
    return sent


def _status(run_dir: Path) -> Status | None:
    """How a run ended, by its result; None while a process has it."""
    if is_kept(run_dir):
        return None
    result = run_dir / RESULT
    ended: dict[str, Status] = {"finished": "FINISHED", "failed": "FAILED"}
    return ended.get(json.loads(result.read_text())["status"], "KILLED") if result.exists() else "KILLED"
