"""task=sync: what a journal holds comes to MLflow whole and once, and a store that does not take it is named soon."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tests.tracking import servers
from tinyllama.config.load import as_dict
from tinyllama.config.schema import RunConfig
from tinyllama.tracking.journal import Journal
from tinyllama.tracking.mlflow import MlflowRun
from tinyllama.tracking.store import default_uri
from tinyllama.tracking.sync import StoreError, find_runs, sync
from tinyllama.tracking.tracker import Tracker


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def journal_only(config: Callable[..., RunConfig], runs_dir: Path) -> RunConfig:
    whole = config("tracking=journal", "tracking.experiment=study", f"runs_dir={runs_dir}")
    return replace(whole, generate=replace(whole.generate, prompt="x" * 6001))


def folder(run_dir: Path, config: RunConfig, *, status: str | None) -> Path:
    """A run that measured steps 1 to 6, was resumed at 4 and went on to 8."""
    run_dir.mkdir(parents=True)
    for start, last in ((0, 6), (4, 8)):
        tracker = Tracker.open(run_dir, config=config, digest="abc", start=start)
        for step in range(start + 1, last + 1):
            tracker.tell("train", step=step, tokens=32 * step, loss=1 / step)
        tracker.close("KILLED")
    (run_dir / "config.json").write_text(json.dumps({"digest": "abc", "data": {}, "config": as_dict(config)}))
    (run_dir / "config.yaml").write_text("seed: 1\n")
    if status is not None:
        (run_dir / "result.json").write_text(json.dumps({"status": status}))
    return run_dir


def stored(uri: str, run_dir: Path) -> tuple[MlflowClient, Any]:
    client = MlflowClient(tracking_uri=uri)
    [run_id] = [one["run_id"] for one in json.loads((run_dir / "mlflow.json").read_text()) if one["uri"] == uri]
    return client, client.get_run(run_id)


def history(uri: str, run_dir: Path, key: str = "train/loss") -> list[tuple[int, float]]:
    client, run = stored(uri, run_dir)
    return sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, key))


WHOLE = [(step, 1 / step) for step in range(1, 9)]


def test_a_run_that_was_never_in_mlflow_comes_whole_and_once(runs_dir: Path, journal_only: RunConfig) -> None:
    run_dir, uri, said = folder(runs_dir / "whole", journal_only, status="finished"), default_uri(runs_dir), []
    assert not (run_dir / "mlflow.json").exists()
    assert sync([run_dir], uri=None, report=said.append) == 1
    assert sync([run_dir], uri=None, report=said.append) == 1
    assert said == [
        f"{run_dir}: 16 of 16 numbers were missing at {uri}, now FINISHED",
        f"{run_dir}: 0 of 16 numbers were missing at {uri}, now FINISHED",
    ]
    client, run = stored(uri, run_dir)
    assert history(uri, run_dir) == WHOLE
    assert history(uri, run_dir, "tokens") == [(step, 32.0 * step) for step in range(1, 9)]
    assert [artifact.path for artifact in client.list_artifacts(run.info.run_id)] == ["config.yaml", "result.json"]
    assert client.get_experiment(run.info.experiment_id).name == "study"
    assert len(client.search_runs([run.info.experiment_id], "attributes.run_name = 'whole'")) == 1
    assert (run.info.status, run.data.tags["digest"], run.data.tags["model"]) == ("FINISHED", "abc", "nano")
    assert run.data.tags["superseded"] == "steps 5-6: measured again"
    assert run.data.params["generate.prompt"] == "x" * 6000
    first, *_, last = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    assert (run.info.start_time, run.info.end_time) == (round(first["time"] * 1000), round(last["time"] * 1000))


@pytest.mark.parametrize(
    ("status", "shown"), [("failed", "FAILED"), ("interrupted", "KILLED"), ("stopped", "KILLED"), (None, "KILLED")]
)
def test_it_ends_as_its_result_says(runs_dir: Path, journal_only: RunConfig, status: str | None, shown: str) -> None:
    run_dir = folder(runs_dir / f"ends-{status}", journal_only, status=status)
    sync([run_dir], uri=None, report=lambda line: None)
    assert stored(default_uri(runs_dir), run_dir)[1].info.status == shown


def test_a_run_that_a_process_has_goes_on(runs_dir: Path, journal_only: RunConfig) -> None:
    run_dir = folder(runs_dir / "live", journal_only, status=None)
    with (runs_dir / ".live.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sync([run_dir], uri=None, report=lambda line: None)
    assert stored(default_uri(runs_dir), run_dir)[1].info.status == "RUNNING"
    sync([run_dir], uri=None, report=lambda line: None)
    assert stored(default_uri(runs_dir), run_dir)[1].info.status == "KILLED"


def test_what_a_live_writer_sends_too_is_there_once(runs_dir: Path, journal_only: RunConfig) -> None:
    run_dir = folder(runs_dir / "both", journal_only, status=None)
    followed = replace(journal_only, tracking=replace(journal_only.tracking, name="mlflow"))
    sync([run_dir], uri=None, report=lambda line: None)
    tracker = Tracker.open(run_dir, config=followed, digest="abc", start=8)
    for step in range(9, 12):
        tracker.tell("train", step=step, tokens=32 * step, loss=1 / step)
    sync([run_dir], uri=None, report=lambda line: None)
    tracker.close("FINISHED")
    assert history(default_uri(runs_dir), run_dir) == [(step, 1 / step) for step in range(1, 12)]


def test_two_stores_each_keep_their_run(runs_dir: Path, tmp_path: Path, journal_only: RunConfig) -> None:
    run_dir, other = folder(runs_dir / "two", journal_only, status="finished"), default_uri(tmp_path)
    ids = set()
    for uri in (None, other, None, other):
        sync([run_dir], uri=uri, report=lambda line: None)
        ids.add((uri, stored(uri or default_uri(runs_dir), run_dir)[1].info.run_id))
    assert len(ids) == 2
    assert history(other, run_dir) == history(default_uri(runs_dir), run_dir) == WHOLE


def test_what_is_no_run_is_refused_before_anything_is_sent(tmp_path: Path, journal_only: RunConfig) -> None:
    sound, bare = (
        folder(tmp_path / "sound", journal_only, status=None),
        folder(tmp_path / "b", journal_only, status=None),
    )
    (bare / "metrics.jsonl").unlink()
    (tmp_path / "notes").mkdir()
    for bad in (bare, tmp_path / "notes", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"{bad} holds no run with a journal .*: name the folder of a run"):
            sync([sound, bad], uri=None, report=lambda line: None)
    assert not (sound / "mlflow.json").exists()
    assert find_runs(tmp_path) == [sound]
    with pytest.raises(ValueError, match=r"runs_dir: .*notes holds no run with a journal: set runs_dir, or sync.run"):
        find_runs(tmp_path / "notes")


@pytest.mark.parametrize("server", [servers.dead, servers.silent, servers.failing])
def test_a_store_that_does_not_take_it_is_named_soon(
    tmp_path: Path, journal_only: RunConfig, server: Callable[[], AbstractContextManager[str]]
) -> None:
    first, second = (folder(tmp_path / name, journal_only, status="finished") for name in ("a", "b"))
    said: list[str] = []
    with server() as uri:
        began = time.monotonic()
        with pytest.raises(StoreError) as failure:
            sync([first, second], uri=uri.replace("//", "//me:s3cret@"), report=said.append)
        assert time.monotonic() - began < 20
    assert f"MLflow at {uri} did not take {first} (" in str(failure.value)
    assert str(failure.value).endswith(f"sync again; {first / 'metrics.jsonl'} has every number")
    assert "s3cret" not in str(failure.value)
    assert said == [], "no further run is tried"


def test_a_slow_server_takes_it(tmp_path: Path, journal_only: RunConfig) -> None:
    run_dir = folder(tmp_path / "a", journal_only, status="finished")
    with servers.slow(0.2) as (uri, metrics):
        (run_dir / "config.yaml").unlink()
        (run_dir / "result.json").unlink()
        sync([run_dir], uri=uri, report=lambda line: None)
    assert sorted((one["step"], one["value"]) for one in metrics if one["key"] == "train/loss") == WHOLE


def test_a_failure_midway_is_made_good(
    runs_dir: Path, journal_only: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, send = folder(runs_dir / "midway", journal_only, status="finished"), MlflowRun.send
    with Journal(run_dir / "metrics.jsonl") as journal:
        for step in range(9, 1001):
            journal.write("train", step=step, tokens=32 * step, loss=1 / step)
    calls: list[int] = []

    def flaky(run: MlflowRun, batch: Any) -> None:
        calls.append(len(batch))
        if len(calls) == 2:
            raise OSError("connection reset")
        send(run, batch)

    monkeypatch.setattr(MlflowRun, "send", flaky)
    with pytest.raises(StoreError, match=r"OSError: connection reset"):
        sync([run_dir], uri=None, report=lambda line: None)
    sync([run_dir], uri=None, report=lambda line: None)
    assert calls == [1000, 1000, 1000]
    assert history(default_uri(runs_dir), run_dir) == [(step, 1 / step) for step in range(1, 1001)]
    assert stored(default_uri(runs_dir), run_dir)[1].info.status == "FINISHED"
