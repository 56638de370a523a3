"""Studies by whole command lines: what is shared, what is passed over, what a failure leaves, what MLflow shows."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Here

SMALL = ["schedule=wsd", "checkpoint.every=1000", "train.eval_every=1000", "fit.replicates=20"]
BUDGETS = "budget.tokens=60K,80K,100K"
SHARED = [*SMALL, "runs_dir=runs/shared", "study.name=three"]
STUDY = "runs/shared/study-three"


@pytest.fixture(scope="module")
def shared(here: Here) -> str:
    """What three budgets of one trunk print."""
    return here.run("-m", BUDGETS, *SHARED)


def points(here: Here, folder: str = STUDY) -> list[dict[str, Any]]:
    told = json.loads((here.folder / folder / "study.json").read_text())
    return sorted(told["points"], key=lambda point: point["tokens"])


def store(here: Here, runs_dir: str) -> tuple[Any, list[Any]]:
    """A study's run in MLflow and its children."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{here.folder / runs_dir / 'mlflow.db'}")
    experiments = [one.experiment_id for one in client.search_experiments()]
    [parent] = client.search_runs(experiments, "tags.role = 'study'")
    return parent, list(client.search_runs(experiments, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"))


def test_three_budgets_of_one_trunk_are_what_three_runs_are(here: Here, shared: str) -> None:
    """To the bit, on a CPU."""
    here.run(
        "-m", BUDGETS, *SMALL, "runs_dir=runs/alone", "study.name=alone", "study.share_trunks=false", "tracking=journal"
    )
    alone = points(here, "runs/alone/study-alone")
    assert [point["status"] for point in [*points(here), *alone]] == ["finished"] * 6
    for one, other in zip(points(here), alone, strict=True):
        assert one["name"] == other["name"]
        assert here.final_hashes(one["run_dir"]) == here.final_hashes(other["run_dir"])
        assert one["loss"] == other["loss"]
        assert here.losses(other["run_dir"]).items() <= here.losses(one["run_dir"]).items(), "from the first step on"
    # 30, 40 and 49 steps of 2,048, whose decays begin after 24, 32 and 39
    assert [point["trained_tokens"] // 2048 for point in points(here)] == [30, 40 - 24, 49 - 32]
    assert [point["trained_tokens"] for point in alone] == [point["tokens"] for point in alone]
    assert "three: 3 points, 1 jobs, 244K tokens, of which shared trunks save 47%: 129K to train" in shared


def test_the_studys_parent_holds_its_points_and_its_fit(here: Here, shared: str) -> None:
    parent, children = store(here, "runs/shared")
    assert parent.info.status == "FINISHED"
    assert {child.info.status for child in children} == {"FINISHED"}
    assert {child.info.run_name for child in children} == {"tokens=60K", "tokens=80K", "tokens=100K"}
    for child in children:
        [point] = [point for point in points(here) if point["point"] == child.info.run_name]
        assert int(child.data.params["planned.tokens"]) == point["tokens"]
        assert int(child.data.params["planned.parameters"]) == point["params"]
        assert child.data.metrics["held_out/loss"] == pytest.approx(point["loss"])
        assert child.data.tags["study"] == "three"
    described = parent.data.tags["mlflow.note.content"]
    assert all(child.info.run_id in described for child in children), "the link that compares them"
    assert "| tokens=60K |" in described
    assert f"/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}?" in shared
    artifacts = {path.name for path in (here.folder / "runs/shared/mlartifacts" / parent.info.run_id).rglob("*.*")}
    assert {"study.json", "fit.json", "report.html"} <= artifacts
    report = (here.folder / STUDY / "report.html").read_text()
    assert all(point["name"] in report for point in points(here))


def test_what_is_finished_is_passed_over_and_what_is_missing_is_trained(here: Here, shared: str) -> None:
    before = [here.final_hashes(point["run_dir"]) for point in points(here)]
    out = here.run("-m", BUDGETS, *SHARED)
    assert out.count("finished already") == 3
    assert "held_out" not in out
    middle = points(here)[1]["run_dir"]
    shutil.rmtree(here.folder / middle)
    out = here.run("-m", BUDGETS, *SHARED)
    assert out.count("finished already") == 2
    assert out.count("held_out loss") == 1
    assert "begins after step 24 of" in out or "begins after step 32 of" in out
    assert [here.final_hashes(point["run_dir"]) for point in points(here)] == before


def test_one_point_that_fails_stops_no_other(here: Here, shared: str) -> None:
    line = ["-m", "seed=1,2,3", *SMALL, "budget.tokens=60K", "runs_dir=runs/failing", "study.name=failing"]
    here.run(*line[:2], "task=plan", *line[2:])
    folders = sorted((here.folder / "runs/failing").glob("nano-*"))
    assert len(folders) == 3
    broken = folders[1]
    (broken / "checkpoints").mkdir()
    (broken / "checkpoints/damaged-step-000000010").mkdir()
    out = here.run(*line, "study.at_a_time=2", expect=1)
    told = {point["run_dir"]: point for point in points(here, "runs/failing/study-failing")}
    failed = told.pop(str(broken.relative_to(here.folder)))
    assert failed["status"] == "failed"
    assert "no checkpoint in" in failed["note"]
    assert [point["status"] for point in told.values()] == ["finished"] * 2
    assert "no checkpoint in" in out
    logs = [path.read_text() for path in (here.folder / "runs/failing/study-failing/jobs").glob("*.log")]
    assert sum("held_out loss" in log for log in logs) == 2
    # two workers for three jobs: what a rank says is in its own job's log, whoever forked it
    assert [len(re.findall(r"^step 1/", log, flags=re.MULTILINE)) for log in logs if "held_out loss" in log] == [1, 1]
    parent, children = store(here, "runs/failing")
    assert parent.info.status == "FAILED"
    assert [child.info.status for child in children] == ["FINISHED"] * 2, "the other failed before it had one"


def begun(here: Here, *line: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        here.command(*line), cwd=here.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.faults
@pytest.mark.parametrize("at_a_time", [1, 2])
def test_a_study_that_is_stopped_closes_its_parent_and_goes_on(here: Here, at_a_time: int) -> None:
    runs_dir = f"runs/stopped-{at_a_time}"
    line = [
        "-m",
        "budget.tokens=60K,4M",
        "seed=1,2",
        *SMALL,
        "checkpoint.every=20",
        f"runs_dir={runs_dir}",
        "study.name=s",
    ]
    line.append(f"study.at_a_time={at_a_time}")
    running = begun(here, *line)
    deadline = time.monotonic() + 240
    while not list((here.folder / runs_dir).glob("nano-*/branch.json")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    out, _ = running.communicate(timeout=90)
    assert running.returncode == os.EX_TEMPFAIL, out
    parent, children = store(here, runs_dir)
    assert parent.info.status == "KILLED"
    assert "RUNNING" not in {child.info.status for child in children}
    shorter = [word if "4M" not in word else "budget.tokens=60K" for word in line]
    out = here.run(*shorter)
    parent, _ = store(here, runs_dir)
    assert parent.info.status == "FINISHED"


@pytest.mark.faults
def test_a_study_that_is_killed_goes_on_and_edits_change_no_job(here: Here, tmp_path: Path) -> None:
    """A frozen job is what it was, whatever the configuration says by now."""
    line = ["-m", "budget.tokens=60K,80K", *SMALL, "checkpoint.every=10", "runs_dir=runs/killed", "study.name=s"]
    running = subprocess.Popen(here.command(*line), cwd=here.folder, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list((here.folder / "runs/killed").glob("nano-*/checkpoints/step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    [job] = (here.folder / "runs/killed/study-s/jobs").glob("*.json")
    out = subprocess.run(
        [*here.command("--job", base=())[:2], "--job", str(job)],
        cwd=here.folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert out.returncode == 0, out.stdout + out.stderr
    alone = here.run(*line, "runs_dir=runs/never-killed", "tracking=journal")
    assert "finished already" not in alone
    for point in points(here, "runs/never-killed/study-s"):
        assert here.final_hashes(f"runs/killed/{point['name']}") == here.final_hashes(point["run_dir"])
    here.run(*line)
    parent, children = store(here, "runs/killed")
    assert {parent.info.status, *(child.info.status for child in children)} == {"FINISHED"}
