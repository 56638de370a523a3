"""What task=evaluate writes down: result.json, and where a run's journal is, its scores there and in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tinyllama.config.tasks import Evaluate
from tinyllama.data.manifest import Manifest
from tinyllama.evaluate.loss import SourceLoss
from tinyllama.evaluate.results import as_record, asked_at
from tinyllama.tracking.folder import RESULT, alone
from tinyllama.tracking.journal import JOURNAL, add_tasks, finite
from tinyllama.tracking.record import write_json


class Notes:
    """The results of one model, in a folder that no other process writes in meanwhile."""

    def __init__(
        self, place: Path, how: Evaluate, *, step: int | None, tokens: int | None, model: str | None = None
    ) -> None:
        """The folder, and how far the model was trained in steps and tokens, where that is known: then the folder is
        its run's. `model` says where the model is, if it is elsewhere."""
        self.place = place
        self._how = how
        self._model = model
        self._step = step
        self._tokens = tokens

    def held_out(self, measured: Mapping[str, SourceLoss], data: Manifest) -> bool:
        """Losses; those that a finished run measured at its end stay. Whether these were written."""
        found = {
            name: {**asdict(loss), "gzip_bits_per_byte": data.sources[name].held_out.gzip_bits_per_byte}
            for name, loss in measured.items()
        }
        new = {"held_out": found, "held_out_at": {"step": self._step, "tokens": self._tokens}}
        with alone(self.place):
            return self._change(lambda earlier: {} if earlier["status"] == "finished" else new)

    def tasks(
        self, scores: Mapping[str, dict[str, float]], failed: Mapping[str, str], *, asked: Sequence[str] = ()
    ) -> None:
        """Scores, beside those of other tasks; a run's journal has them too, once.

        `asked` are the names that they came of, as that of a group: what has failed before and does no more is no
        failure any longer.
        """

        def new(earlier: dict[str, Any]) -> dict[str, Any]:
            before = earlier.get("tasks_at", {}).get("failed", {})
            failing = {name: why for name, why in before.items() if name not in (*scores, *asked)} | dict(failed)
            return {
                "tasks": earlier.get("tasks", {}) | finite({"tasks": dict(scores)})["tasks"],
                "tasks_at": asked_at(step=self._step, tokens=self._tokens, failed=failing),
            }

        with alone(self.place):
            self._change(new)
            if self._step is not None:
                record = as_record(scores, failed, self._how)
                add_tasks(self.place / JOURNAL, record, step=self._step, tokens=self._tokens)

    def send(self, *, report: Callable[[str], None]) -> None:
        """Bring them to the run's own MLflow run; where that fails, say so."""
        from tinyllama.tracking import sync

        try:
            sync.sync([self.place], uri=None, report=report)
        except sync.StoreError as error:
            report(f"warning: {error}")

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bool:
        """Write what is new beside what was there of this model at this step; whether there was anything."""
        path = self.place / RESULT
        try:
            earlier = {"status": "evaluated"} | (json.loads(path.read_text()) if path.exists() else {})
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(f"{path} is no result ({error}): move it away") from error
        if earlier.get("model") != self._model:
            earlier = {"status": "evaluated", "model": self._model}
        for kind in ("held_out", "tasks"):
            at = earlier.get(f"{kind}_at")
            if at is not None and at.get("step") != self._step:
                del earlier[f"{kind}_at"]
                earlier.pop(kind, None)
        if new := change(earlier):
            write_json(path, earlier | new)
        return bool(new)
