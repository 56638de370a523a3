"""The parent run of a study in MLflow, and its children that nobody else closes. No store ever stops a study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.tracking import sync
from tinyllama.tracking.folder import CONFIG
from tinyllama.tracking.journal import JOURNAL
from tinyllama.tracking.mlflow import MlflowRun, Status
from tinyllama.tracking.store import Mirror, reach, without_password

_log = logging.getLogger(__name__)


class Parent:
    """A study's run in MLflow, or nothing where there is no store."""

    def __init__(self, run: MlflowRun | None, uri: str) -> None:
        self._run, self._uri = run, uri
        self._status: Status = "KILLED"

    @classmethod
    @contextmanager
    def opened(cls, config: RunConfig, folder: Path, name: str, *, report: Callable[[str], None]) -> Iterator[Parent]:
        """Open a study's run, or go on with it; whatever ends the block closes it."""
        parent = cls(None, "")
        if config.tracking.name == "mlflow":
            mirror = Mirror.of_study(folder, as_dict(config), name=name)
            parent._uri = mirror.uri
            with parent._told(report):
                reach(mirror.uri, timeout=sync.REACH_WITHIN)
                parent._run = MlflowRun(mirror)
        try:
            yield parent
        except BaseException as error:
            parent._status = "FAILED" if isinstance(error, Exception) else "KILLED"
            raise
        finally:
            if parent._run is not None:
                with parent._told(report):
                    parent._run.end(parent._status)

    def close_child(self, run_dir: Path) -> None:
        """Bring the end of a point to MLflow that its own processes could not tell, as they were killed."""
        if self._run is None or not (run_dir / CONFIG).exists() or not (run_dir / JOURNAL).exists():
            return
        with self._told(_log.warning):
            sync.close(run_dir)

    def finish(self, artifacts: Sequence[Path], *, failed: bool) -> None:
        """What the study ends with."""
        self._status = "FAILED" if failed else "FINISHED"
        if self._run is not None:
            with self._told(_log.warning):
                for path in artifacts:
                    self._run.upload(path)

    @contextmanager
    def _told(self, report: Callable[[str], None]) -> Iterator[None]:
        """A store that fails is a line, not an error."""
        try:
            yield
        except Exception as error:
            why = without_password(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
            report(f"MLflow at {without_password(self._uri)} did not take the study ({why}): its runs go on")
