"""A run's story, told once: to the journal, and from it to MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.tracking.journal import JOURNAL, Journal
from tinyllama.tracking.mlflow import MlflowWriter, Status
from tinyllama.tracking.store import points, tracking_uri


class Tracker:
    """Writes each event to the journal and hands its numbers to MLflow; without either, as on all but the first rank,
    it does nothing."""

    def __init__(self, journal: Journal | None = None, mlflow: MlflowWriter | None = None) -> None:
        self._journal = journal
        self._mlflow = mlflow

    @classmethod
    def open(cls, run_dir: Path, *, config: RunConfig, digest: str, start: int) -> Tracker:
        """Open a run's journal, which says at which step this process starts, and its MLflow run, if it has one."""
        journal = Journal(run_dir / JOURNAL)
        journal.write("resume" if start else "start", step=start, pid=os.getpid())
        if config.tracking.name == "journal":
            return cls(journal)
        mlflow = MlflowWriter(
            run_dir,
            uri=tracking_uri(config.tracking, runs_dir=Path(config.runs_dir)),
            experiment=config.tracking.experiment,
            run_name=run_dir.name,
            params=as_dict(config),
            tags={
                "model": config.model.name,
                "data": config.data.name,
                "budget": config.budget.name,
                "parallelism": config.parallelism.name,
                "digest": digest,
            },
        )
        return cls(journal, mlflow)

    def tell(self, kind: str, /, **values: Any) -> None:
        """One event; see `Journal.write`."""
        if self._journal is None:
            return
        record = self._journal.write(kind, **values)
        if self._mlflow is not None and "step" in values:
            self._mlflow.metrics(values["step"], points(record))

    def close(self, status: Status, *, artifacts: Sequence[Path] = ()) -> None:
        """The end of the run."""
        if self._mlflow is not None:
            self._mlflow.close(status, artifacts=artifacts)
        if self._journal is not None:
            self._journal.close()
