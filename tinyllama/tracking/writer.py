"""A background writer that mirrors a run into MLflow and may lag, fail or never start without the loop noticing.

Importing MLflow's stores takes seconds, creating its SQLite tables more, and a server may be slow or gone, so all of
that happens in one daemon thread. What the thread could not send is replayed from the journal when the run closes, at
last, as MLflow takes numbers of a run that has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllama.tracking.journal import JOURNAL, has, read
from tinyllama.tracking.mlflow import METRICS_PER_BATCH, MlflowRun, Status
from tinyllama.tracking.store import Mirror, Point, points, series, sqlite_file, without_password

SEND_EVERY = 1.0
"""Seconds between two batches, or more where sending is so dear that it would take more than its share."""
SHARE = 0.03
"""Of one core's time that sending may take: Python that the training thread then cannot run."""
RETRY_EVERY = 30.0
"""Seconds to leave a failing store alone."""
CLOSE_WITHIN = 8.0
"""Seconds that the end of a run waits for its store; with all else it is to end within 10."""
OPEN_WITHIN = 5.0
"""Seconds that the start of a run waits for a SQLite file to be opened."""
CAPACITY = 50_000
"""Numbers that may wait to be sent."""
_log = logging.getLogger(__name__)


class MlflowWriter:
    """Mirrors one run into MLflow without ever stopping it: no method raises for the store's sake or waits unbounded.

    A run folder that has been tracked before in the same store and experiment goes on in the same MLflow run; its
    parameters stay as first logged, its tags are updated. Errors: ValueError for a journal that cannot be read.
    """

    def __init__(self, mirror: Mirror, *, capacity: int = CAPACITY) -> None:
        # It would repeat, at every attempt, what this module says once.
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        self._mirror = mirror
        self._journal = mirror.run_dir / JOURNAL
        self._run: MlflowRun | None = None
        self._capacity = capacity
        self._waiting: deque[Point] = deque()
        self._last: dict[str, tuple[int, float]] = {}
        self._tags: dict[str, str] = {}
        # An earlier process may have died with numbers unsent, or have sent them to another store.
        self._behind = self._journal.exists() and has(self._journal, lambda record: bool(points(record)))
        self._warned = False
        self._opened = threading.Event()
        self._closing = threading.Event()
        self._status: Status = "FINISHED"
        self._artifacts: Sequence[Path] = ()
        self._delivered = False
        self._thread = threading.Thread(target=self._work, name="mlflow-writer", daemon=True)
        self._thread.start()
        if sqlite_file(mirror.uri):
            # Imports and the making of tables are Python that the first steps would compete with for the interpreter.
            self._opened.wait(OPEN_WITHIN)

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Hands a line of the journal over to be sent, and never waits; what finds no room is replayed at the end.

        A number that its metric had at this step already is left out: an eval repeats the `tokens` of the train line
        before it.
        """
        for point in series(record):
            if self._last.get(point.key) == (point.step, point.value):
                continue
            self._last[point.key] = (point.step, point.value)
            if len(self._waiting) < self._capacity:
                self._waiting.append(point)
            else:
                self._behind = True

    def tag(self, key: str, value: str) -> None:
        """Sets a tag when the next numbers are sent."""
        self._tags[key] = value

    def close(self, status: Status, *, artifacts: Sequence[Path] = (), timeout: float = CLOSE_WITHIN) -> None:
        """Sends the artifacts that exist, the status, then what is left, or gives up after `timeout` seconds.

        What could not be delivered is a warning that names the journal. A second call does nothing.
        """
        if self._closing.is_set():
            return
        self._status, self._artifacts = status, artifacts
        self._closing.set()
        self._thread.join(timeout)
        if not self._delivered:
            _log.warning(
                "MLflow at %s does not have all of this run: %s has it, and task=sync sync.run=%s sends the rest",
                without_password(self._mirror.uri),
                self._journal,
                self._mirror.run_dir,
            )

    def _work(self) -> None:
        wait = 0.0
        while not self._closing.wait(wait):
            try:
                run = self._connected()
                self._opened.set()
                began = time.thread_time()
                self._send(run)
                self._send_tags(run)
                wait = max(SEND_EVERY, (time.thread_time() - began) / SHARE)
            except Exception as error:
                self._opened.set()
                self._warn(error)
                wait = RETRY_EVERY
        try:
            run = self._connected()
        except Exception as error:
            self._warn(error)
            return
        # what says that the run has ended comes first: to look for the numbers of a long one may take minutes
        done = [self._tried(part, run) for part in (self._send_tags, self._upload, self._end)]
        self._tried(self._send, run)  # what fails here is replayed
        self._delivered = self._tried(self._replay, run) and all(done)

    def _tried(self, part: Callable[[MlflowRun], None], run: MlflowRun) -> bool:
        try:
            part(run)
        except Exception as error:
            self._warn(error)
            return False
        return True

    def _connected(self) -> MlflowRun:
        if self._run is None:
            self._run = MlflowRun(self._mirror)
        return self._run

    def _send(self, run: MlflowRun) -> None:
        # Only what waits by now: where a call takes longer than a step, there would always be one more.
        left = len(self._waiting)
        while left:
            batch = [self._waiting.popleft() for _ in range(min(left, METRICS_PER_BATCH))]
            left -= len(batch)
            try:
                run.send(batch)
            except Exception:
                self._behind = True
                raise

    def _send_tags(self, run: MlflowRun) -> None:
        while self._tags:
            key, value = self._tags.popitem()
            try:
                run.tag({key: value})
            except Exception:
                self._tags.setdefault(key, value)
                raise

    def _upload(self, run: MlflowRun) -> None:
        for path in self._artifacts:
            if path.exists():
                run.upload(path)

    def _end(self, run: MlflowRun) -> None:
        run.end(self._status)

    def _replay(self, run: MlflowRun) -> None:
        if self._behind:
            run.replay(read(self._journal))

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            text = without_password(f"{type(error).__name__}: {error}".splitlines()[0])[:200]
            _log.warning("MLflow failed (%s); training goes on, and %s has every number", text, self._journal)
