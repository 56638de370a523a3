"""The one door to MLflow: a background writer that may lag, fail or never start without the training loop noticing.

Importing mlflow takes seconds, creating its SQLite tables more, and a server may be slow or gone, so all of that
happens in one daemon thread. What the thread could not send is replayed from the journal when the run closes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tinyllama.tracking.journal import JOURNAL, read
from tinyllama.tracking.record import write_json
from tinyllama.tracking.store import artifact_root, flatten, is_number, is_server, points, sqlite_file, without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]

SEND_EVERY = 1.0
"""Seconds between two batches."""
RETRY_EVERY = 30.0
"""Seconds to leave a failing store alone."""
CAPACITY = 50_000
"""Numbers that may wait to be sent."""
_PARAMS_PER_BATCH = 100
_METRICS_PER_BATCH = 1000
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
_log = logging.getLogger(__name__)


class _Point(NamedTuple):
    """One number of one metric; the time in milliseconds since 1970."""

    key: str
    value: float
    milliseconds: int
    step: int


class MlflowWriter:
    """Mirrors one run into MLflow without ever stopping it: no method raises for the store's sake or waits unbounded.

    A run folder that has been tracked before in the same store and experiment goes on in the same MLflow run; its
    parameters stay as first logged, its tags are updated. `params` may be nested: see `store.flatten`.
    Errors: ValueError for the experiment named Default, and for a journal that cannot be read.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        capacity: int = CAPACITY,
    ) -> None:
        if experiment == "Default" and not is_server(uri):
            raise ValueError(
                "tracking.experiment=Default: MLflow would put its artifacts into ./mlruns; choose another name"
            )
        # It would repeat, at every attempt, what this module says once.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self._journal = run_dir / JOURNAL
        self._uri = uri
        self._open: Callable[[], _Run] = partial(
            _Run, run_dir, uri=uri, experiment=experiment, run_name=run_name, params=flatten(params), tags=tags
        )
        self._run: _Run | None = None
        self._capacity = capacity
        self._waiting: deque[_Point] = deque()
        self._last: dict[str, tuple[int, float]] = {}
        # An earlier process may have died with numbers unsent, or have sent them to another store.
        self._behind = self._journal.exists() and any(points(record) for record in read(self._journal))
        self._warned = False
        self._closing = threading.Event()
        self._status: Status = "FINISHED"
        self._artifacts: Sequence[Path] = ()
        self._delivered = False
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Hands numbers over to be sent, and never waits; what finds no room is replayed from the journal at the end.

        `values` as `store.points` gives them for a line of the journal. Non-finite ones are left out, and so is a
        number that its metric had at this step already (an eval repeats the `tokens` of the train line before it).
        """
        now = int(time.time() * 1000)
        for key, value in values.items():
            if not is_number(value) or self._last.get(key) == (step, value):
                continue
            self._last[key] = (step, value)
            if len(self._waiting) < self._capacity:
                self._waiting.append(_Point(key, float(value), now, step))
            else:
                self._behind = True

    def close(self, status: Status, *, artifacts: Sequence[Path] = (), timeout: float = 10.0) -> None:
        """Sends what is left, the artifacts that exist and the status, or gives up after `timeout` seconds.

        What could not be delivered is a warning that names the journal. A second call does nothing.
        """
        if self._closing.is_set():
            return
        self._status, self._artifacts = status, artifacts
        self._closing.set()
        self._thread.join(timeout)
        if not self._delivered:
            _log.warning(
                "MLflow at %s does not have all of this run: see %s", without_password(self._uri), self._journal
            )

    def _work(self) -> None:
        wait = 0.0
        while not self._closing.wait(wait):
            try:
                self._send(self._connected())
                wait = SEND_EVERY
            except Exception as error:
                self._warn(error)
                wait = RETRY_EVERY
        try:
            self._finish()
            self._delivered = True
        except Exception as error:
            self._warn(error)

    def _connected(self) -> _Run:
        if self._run is None:
            self._run = self._open()
        return self._run

    def _send(self, run: _Run) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _METRICS_PER_BATCH))]
            try:
                run.send(batch)
            except Exception:
                self._behind = True
                raise

    def _finish(self) -> None:
        run = self._connected()
        try:
            try:
                self._send(run)
            except Exception as error:
                self._warn(error)
            if self._behind:
                run.replay(read(self._journal))
            for path in self._artifacts:
                if path.exists():
                    run.upload(path)
        finally:
            run.end(self._status)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            text = without_password(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
            _log.warning("MLflow failed (%s); training goes on, and %s has every number", text, self._journal)


class _Run:
    """One MLflow run, opened or gone on with; for the writer's thread alone, and any call may raise."""

    def __init__(
        self,
        run_dir: Path,
        *,
        uri: str,
        experiment: str,
        run_name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        with _alone(sqlite_file(uri)):
            self._client = MlflowClient(tracking_uri=uri)
            experiment_id = _experiment(self._client, experiment, artifact_root(uri, runs_dir=run_dir.parent))
        note = run_dir / "mlflow.json"
        here = {"uri": without_password(uri), "experiment": experiment}
        known = _continued(self._client, note, here)
        if known is None:
            known = self._client.create_run(experiment_id, run_name=run_name, tags=dict(tags))
            write_json(note, {**here, "run_id": known.info.run_id})
        else:
            self._client.update_run(known.info.run_id, status="RUNNING")
            self._client.log_batch(known.info.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        self._id = known.info.run_id
        # A parameter cannot change in MLflow, and a resumed run may have another parallelism.
        new = [Param(key, value) for key, value in params.items() if key not in known.data.params]
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            self._client.log_batch(self._id, params=new[start : start + _PARAMS_PER_BATCH])

    def send(self, batch: Sequence[_Point]) -> None:
        """Logs at most 1,000 points in one call."""
        from mlflow.entities import Metric

        self._client.log_batch(self._id, metrics=[Metric(*point) for point in batch])

    def replay(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Sends every point of the journal that the store does not have at its step with its value."""
        has: dict[str, set[tuple[int, float]]] = {}
        missing: list[_Point] = []
        for record in records:
            for key, value in points(record).items():
                if key not in has:
                    has[key] = {(old.step, old.value) for old in self._client.get_metric_history(self._id, key)}
                if (record["step"], value) not in has[key]:
                    has[key].add((record["step"], value))
                    missing.append(_Point(key, value, int(record["time"] * 1000), record["step"]))
        for start in range(0, len(missing), _METRICS_PER_BATCH):
            self.send(missing[start : start + _METRICS_PER_BATCH])

    def upload(self, path: Path) -> None:
        """Copies one file to the run's artifacts."""
        self._client.log_artifact(self._id, str(path))

    def end(self, status: Status) -> None:
        """Sets the run's status and end time."""
        self._client.set_terminated(self._id, status)


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

    if not note.exists():
        return None
    noted = json.loads(note.read_text())
    if {key: noted.get(key) for key in here} != here:
        return None
    try:
        run = client.get_run(noted["run_id"])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None
