"""What a store that is gone, silent, broken or slow costs a run: next to no time of its steps, and no number.

The cost of a step is what `tell` takes and what Python the writer's thread runs meanwhile, for the interpreter serves
one of the two at a time. Both are counted, on clocks of a thread's own where that is possible: machines are shared with
other work.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.tracking import servers
from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.tracking import writer as writer_module
from tinyllama.tracking.journal import read
from tinyllama.tracking.mlflow import MlflowRun
from tinyllama.tracking.store import default_uri
from tinyllama.tracking.sync import sync
from tinyllama.tracking.tracker import Tracker

pytestmark = pytest.mark.faults

STEP = 0.020
STEPS = 200
SHARE = 0.05
CLOSE = 10.0


@contextmanager
def slow() -> Iterator[str]:
    with servers.slow(2.0) as (uri, _):
        yield uri


@dataclass(frozen=True)
class Cost:
    """Seconds of one run."""

    tell: float
    writer: float
    elapsed: float
    close: float


def step() -> None:
    """Python that takes the time of a step and never lets go of the interpreter of its own accord."""
    began = time.thread_time()
    while time.thread_time() - began < STEP:
        sum(range(500))


def steps(tracker: Tracker, first: int, last: int, work: Callable[[], None] = step) -> list[float]:
    told = []
    for number in range(first, last + 1):
        work()
        began = time.perf_counter()
        tracker.tell("train", step=number, tokens=32 * number, loss=1 / number, lr=1e-3, grad_norm=1 + 1 / number)
        told.append(time.perf_counter() - began)
    return told


def run(run_dir: Path, config: RunConfig, count: int = STEPS) -> Cost:
    tracker = Tracker.open(run_dir, config=config, digest="abc", start=0)
    (run_dir / "config.json").write_text(json.dumps({"digest": "abc", "data": {}, "config": as_dict(config)}))
    assert tracker._mlflow is not None
    clock = time.pthread_getcpuclockid(tracker._mlflow._thread.ident or 0)
    before, began = time.clock_gettime(clock), time.perf_counter()
    told = steps(tracker, 1, count)
    elapsed, writer = time.perf_counter() - began, time.clock_gettime(clock) - before
    began = time.perf_counter()
    tracker.close("FINISHED")
    return Cost(statistics.median(told), writer, elapsed, time.perf_counter() - began)


def history(uri: str, run_dir: Path) -> list[tuple[int, float]]:
    notes = json.loads((run_dir / "mlflow.json").read_text())
    [run_id] = [note["run_id"] for note in notes if note["uri"] == uri]
    return sorted((one.step, one.value) for one in MlflowClient(uri).get_metric_history(run_id, "train/loss"))


@pytest.fixture
def tracked(config: Callable[..., RunConfig], tmp_path: Path) -> RunConfig:
    return config(f"runs_dir={tmp_path}/runs")


def at(config: RunConfig, uri: str) -> RunConfig:
    return replace(config, tracking=replace(config.tracking, uri=uri))


@pytest.mark.parametrize(
    "store", [servers.dead, servers.silent, servers.failing, slow], ids=lambda store: store.__name__
)
def test_an_outage_costs_no_time_and_no_number(
    tmp_path: Path, tracked: RunConfig, store: Callable[[], AbstractContextManager[str]]
) -> None:
    run_dir = tmp_path / "runs" / "run"
    with servers.dead() as uri:
        run(tmp_path / "runs" / "first", at(tracked, uri), count=20)  # what a first call imports is no outage's cost
    with store() as uri:
        cost = run(run_dir, at(tracked, uri))
    print(f"tell {cost.tell * 1e6:.0f} us, writer {cost.writer / cost.elapsed:.2%}, close {cost.close:.2f} s")
    assert cost.tell < SHARE * STEP
    assert cost.writer < SHARE * cost.elapsed
    assert cost.close < CLOSE
    journal = [(record["step"], record["loss"]) for record in read(run_dir / "metrics.jsonl") if "loss" in record]
    assert journal == [(number, 1 / number) for number in range(1, STEPS + 1)]
    rescue = default_uri(tmp_path / "runs")
    sync([run_dir], uri=rescue, report=lambda line: None)
    assert history(rescue, run_dir) == journal


@pytest.mark.parametrize("share", [writer_module.SHARE, 1.0])
def test_a_store_that_is_dear_to_send_to_is_sent_to_less_often(
    tmp_path: Path, tracked: RunConfig, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """And the measure above can fail: without the limit it costs more than it may."""

    def dear(*_: Any) -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.02:
            sum(range(500))

    monkeypatch.setattr(MlflowRun, "send", dear)
    monkeypatch.setattr(writer_module, "SEND_EVERY", STEP)
    monkeypatch.setattr(writer_module, "SHARE", share)
    cost = run(tmp_path / "runs" / "run", tracked)
    assert (cost.writer > SHARE * cost.elapsed) == (share == 1.0)


class Server:
    """A real MLflow server over a SQLite file, which can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as reserved:
            reserved.bind(("127.0.0.1", 0))
            self._port = reserved.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        places = ["--backend-store-uri", f"sqlite:///{self._folder}/m.db", "--artifacts-destination", str(self._folder)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *places, "--port", str(self._port), "--workers", "1"],
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.1)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    one = Server(tmp_path / "server")
    yield one
    one.kill()


def test_a_server_that_dies_in_mid_run_and_comes_back(
    tmp_path: Path, tracked: RunConfig, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a minute: a server is started three times."""
    monkeypatch.setattr(writer_module, "SEND_EVERY", 0.05)
    monkeypatch.setattr(writer_module, "RETRY_EVERY", 0.5)
    run_dir, config = tmp_path / "runs" / "run", at(tracked, server.uri)

    def until(arrived: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not arrived():
            assert time.monotonic() < deadline
            time.sleep(0.1)

    def pause() -> None:
        time.sleep(0.01)

    def there() -> list[int]:
        return [number for number, _ in history(server.uri, run_dir)] if (run_dir / "mlflow.json").exists() else []

    server.start()
    tracker = Tracker.open(run_dir, config=config, digest="abc", start=0)
    (run_dir / "config.json").write_text(json.dumps({"digest": "abc", "data": {}, "config": as_dict(config)}))
    steps(tracker, 1, 20, pause)
    until(lambda: there()[-1:] == [20])
    server.kill()
    slowest = max(steps(tracker, 21, 40, pause))
    server.start()
    steps(tracker, 41, 60, pause)
    until(lambda: there()[-1:] == [60])
    server.kill()
    slowest = max(slowest, *steps(tracker, 61, 80, pause))
    began = time.monotonic()
    tracker.close("FINISHED", artifacts=[run_dir / "config.json"])
    assert time.monotonic() - began < CLOSE
    assert slowest < 0.5
    server.start()
    for _ in range(2):
        sync([run_dir], uri=None, report=lambda line: None)
    assert history(server.uri, run_dir) == [(number, 1 / number) for number in range(1, 81)]
    [note] = json.loads((run_dir / "mlflow.json").read_text())
    assert MlflowClient(server.uri).get_run(note["run_id"]).info.status == "KILLED", "its folder has no result"
