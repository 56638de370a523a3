"""Which runs are points, and why the others are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinyllama.scaling.collect import NoPoint, collect, of_mlflow, run_folders
from tinyllama.scaling.points import Point, read_csv, write_csv


def left(folder: Path, *, loss: float = 3.0, **changes: Any) -> Path:
    """A finished run's folder, as far as a fit reads it; None takes a file away."""
    files: dict[str, Any] = {
        "config": {"config": {"init_from": None}, "changed": False, "data": {"manifest_sha256": "text"}},
        "plan": {
            "parameters": {"total": 1_000_000},
            "tokens": 20_000_000,
            "unique_tokens": 5_000_000,
            "sources": {"text": {"share": 0.75}, "code": {"share": 0.25}},
        },
        "result": {"status": "finished", "held_out": {"text": {"loss": loss}, "code": {"loss": loss - 1}}},
    }
    folder.mkdir(parents=True)
    for name, content in files.items():
        if (change := changes.get(name, {})) is not None:
            (folder / f"{name}.json").write_text(json.dumps(content | change))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    left(tmp_path / "a", loss=3.0)
    left(tmp_path / "b", loss=2.5)
    return tmp_path


def reasons(runs: Path) -> dict[str, str]:
    return {run.name: run.reason for run in collect(str(runs)).excluded}


def test_a_run_is_a_point_by_its_plan_and_its_result(runs: Path) -> None:
    found = collect(str(runs))
    assert [point.name for point in found.points] == ["a", "b"]
    point = found.points[0]
    assert (point.params, point.tokens, point.unique_tokens) == (1e6, 2e7, 5e6)
    assert point.loss == pytest.approx(0.75 * 3.0 + 0.25 * 2.0)
    assert (found.source, found.excluded) == (str(runs), ())


def test_one_sources_loss_can_be_asked_for(runs: Path) -> None:
    assert [point.loss for point in collect(str(runs), source="code").points] == [2.0, 1.5]
    found = collect(str(runs), source="books")
    assert found.points == ()
    assert {run.reason for run in found.excluded} == {"it has no held-out loss of books"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"result": {"status": "failed", "reason": "SpikeError: too many"}}, "failed: SpikeError: too many"),
        ({"result": {"status": "running"}}, "running: it has no result yet"),
        ({"result": None}, "it has no result.json"),
        ({"plan": None}, "it has no plan.json"),
        ({"config": {"changed": True}}, "it was changed under way (resume=force)"),
        ({"config": {"config": {"init_from": "runs/other"}}}, "it began with the weights of runs/other"),
        (
            {"config": {"data": {"manifest_sha256": "other"}}},
            "its loss was measured on other text than that of most runs here",
        ),
        ({"plan": {"sources": {}}}, "its folder cannot be read: KeyError('text')"),
    ],
)
def test_what_is_no_point_is_left_out_with_the_reason(runs: Path, changes: dict[str, Any], reason: str) -> None:
    left(runs / "c", **changes)
    assert reasons(runs) == {"c": reason}
    assert len(collect(str(runs)).points) == 2


def test_folders_patterns_and_single_runs_are_named_alike(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(runs)
    assert run_folders(".") == [Path("a"), Path("b")]
    assert run_folders("[b-z]") == [Path("b")]
    assert run_folders(str(runs / "a")) == [runs / "a"]
    (runs / "study-s").mkdir()
    (runs / "study-s/study.json").write_text(json.dumps({"points": [{"name": "b"}, {"name": "gone"}]}))
    assert run_folders("study-s") == [Path("b"), Path("gone")]
    assert [run.reason for run in collect("study-s").excluded] == ["it has no result.json"]
    with pytest.raises(ValueError, match=r"fit.runs: nothing-\* holds no run: name run folders, a pattern of them"):
        collect("nothing-*")


def test_a_table_is_read_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n1e6,2e7,3.25\n")
    [point] = collect(str(tmp_path / "runs.csv")).points
    assert (point.params, point.tokens, point.loss, point.unique_tokens) == (1e6, 2e7, 3.25, None)


def test_an_experiments_runs_are_points_by_what_they_were_planned_with() -> None:
    run: dict[str, Any] = {
        "name": "a",
        "status": "FINISHED",
        "params": {"planned.parameters": "1000000", "planned.tokens": "20000000"},
        "metrics": {"held_out/loss": 3.0, "held_out/code/loss": 2.0},
    }
    killed = run | {"name": "b", "status": "KILLED"}
    older = run | {"name": "c", "params": {}}
    found = collect("mlflow:sweep", experiment=lambda name: [run, killed, older] if name == "sweep" else [])
    assert [(point.name, point.params, point.tokens, point.loss) for point in found.points] == [("a", 1e6, 2e7, 3.0)]
    assert [(one.name, one.reason) for one in found.excluded] == [
        ("b", "it is KILLED"),
        ("c", "it has no parameter planned.parameters"),
    ]
    assert of_mlflow(run, "code").loss == 2.0
    with pytest.raises(NoPoint, match="no metric held_out/text/loss"):
        of_mlflow(run, "text")


def test_points_are_written_as_they_are_read(tmp_path: Path) -> None:
    points = [
        Point(name='a, "quoted"', params=1e6, tokens=2e7 + 1, loss=3.1234567890123456, unique_tokens=5e6),
        Point(name="b", params=3, tokens=1e12, loss=2.0),
    ]
    write_csv(tmp_path / "points.csv", points)
    assert read_csv(tmp_path / "points.csv") == points
