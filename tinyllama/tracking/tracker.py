"""A run's story, told once: to the journal, and from it to MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllama.tracking.journal import Journal
from tinyllama.tracking.mlflow import MlflowWriter, Status
from tinyllama.tracking.store import points


class Tracker:
    """Writes each event to the journal and hands its numbers to MLflow; without either, as on all but the first rank,
    it does nothing."""

    def __init__(self, journal: Journal | None = None, mlflow: MlflowWriter | None = None) -> None:
        self._journal = journal
        self._mlflow = mlflow

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
