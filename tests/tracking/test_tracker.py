"""One story for the journal and MLflow: what a run measures again, after a resume or a rollback, is named in both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from tinyllama.config.schema import RunConfig
from tinyllama.tracking import writer as writer_module
from tinyllama.tracking.journal import read
from tinyllama.tracking.store import default_uri
from tinyllama.tracking.tracker import Tracker

Config = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "SEND_EVERY", 0.02)


def take(tracker: Tracker, first: int, last: int) -> None:
    for step in range(first, last + 1):
        tracker.tell("train", step=step, tokens=32 * step, loss=1 / step)


def lines(run_dir: Path, *kinds: str) -> list[dict[str, Any]]:
    told = (json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line for line in told if line["kind"] in kinds]


def test_a_resume_names_what_it_takes_again(tmp_path: Path, config: Config) -> None:
    run_dir, how = tmp_path / "run", config("tracking=journal")

    def attempt(start: int, last: int) -> None:
        tracker = Tracker.open(run_dir, config=how, digest="abc", start=start)
        take(tracker, start + 1, last)
        tracker.close("KILLED")

    attempt(0, 60)
    attempt(40, 70)
    attempt(70, 71)
    attempt(0, 2)
    told = [(line["kind"], line["step"], line.get("superseded")) for line in lines(run_dir, "start", "resume")]
    assert told == [("start", 0, None), ("resume", 40, [41, 60]), ("resume", 70, None), ("start", 0, [1, 71])]
    assert [record["step"] for record in read(run_dir / "metrics.jsonl") if record["kind"] == "train"] == [1, 2]


def test_a_torn_line_measures_nothing(tmp_path: Path, config: Config) -> None:
    run_dir, how = tmp_path / "run", config("tracking=journal")
    tracker = Tracker.open(run_dir, config=how, digest="abc", start=0)
    take(tracker, 1, 4)
    tracker.close("KILLED")
    whole = (run_dir / "metrics.jsonl").read_bytes()
    (run_dir / "metrics.jsonl").write_bytes(whole[:-9])
    Tracker.open(run_dir, config=how, digest="abc", start=2).close("KILLED")
    assert lines(run_dir, "resume")[0]["superseded"] == [3, 3]


def test_a_rollback_does_too_and_the_charts_have_a_tag(tmp_path: Path, config: Config) -> None:
    run_dir, how = tmp_path / "runs" / "run", config(f"runs_dir={tmp_path}/runs", "tracking.experiment=study")
    client = MlflowClient(default_uri(tmp_path / "runs"))

    def run() -> Any:
        return client.get_run(json.loads((run_dir / "mlflow.json").read_text())[0]["run_id"])

    tracker = Tracker.open(run_dir, config=how, digest="abc", start=0)
    take(tracker, 1, 8)
    tracker.tell("skip", step=8, samples=[64, 72], loss=9.5)
    tracker.tell("rollback", step=8, to=5, samples=[40, 72], loss=9.5)
    take(tracker, 6, 7)
    tracker.tell("rollback", step=7, to=7, samples=[72, 80], loss=9.5)
    tracker.close("KILLED")
    assert [line.get("superseded") for line in lines(run_dir, "rollback")] == [[6, 8], None]
    assert run().data.tags["superseded"] == "steps 6-8: measured again"

    tracker = Tracker.open(run_dir, config=how, digest="abc", start=1)
    take(tracker, 2, 9)
    tracker.close("FINISHED")
    assert lines(run_dir, "resume")[0]["superseded"] == [2, 7]
    assert run().data.tags["superseded"] == "steps 2-8: measured again"
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run().info.run_id, "train/loss")]
    assert {step for step, _ in losses} == set(range(1, 10))


def test_the_other_ranks_tell_nothing() -> None:
    tracker = Tracker()
    tracker.tell("rollback", step=8, to=5)
    tracker.close("FINISHED")
