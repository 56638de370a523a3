"""The parent run of a study in MLflow, and its children that nobody else closes. No store ever stops a study."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.tracking import sync
from tinyllama.tracking.folder import CONFIG
from tinyllama.tracking.journal import JOURNAL
from tinyllama.tracking.mlflow import MlflowRun, Status
from tinyllama.tracking.store import (
    DESCRIPTION,
    NOTE,
    TAG_LENGTH,
    Mirror,
    noted_run,
    reach,
    ui_command,
    without_password,
)

_log = logging.getLogger(__name__)


class Parent:
    """A study's run in MLflow, or nothing where there is no store."""

    def __init__(self, mirror: Mirror | None) -> None:
        self._mirror = mirror
        self._run: MlflowRun | None = None
        self._status: Status = "KILLED"

    @classmethod
    @contextmanager
    def opened(cls, config: RunConfig, folder: Path, *, told: str, report: Callable[[str], None]) -> Iterator[Parent]:
        """Open a study's run, or go on with it; whatever ends the block closes it."""
        tracked = config.tracking.name == "mlflow"
        parent = cls(Mirror.of_study(folder, as_dict(config), name=str(config.study.name)) if tracked else None)
        if parent._mirror is not None:
            with parent._told(report):
                reach(parent._mirror.uri, timeout=sync.REACH_WITHIN)
                parent._run = MlflowRun(parent._mirror)
                parent._run.tag({DESCRIPTION: parent._described(told, [])})
                report(f"in MLflow: {ui_command(parent._mirror.uri)}, then {parent._run.page}")
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

    def finish(
        self, told: str, points: Sequence[Mapping[str, Any]], artifacts: Sequence[Path], *, failed: bool
    ) -> None:
        """What the study ends with: a line, rows with a point's name, folder, size, tokens and loss, and files."""
        self._status = "FAILED" if failed else "FINISHED"
        if self._run is not None:
            with self._told(_log.warning):
                self._run.tag({DESCRIPTION: self._described(told, points)})
                for path in artifacts:
                    self._run.upload(path)
                for point in points:  # a point may have been trained before it was one of these
                    if run_id := self._run_of(point):
                        self._run.call(run_id, point["point"])

    def _run_of(self, point: Mapping[str, Any]) -> str | None:
        assert self._mirror is not None
        return noted_run(Path(point["run_dir"]) / NOTE, self._mirror.place)

    def _described(self, told: str, points: Sequence[Mapping[str, Any]]) -> str:
        """The page of the study's run: the way to its curves and its comparison, and the points, if they fit."""
        assert self._run is not None
        experiment = self._run.experiment_id
        known = quote(json.dumps([run_id for run_id in map(self._run_of, points) if run_id], separators=(",", ":")))
        table = ["| point | parameters | tokens | loss | status |", "|---|---|---|---|---|"]
        for point in points:
            loss = "" if point["loss"] is None else f"{point['loss']:.4f}"
            columns = (point["point"], f"{point['params']:,}", f"{point['tokens']:,}", loss, point["status"])
            table.append("| " + " | ".join(text.replace("|", "/") for text in columns) + " |")
        compare = f"[Compare the points](#/compare-runs?runs={known}&experiments={quote(json.dumps([experiment]))})"
        text = told
        for part in (
            compare if points else "",
            f"[Curves](#/experiments/{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning): open the "
            "study by its plus sign; to draw over tokens, choose them under the cogwheel, X-axis, Metric.",
            "\n".join(table) if points else "",
        ):
            if part and len(text) + len(part) + 2 <= TAG_LENGTH:
                text += f"\n\n{part}"
        return text

    @contextmanager
    def _told(self, report: Callable[[str], None]) -> Iterator[None]:
        """A store that fails is a line, not an error."""
        try:
            yield
        except Exception as error:
            assert self._mirror is not None
            why = without_password(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
            report(f"MLflow at {without_password(self._mirror.uri)} did not take the study ({why}): its runs go on")
