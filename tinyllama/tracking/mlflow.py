"""The one door to MLflow: the MLflow run of a run folder, opened or gone on with. Any call may raise or be slow."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinyllama.tracking.record import write_json
from tinyllama.tracking.store import (
    NAME_LENGTH,
    NOTE,
    Mirror,
    Point,
    artifact_root,
    noted,
    noted_run,
    page_of,
    reach,
    series,
    sqlite_file,
    without_password,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

_PARAMS_PER_BATCH = 100
METRICS_PER_BATCH = 1000
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own defaults hold a call to a dead server for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
}
# Set when this module is imported: DeepSpeed imports mlflow, too, and mlflow reads them then.
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)


class MlflowRun:
    """One MLflow run, opened or gone on with.

    A run folder that this store and experiment know goes on in the same MLflow run: its parameters stay as first
    logged, its tags are updated. `started` is when it began, in seconds since 1970; null: now. Where `running` is
    false, the status of a run that is known stays until `end`.
    """

    def __init__(self, mirror: Mirror, *, started: float | None = None, running: bool = True) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        run_dir, uri = mirror.run_dir, mirror.uri
        with _alone(sqlite_file(uri)):
            self._client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment(self._client, mirror.experiment, artifact_root(uri, runs_dir=run_dir.parent))
        note, here = run_dir / NOTE, mirror.place
        known = _continued(self._client, note, here)
        if known is None:
            began = None if started is None else round(started * 1000)
            known = self._client.create_run(
                experiment_id,
                start_time=began,
                run_name=(mirror.label or run_dir.name)[:NAME_LENGTH],
                tags=dict(mirror.tags),
            )
            others = [other for other in noted(note) if {key: other.get(key) for key in here} != here]
            write_json(note, [{**here, "run_id": known.info.run_id}, *others])
            self._id = known.info.run_id
        else:
            self._id = known.info.run_id
            if running:
                self._client.update_run(self._id, status="RUNNING")
            self.tag(mirror.tags)
        self.experiment_id = experiment_id
        self.page = page_of(uri, experiment_id=experiment_id, run_id=self._id)
        """Where a browser finds it."""
        # A parameter cannot change in MLflow, and a resumed run may have another parallelism.
        new = [Param(key, value) for key, value in mirror.params.items() if key not in known.data.params]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            self._client.log_batch(self._id, params=new[start : start + _PARAMS_PER_BATCH])

    @property
    def is_running(self) -> bool:
        """Whether the store has no end of it."""
        return str(self._client.get_run(self._id).info.status) == "RUNNING"

    def call(self, run_id: str, name: str) -> None:
        """Gives another run of the store a name."""
        self._client.update_run(run_id, name=name[:NAME_LENGTH])

    def tag(self, tags: Mapping[str, str]) -> None:
        """Sets tags."""
        from mlflow.entities import RunTag

        self._client.log_batch(self._id, tags=[RunTag(key, value) for key, value in tags.items()])

    def send(self, batch: Sequence[Point]) -> None:
        """Logs at most 1,000 points in one call."""
        from mlflow.entities import Metric

        self._client.log_batch(self._id, metrics=[Metric(*point) for point in batch])

    def replay(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Sends every point of the journal that the store does not have at its step with its value; how many."""
        has: dict[str, set[tuple[int, float]]] = {}
        missing: list[Point] = []
        for point in (point for record in records for point in series(record)):
            if point.key not in has:
                has[point.key] = {(old.step, old.value) for old in self._client.get_metric_history(self._id, point.key)}
            if (point.step, point.value) not in has[point.key]:
                has[point.key].add((point.step, point.value))
                missing.append(point)
        for start in range(0, len(missing), METRICS_PER_BATCH):
            self.send(missing[start : start + METRICS_PER_BATCH])
        return len(missing)

    def upload(self, path: Path) -> None:
        """Copies one file to the run's artifacts."""
        self._client.log_artifact(self._id, str(path))

    def end(self, status: Status, *, at: float | None = None) -> None:
        """Sets the run's status and end time, in seconds since 1970; null: now."""
        self._client.set_terminated(self._id, status, end_time=None if at is None else round(at * 1000))


def runs_of(uri: str, experiment: str) -> list[Mapping[str, Any]]:
    """The runs of an experiment: name, status, params and last metrics. Raises ValueError where there is none."""
    from mlflow import MlflowClient

    database = sqlite_file(uri)
    if database and not database.exists():
        raise ValueError(f"fit.runs: there is no MLflow store at {database}: set tracking.uri or runs_dir")
    reach(uri, timeout=5.0)
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        raise ValueError(
            f"fit.runs: no experiment {experiment} at {without_password(uri)}: see tracking.uri and the name"
        )
    runs: list[Mapping[str, Any]] = []
    token: str | None = None
    while True:
        page = client.search_runs([found.experiment_id], page_token=token)
        runs += [
            {
                "name": run.info.run_name,
                "status": run.info.status,
                "params": run.data.params,
                "metrics": run.data.metrics,
            }
            for run in page
            if run.data.tags.get("role") != "study"
        ]
        token = page.token
        if not token:
            return runs


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    """Keeps other processes out while a SQLite store may be created: two that migrate one file crash each other."""
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f"{database.name}.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _experiment(client: MlflowClient, name: str, root: str | None) -> str:
    """The id of an experiment, which is created where there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    try:
        return str(client.create_experiment(name, artifact_location=root))
    except Exception:
        # On a server another run may have created it since.
        if (found := client.get_experiment_by_name(name)) is None:
            raise
        return str(found.experiment_id)


def _continued(client: MlflowClient, note: Path, here: Mapping[str, str]) -> Any | None:
    """The MLflow run that a run folder has in this store and experiment; None where it has none or it was deleted."""
    from mlflow.exceptions import MlflowException

    run_id = noted_run(note, here)
    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
