"""What task=evaluate writes down: result.json, and where a run's journal is, its scores there and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllama.config.tasks import Evaluate
from tinyllama.data.manifest import Manifest
from tinyllama.evaluate.loss import SourceLoss
from tinyllama.evaluate.results import as_record, asked_at
from tinyllama.tracking.folder import RESULT, alone
from tinyllama.tracking.journal import JOURNAL, add_tasks
from tinyllama.tracking.record import write_json


class Notes:
    """The results of one model, in a folder that no other process writes in meanwhile."""

    def __init__(self, place: Path, how: Evaluate, *, step: int | None, tokens: int | None) -> None:
        """The folder, and how far the model was trained in steps and tokens, where that is known."""
        self.place = place
        self._how = how
        self._step = step
        self._tokens = tokens

    def held_out(self, measured: Mapping[str, SourceLoss], data: Manifest) -> None:
        """Losses; those that a finished run measured at its end stay."""
        found = {
            name: {**asdict(loss), "gzip_bits_per_byte": data.sources[name].held_out.gzip_bits_per_byte}
            for name, loss in measured.items()
        }
        new = {"held_out": found, "held_out_at": {"step": self._step, "tokens": self._tokens}}
        with alone(self.place):
            self._change(lambda earlier: {} if earlier["status"] == "finished" else new)

    def tasks(self, scores: Mapping[str, dict[str, float]], failed: Mapping[str, str]) -> None:
        """Scores, beside those of other tasks that were asked alike; a run's journal has them too, once."""
        at = asked_at(self._how, step=self._step, tokens=self._tokens, failed=failed)

        def new(earlier: dict[str, Any]) -> dict[str, Any]:
            known = earlier.get("tasks_at", {})
            alike = all(known.get(key) == at[key] for key in ("step", "shots", "limit"))
            return {"tasks": (earlier.get("tasks", {}) if alike else {}) | dict(scores), "tasks_at": at}

        with alone(self.place):
            self._change(new)
            if (journal := self.place / JOURNAL).exists():
                add_tasks(journal, as_record(scores, failed), step=self._step, tokens=self._tokens)

    def send(self, *, report: Callable[[str], None]) -> None:
        """Bring them to the run's own MLflow run; where that fails, say so."""
        from tinyllama.tracking import sync

        try:
            sync.sync([self.place], uri=None, report=report)
        except sync.StoreError as error:
            report(f"warning: {error}")

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        path = self.place / RESULT
        try:
            earlier = {"status": "evaluated"} | (json.loads(path.read_text()) if path.exists() else {})
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is no result ({error}): move it away") from error
        write_json(path, earlier | change(earlier))
