"""The sweep's benchmark trains the same points three ways, and tells nothing where their losses differ."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks.sweep import ALONE, CPU, GPU, SHARED, TOGETHER, Grid, same
from tests.benchmarks import patched

ran = partial(patched.ran, "sweep", "run(sweep.CPU, points=2, at_a_time=2, per_gpu=1, rounds=1, out=out)")

SHORT = """
import dataclasses
sweep.CPU = dataclasses.replace(sweep.CPU, budgets=("20K", "24K"), common=(*sweep.CPU.common, "tracking=journal"))
"""
INSTEAD = """
from pathlib import Path
def pretended(line, folder):
    if "task=prepare" not in line:
        told = dict(word.split("=", 1) for word in line if "=" in word)
        for tokens in told["budget.tokens"].split(","):
            run_dir = folder / told["runs_dir"] / tokens
            run_dir.mkdir(parents=True)
            loss = 3.0 + (tokens == "80K" and told["study.share_trunks"] == "true") * OFF
            (run_dir / "result.json").write_text(sweep.json.dumps({"status": "finished", "loss": loss}))
    return 1.0 + (line[0] != "-m")
sweep.trained = pretended
"""


@pytest.mark.faults  # seven whole runs
def test_it_trains_the_same_points_three_ways(tmp_path: Path) -> None:
    assert "2 points, 2 at a time; times as fast as one at a time" in ran(
        tmp_path / "out.json", patch=SHORT, expect=0, timeout=600
    )
    told = json.loads((tmp_path / "out.json").read_text())
    assert {way: len(rounds) for way, rounds in told["seconds"].items()} == {ALONE: 1, TOGETHER: 1, SHARED: 1}
    assert len(told["losses"]) == told["points"] == 2
    assert told["ratio"][TOGETHER]["median"] == told["seconds"][ALONE][0] / told["seconds"][TOGETHER][0]
    assert {"torch", "deepspeed", "mlflow", "python"} <= told["versions"].keys()


@pytest.mark.parametrize(("off", "expect"), [(0.0, 0), (1e-6, 0), (1e-5, 1)])
def test_another_loss_is_seen(tmp_path: Path, off: float, expect: int) -> None:
    said = ran(tmp_path / "out.json", patch=INSTEAD.replace("OFF", str(off)), expect=expect)
    assert ("not the same losses, nothing is told" in said) == bool(expect)
    assert (tmp_path / "out.json").exists() != bool(expect)
    if not expect:
        seconds = json.loads((tmp_path / "out.json").read_text())["seconds"]
        assert seconds == {ALONE: [4.0], TOGETHER: [1.0], SHARED: [1.0]}, "the commands' times are added up"


def test_a_point_that_is_missing_is_seen() -> None:
    whole = {"a": 3.0, "b": 2.0}
    assert same([whole, whole], points=2, within=1e-6)
    assert not same([whole, {"a": 3.0}], points=2, within=1e-6)
    assert not same([{"a": 3.0}, {"a": 3.0}], points=2, within=1e-6)
    assert not same([whole, {"a": 3.0, "c": 2.0}], points=2, within=1e-6)


@pytest.mark.parametrize("grid", [CPU, GPU])
def test_the_points_are_a_grid(grid: Grid) -> None:
    assert [len(grid.first(points).lines()) for points in (1, 3, 5, 10, 20)] == [1, 3, 5, 10, 20]
    for points in (7, 25):
        with pytest.raises(ValueError, match="take up to 5, or a multiple of it up to 20"):
            grid.first(points)
