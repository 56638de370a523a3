"""The MLflow writer against a SQLite store, a dead server, a silent one, and three processes that start at once."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from mlflow import MlflowClient

from tests.tracking import servers
from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.tracking import writer as writer_module
from tinyllama.tracking.journal import Journal
from tinyllama.tracking.mlflow import MlflowRun, runs_of
from tinyllama.tracking.store import Mirror, Point, default_uri, flatten
from tinyllama.tracking.writer import MlflowWriter

PATIENCE = 60.0


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One runs folder for the module: creating a store takes seconds."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(writer_module, "SEND_EVERY", 0.02)
    monkeypatch.setattr(writer_module, "SHARE", 1.0)
    monkeypatch.chdir(tmp_path)


def start(run_dir: Path, *, uri: str, capacity: int = 1000, **changed: Any) -> MlflowWriter:
    run_dir.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {"experiment": "study", "tags": {"digest": "abc"}}
    told["params"] = {"seed": 1, "model": {"name": "nano"}, "many": {str(i): i for i in range(150)}}
    told |= changed
    return MlflowWriter(
        Mirror(run_dir=run_dir, uri=uri, **told | {"params": flatten(told["params"])}), capacity=capacity
    )


def stored(uri: str, run_dir: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(tracking_uri=uri)
    return client, client.get_run(json.loads((run_dir / "mlflow.json").read_text())[0]["run_id"])


def history(uri: str, run_dir: Path, key: str) -> list[tuple[int, float]]:
    client, run = stored(uri, run_dir)
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))


def train(journal: Journal, writer: MlflowWriter | None, *, first: int, last: int, scale: float = 1.0) -> None:
    for step in range(first, last + 1):
        line = journal.write("train", step=step, tokens=32 * step, loss=scale / step)
        if writer is not None:
            writer.metrics(line)


def loud(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.levelno >= logging.WARNING]


def test_a_run_arrives_whole(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir, uri = runs_dir / "whole", default_uri(runs_dir)
    log_batch, params_at_once = MlflowClient.log_batch, []

    def spy(client: MlflowClient, run_id: str, **batch: Any) -> None:
        params_at_once.append(len(batch.get("params", ())))
        log_batch(client, run_id, **batch)

    monkeypatch.setattr(MlflowClient, "log_batch", spy)
    writer = start(run_dir, uri=uri)
    with Journal(run_dir / "metrics.jsonl") as journal:
        train(journal, writer, first=1, last=3)
        # Another millisecond: MLflow itself leaves out a point that is equal in time as well.
        time.sleep(0.005)
        line = journal.write("eval", step=3, tokens=96, losses={"code": 1.5, "text": float("nan")})
        writer.metrics(line)
    (run_dir / "config.yaml").write_text("seed: 1\n")
    writer.close("KILLED", artifacts=[run_dir / "config.yaml", run_dir / "missing.png"], timeout=PATIENCE)

    assert loud(caplog) == []
    client, run = stored(uri, run_dir)
    assert (run.info.status, run.info.run_name) == ("KILLED", "whole")
    assert client.get_experiment(run.info.experiment_id).name == "study"
    assert run.data.params["model.name"] == "nano"
    assert len(run.data.params) == 152
    assert max(params_at_once) == 100, "a server refuses more in one call"
    assert run.data.tags["digest"] == "abc"
    assert history(uri, run_dir, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert history(uri, run_dir, "tokens") == [(1, 32.0), (2, 64.0), (3, 96.0)]
    assert history(uri, run_dir, "eval/code/loss") == [(3, 1.5)]
    assert "eval/text/loss" not in run.data.metrics
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["config.yaml"]
    assert (runs_dir / "mlartifacts" / run.info.run_id / "artifacts" / "config.yaml").exists()
    assert os.listdir(tmp_path) == [], "nothing may be made in the working folder, ./mlruns least of all"


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(runs_dir: Path) -> None:
    run_dir, uri = runs_dir / "resumed", default_uri(runs_dir)
    writer = start(run_dir, uri=uri)
    with Journal(run_dir / "metrics.jsonl") as journal:
        train(journal, writer, first=1, last=4)
        writer.close("FAILED", timeout=PATIENCE)
        former = stored(uri, run_dir)[1]
        # A process that died before it sent these:
        train(journal, None, first=5, last=6)
        journal.write("resume", step=5)
        writer = start(run_dir, uri=uri, params={"seed": 2, "new": 3}, tags={"digest": "abc", "machine": "b"})
        deadline = time.monotonic() + PATIENCE
        while stored(uri, run_dir)[1].info.status != "RUNNING" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert stored(uri, run_dir)[1].info.status == "RUNNING"
        train(journal, writer, first=6, last=8)
    writer.close("FINISHED", timeout=PATIENCE)
    run = stored(uri, run_dir)[1]
    assert former.info.status == "FAILED"
    assert (run.info.run_id, run.info.status) == (former.info.run_id, "FINISHED")
    assert (run.data.params["seed"], run.data.params["new"]) == ("1", "3"), "parameters stay as first logged"
    assert run.data.tags["machine"] == "b"
    assert history(uri, run_dir, "train/loss") == [(step, 1 / step) for step in range(1, 9)]


def test_another_experiment_is_another_run_and_gets_the_whole_journal(runs_dir: Path) -> None:
    run_dir, uri = runs_dir / "moved", default_uri(runs_dir)
    with Journal(run_dir / "metrics.jsonl") as journal:
        train(journal, None, first=1, last=3)
    start(run_dir, uri=uri).close("FINISHED", timeout=PATIENCE)
    first = stored(uri, run_dir)[1].info.run_id
    start(run_dir, uri=uri, experiment="other").close("FINISHED", timeout=PATIENCE)
    assert stored(uri, run_dir)[1].info.run_id != first
    assert history(uri, run_dir, "train/loss") == [(1, 1.0), (2, 0.5), (3, 1 / 3)]


def test_what_found_no_room_is_replayed_without_duplicates(runs_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir, uri = runs_dir / "overflow", default_uri(runs_dir)
    sent: list[int] = []
    send = MlflowRun.send

    def spy(run: Any, batch: Any) -> None:
        sent.append(len(batch))
        send(run, batch)

    monkeypatch.setattr(MlflowRun, "send", spy)
    writer = start(run_dir, uri=uri, capacity=10)
    with Journal(run_dir / "metrics.jsonl") as journal:
        train(journal, writer, first=1, last=1200)
    writer.close("FINISHED", timeout=PATIENCE)
    assert history(uri, run_dir, "train/loss") == [(step, 1 / step) for step in range(1, 1201)]
    assert history(uri, run_dir, "tokens") == [(step, 32.0 * step) for step in range(1, 1201)]
    assert sum(sent) == 2400, "each number goes over once"
    assert max(sent) <= 1000


@pytest.mark.parametrize("send_every", [0.02, 60.0], ids=["while training", "at close"])
def test_a_store_that_fails_for_a_while_loses_nothing(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, send_every: float
) -> None:
    run_dir, uri = runs_dir / f"outage-{send_every}", default_uri(runs_dir)
    monkeypatch.setattr(writer_module, "SEND_EVERY", send_every)
    monkeypatch.setattr(writer_module, "RETRY_EVERY", 0.02)
    send, failures = MlflowRun.send, iter([True] * (3 if send_every < 1 else 1))

    def flaky(run: Any, batch: Any) -> None:
        if next(failures, False):
            raise OSError("database is locked at postgresql://me:s3cret@host/db")
        send(run, batch)

    monkeypatch.setattr(MlflowRun, "send", flaky)
    writer = start(run_dir, uri=uri)
    deadline = time.monotonic() + PATIENCE
    while not writer._run and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    with Journal(run_dir / "metrics.jsonl") as journal:
        for step in range(1, 11):
            train(journal, writer, first=step, last=step)
            time.sleep(0.03)
    writer.close("FINISHED", timeout=PATIENCE)
    assert history(uri, run_dir, "train/loss") == [(step, 1 / step) for step in range(1, 11)]
    warnings = loud(caplog)
    assert len(warnings) == 1, "a failing store is one warning, however often it fails"
    assert "OSError: database is locked at postgresql://host/db" in warnings[0]
    assert "metrics.jsonl" in warnings[0]


def test_a_dead_server_neither_raises_nor_delays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        began = time.monotonic()
        writer = start(tmp_path / "run", uri=uri)
        slowest = 0.0
        for step in range(2000):
            before = time.monotonic()
            writer.metrics({"kind": "train", "time": 1.7e9, "step": step, "loss": 1.0})
            slowest = max(slowest, time.monotonic() - before)
        assert slowest < 0.5
        writer.close("FINISHED", timeout=15)
        assert time.monotonic() - began < 16
    assert "metrics.jsonl" in caplog.text
    assert f"MLflow at {uri} does not have all of this run" in caplog.text


def test_a_send_takes_what_waits_and_not_what_comes_meanwhile(tmp_path: Path) -> None:
    """Where a call takes longer than a step there is always one more, and sending would never rest."""
    with servers.dead() as uri:
        writer = start(tmp_path / "run", uri=uri, capacity=5000)
        sent: list[int] = []

        class Run:
            def send(self, batch: Sequence[Point]) -> None:
                sent.append(len(batch))
                assert len(sent) < 10
                writer.metrics({"kind": "train", "time": 1.7e9, "step": 10_000 + len(sent), "loss": 1.0})

        for step in range(2500):
            writer.metrics({"kind": "train", "time": 1.7e9, "step": step, "loss": 1.0})
        writer._send(cast("MlflowRun", Run()))
        assert sent == [1000, 1000, 500]
        assert len(writer._waiting) == 3
        writer.close("KILLED", timeout=10)


def test_a_long_replay_keeps_neither_the_status_nor_the_artifacts_back(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A resumed run of many lines ends before MLflow was asked for all it has; what it lacks comes with task=sync."""
    run_dir, uri, over = runs_dir / "long", default_uri(runs_dir), threading.Event()
    replay, asked = MlflowRun.replay, []

    def slow(run: Any, records: Any) -> int:
        asked.append(len(records))
        over.wait(PATIENCE)
        return replay(run, records)

    monkeypatch.setattr(MlflowRun, "replay", slow)
    with Journal(run_dir / "metrics.jsonl") as journal:
        train(journal, None, first=1, last=4)  # by a process that died
        writer = start(run_dir, uri=uri)
        train(journal, writer, first=5, last=6)
    (run_dir / "result.json").write_text("{}")
    while writer._run is None:
        time.sleep(0.01)
    writer.tag("superseded", "step 4")
    writer.close("FINISHED", artifacts=[run_dir / "result.json"], timeout=3.0)
    client, run = stored(uri, run_dir)
    assert asked == [6]
    assert run.info.status == "FINISHED"
    assert run.data.tags["superseded"] == "step 4"
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["result.json"]
    assert history(uri, run_dir, "train/loss") == [(5, 1 / 5), (6, 1 / 6)]
    assert "does not have all of this run" in caplog.text
    over.set()
    writer._thread.join(PATIENCE)
    assert history(uri, run_dir, "train/loss") == [(step, 1 / step) for step in range(1, 7)]
    assert stored(uri, run_dir)[1].info.status == "FINISHED"


@pytest.mark.parametrize("broken", ["upload", "end", "tag"])
def test_one_part_of_the_end_that_fails_keeps_no_other_back(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    run_dir, uri = runs_dir / f"broken-{broken}", default_uri(runs_dir)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no such bucket")

    with Journal(run_dir / "metrics.jsonl") as journal:
        train(journal, None, first=1, last=2)
        writer = start(run_dir, uri=uri)
        while writer._run is None:
            time.sleep(0.01)
        monkeypatch.setattr(MlflowRun, broken, fail)
        train(journal, writer, first=3, last=4)
        writer.tag("superseded", "step 4")
    (run_dir / "result.json").write_text("{}")
    writer.close("FAILED", artifacts=[run_dir / "result.json"], timeout=PATIENCE)
    client, run = stored(uri, run_dir)
    assert history(uri, run_dir, "train/loss") == [(step, 1 / step) for step in range(1, 5)]
    assert (run.info.status == "FAILED") == (broken != "end")
    assert bool(client.list_artifacts(run.info.run_id)) == (broken != "upload")
    assert ("superseded" in run.data.tags) == (broken != "tag")
    assert "does not have all of this run" in caplog.text


def test_close_gives_up_on_a_silent_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        writer = start(tmp_path / "run", uri=f"http://me:s3cret@127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        writer.close("FINISHED", timeout=0.5)
        assert 0.4 < time.monotonic() - began < 2
        writer.close("FAILED")
    assert caplog.text.count("does not have all of this run") == 1
    assert "s3cret" not in caplog.text


def test_mlflows_own_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tracking.experiment=Default: MLflow would put .* choose another name"):
        start(tmp_path / "run", uri=default_uri(tmp_path), experiment="Default")


def test_three_processes_share_one_fresh_store(tmp_path: Path) -> None:
    uri = default_uri(tmp_path / "fresh")
    code = (
        "import sys; from pathlib import Path; from tinyllama.tracking.writer import MlflowWriter\n"
        "from tinyllama.tracking.store import Mirror\n"
        "run = Path(sys.argv[1]); run.mkdir(parents=True)\n"
        "writer = MlflowWriter(Mirror(run_dir=run, uri=sys.argv[2], experiment='study', params={}, tags={}))\n"
        "writer.metrics({'kind': 'train', 'time': 1.7e9, 'step': 1, 'loss': 2.0}); writer.close('FINISHED', timeout=60)"
    )
    root = Path(writer_module.__file__).parents[2]
    folders = [tmp_path / "fresh" / name for name in ("a", "b", "c")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), uri], env=os.environ | {"PYTHONPATH": str(root)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for folder in folders
    ]  # fmt: skip
    said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    assert said == ["", "", ""], "neither a warning nor MLflow's chatter"
    for folder in folders:
        assert stored(uri, folder)[1].info.status == "FINISHED"
        assert history(uri, folder, "train/loss") == [(1, 2.0)]


def test_an_experiments_runs_are_read_back_but_for_studies(tmp_path: Path, config: Callable[..., RunConfig]) -> None:
    runs_dir = tmp_path / "runs"
    plain = as_dict(config(f"runs_dir={runs_dir}"))
    uri = default_uri(runs_dir)
    with pytest.raises(ValueError, match=r"fit.runs: there is no MLflow store at .*mlflow.db: set tracking.uri"):
        runs_of(uri, "tinyllama")
    assert not runs_dir.exists()
    runs_dir.mkdir()
    for name in ("study", "a"):
        (runs_dir / name).mkdir()
    parent = MlflowRun(Mirror.of_study(runs_dir / "study", plain, name="s"))
    parent.end("FINISHED")
    child = as_dict(config(f"runs_dir={runs_dir}", f"study.folder={runs_dir / 'study'}", "study.name=s"))
    run = MlflowRun(Mirror.of(runs_dir / "a", child, digest="abc"))
    assert run.is_running
    run.end("FINISHED")
    assert not run.is_running
    parent.call(run._id, "x" * 1000)
    assert MlflowClient(uri).get_run(run._id).info.run_name == "x" * 250, "what every database has room for"
    parent.call(run._id, "a")
    [found] = runs_of(uri, "tinyllama")
    assert (found["name"], found["status"], found["params"]["model.d_model"]) == ("a", "FINISHED", "128")
    with pytest.raises(ValueError, match="no experiment other at"):
        runs_of(uri, "other")
