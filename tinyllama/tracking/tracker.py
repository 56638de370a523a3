"""A run's story, told once: to the journal, and from it to MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.tracking.journal import JOURNAL, MEASURED, Journal, measured, superseded
from tinyllama.tracking.mlflow import Status
from tinyllama.tracking.store import SUPERSEDED, Mirror, superseded_text
from tinyllama.tracking.writer import MlflowWriter


class Tracker:
    """Writes each event to the journal and hands its numbers to MLflow; without either, as on all but the first rank,
    it does nothing."""

    def __init__(self, journal: Journal | None = None, mlflow: MlflowWriter | None = None, *, last: int = 0) -> None:
        self._journal = journal
        self._mlflow = mlflow
        self._last = last

    @classmethod
    def open(cls, run_dir: Path, *, config: RunConfig, digest: str, start: int) -> Tracker:
        """Open a run's journal, which says at which step this process starts, and its MLflow run, if it has one.

        Steps after `start` that were measured before are taken again, as the journal and a tag of the run then say.
        """
        journal = Journal(run_dir / JOURNAL)
        last, stretches = measured(journal.path)
        journal.write("resume" if start else "start", step=start, pid=os.getpid(), **_stretch(start, last))
        if config.tracking.name == "journal":
            return cls(journal, last=start)
        if last > start:
            stretches.append((start + 1, last))
        mirror = Mirror.of(run_dir, as_dict(config), digest=digest, stretches=stretches)
        return cls(journal, MlflowWriter(mirror), last=start)

    def tell(self, kind: str, /, **values: Any) -> None:
        """One event; see `Journal.write`. A rollback also says which measured steps it supersedes."""
        if self._journal is None:
            return
        again = _stretch(values["to"], self._last) if kind == "rollback" else {}
        record = self._journal.write(kind, **values, **again)
        if kind in MEASURED:
            self._last = values["step"]
        elif kind == "rollback":
            self._last = min(self._last, values["to"])
        if self._mlflow is not None:
            self._mlflow.metrics(record)
            if again:
                self._mlflow.tag(SUPERSEDED, superseded_text(superseded(self._journal.path)))

    def close(self, status: Status, *, artifacts: Sequence[Path] = ()) -> None:
        """The end of the run."""
        if self._mlflow is not None:
            self._mlflow.close(status, artifacts=artifacts)
        if self._journal is not None:
            self._journal.close()


def _stretch(back: int, last: int) -> dict[str, list[int]]:
    """What a line says that goes back to a step after a later one was measured."""
    return {"superseded": [back + 1, last]} if last > back else {}
