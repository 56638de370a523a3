"""Faults in whole runs, made for real: signals, a full disk, other ranks, dead trackers, secrets."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.processes import ranks_of
from tinyllama.engine.checkpoint import Checkpoint, found
from tinyllama.tracking.journal import read

if TYPE_CHECKING:
    from .conftest import Here

pytestmark = pytest.mark.faults

SHORT = ["optimizer.lr=1e-3", "budget.tokens=200K", "tracking=journal", "checkpoint.every=20"]
"""98 steps."""
TWO = [*SHORT, "parallelism.gpus=2", "parallelism.micro_batch=8"]
SAME = 1e-5
"""Sums in fp32 in another order, over 98 steps of AdamW at this rate."""
CANARY = "canary-5f2c9d"
SECRETS = dict.fromkeys(
    ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "WANDB_API_KEY", "DB_PASSWORD"), CANARY
)


def start(here: Here, *line: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        here.command(*line),
        cwd=here.folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(running: subprocess.Popen[str], *, within: float, status: int) -> str:
    out, _ = running.communicate(timeout=within)
    assert running.returncode == status, out[-6000:]
    assert "Traceback" not in out
    return out


def assert_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a rank outlives its launcher"
        time.sleep(0.05)


def assert_same_losses(here: Here, one: str, other: str, *, within: float) -> None:
    ours, theirs = here.losses(one), here.losses(other)
    assert {98} <= theirs.keys() <= ours.keys() | {1}
    for step, loss in theirs.items():
        if step in ours:
            assert abs(ours[step] - loss) <= within * loss, step


@pytest.fixture(scope="module")
def two(here: Here) -> str:
    """An uninterrupted run of two ranks."""
    here.run("run_dir=runs/two", *TWO, **SECRETS)
    return "runs/two"


def test_stopped_on_two_ranks_goes_on_on_one_and_then_on_two(here: Here, two: str) -> None:
    """SIGTERM to one rank of two, twice, while it saves at every step; SIGUSR2 to the launcher of one rank."""
    often = ["checkpoint.every=1", "train.log_every=1"]
    running = start(here, "run_dir=runs/moved", *TWO, *often)
    here.wait_for_checkpoint("runs/moved", 20, running)
    ranks = ranks_of(running.pid)
    assert len(ranks) == 2
    asked = time.monotonic()
    for _ in range(2):
        os.kill(ranks[1], signal.SIGTERM)
        time.sleep(0.01)
    out = ended(running, within=60, status=os.EX_TEMPFAIL)
    assert time.monotonic() - asked < 30
    assert "the same command goes on where this one stopped" in out
    assert here.result("runs/moved")["status"] == "stopped"
    assert_gone(ranks)
    first = Checkpoint.at(found(here.folder / "runs/moved/checkpoints")[-1])
    assert {name[-17:] for name in first.sha256} == {"00000.safetensors", "00001.safetensors"}, "each wrote its share"

    running = start(here, "run_dir=runs/moved", *SHORT, *often)
    here.wait_for_checkpoint("runs/moved", first.step + 15, running)
    running.send_signal(signal.SIGUSR2)
    ended(running, within=60, status=os.EX_TEMPFAIL)

    here.run("run_dir=runs/moved", *TWO, "parallelism.zero_stage=3", "parallelism.micro_batch=4", "train.log_every=1")
    resumed = [line["step"] for line in read(here.folder / "runs/moved/metrics.jsonl") if line["kind"] == "resume"]
    assert len(resumed) == 2
    assert 20 <= resumed[0] == first.step < resumed[1] < 98
    assert_same_losses(here, "runs/moved", two, within=SAME)


def test_a_killed_rank_is_started_again_from_the_last_checkpoint(here: Here, two: str) -> None:
    running = start(here, "run_dir=runs/killed", *TWO, "parallelism.max_restarts=1")
    here.wait_for_checkpoint("runs/killed", 40, running)
    ranks = ranks_of(running.pid)
    killed = time.time()
    os.kill(ranks[1], signal.SIGKILL)
    out = ended(running, within=120, status=0)
    assert_gone(ranks)
    lines = read(here.folder / "runs/killed/metrics.jsonl")
    [resumed] = [line for line in lines if line["kind"] == "resume"]
    assert resumed["step"] >= 40
    assert resumed["time"] - killed < 15 + 30, "15 s to end the others, the rest to start anew"
    assert "SIGKILL" in out
    assert here.final_hashes("runs/killed") == here.final_hashes(two)


def test_a_stopped_rank_is_found_and_every_stack_is_written_down(here: Here, two: str) -> None:
    running = start(here, "run_dir=runs/hung", *TWO, "parallelism.hang_after=20")
    here.wait_for_checkpoint("runs/hung", 20, running)
    ranks = ranks_of(running.pid)
    os.kill(ranks[1], signal.SIGSTOP)
    out = ended(running, within=60, status=1)
    assert_gone(ranks)
    assert "no sign of life" in out
    stacks = {path.name: path.read_text() for path in (here.folder / "runs/hung/stacks").iterdir()}
    assert set(stacks) == {"rank-0.txt", "rank-1.txt"}
    assert "all_reduce" in stacks["rank-0.txt"], "it waits for the other"
    assert "stopped" in stacks["rank-1.txt"]
    here.run("run_dir=runs/hung", *TWO)
    assert here.final_hashes("runs/hung") == here.final_hashes(two)


def test_a_time_limit_stops_the_run_and_no_secret_is_anywhere(here: Here, two: str) -> None:
    """In no file of all runs so far, and in nothing that was said."""
    running = start(here, "run_dir=runs/limited", *SHORT[:1], "budget.tokens=1B", "time_limit=0:00:40", **SECRETS)
    out = ended(running, within=90, status=os.EX_TEMPFAIL)
    assert "time limit" in out
    assert here.result("runs/limited")["status"] == "stopped"
    assert CANARY not in out
    files = [path for path in here.folder.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert not [path for path in files if CANARY.encode() in path.read_bytes()]


def test_a_run_goes_on_changed_where_it_is_forced(here: Here, two: str) -> None:
    shutil.copytree(here.folder / two, here.folder / "runs/forced")
    line = ["run_dir=runs/forced", *SHORT, "budget.tokens=240K"]
    refusal = here.run(*line, expect=2)
    assert "run_dir: runs/forced holds a run with another budget.tokens" in refusal
    assert "resume=force" in refusal
    out = here.run(*line, "resume=force", "optimizer.lr=5e-4")
    assert "step 118/118" in out
    assert here.result("runs/forced")["resumed_at"] == 98
    assert here.run(*line, "optimizer.lr=5e-4").count("has finished already") == 1
    refusal = here.run("run_dir=runs/forced", *SHORT, "resume=force", "model.n_layers=3", expect=2)
    assert "run_dir: runs/forced has another model.n_layers" in refusal
    refusal = here.run("run_dir=runs/forced", *SHORT, "resume=force", "budget.tokens=100K", expect=2)
    assert "has taken 118 steps, more than 49" in refusal
    refusal = here.run(
        "run_dir=runs/forced", *SHORT, "resume=force", "train.batch_tokens=4096", "budget.tokens=1M", expect=2
    )
    assert "the 118 steps that runs/forced has taken saw 241,664 tokens, where this batch" in refusal
    assert "make them 483,328: keep the batches" in refusal


def test_a_journal_is_brought_to_mlflow_once(here: Here, two: str) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{here.folder / 'late.db'}"
    line = ("task=sync", f"sync.run={two}", f"tracking.uri={uri}")
    assert f"{two}: 0 of " not in here.run(*line)
    assert f"{two}: 0 of " in here.run(*line)
    client = MlflowClient(uri)
    [run] = client.search_runs([client.get_experiment_by_name("tinyllama").experiment_id])
    assert run.info.status == "FINISHED"
    points = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == sorted(here.losses(two).items())


def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(here: Here, two: str) -> None:
    """On a filesystem that holds two checkpoints and not three."""
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a filesystem of his own")
    small = here.folder / "small"
    small.mkdir()
    line = here.command("runs_dir=small", "run_dir=small/run", *SHORT)
    # the saving looks for 16 MiB beside the checkpoint, each of which is 2.5 MB
    script = (
        f"mount -t tmpfs -o size=23m tmpfs {small} && {{ PROGRAM; echo status $?; ls -A small/run/checkpoints; "
        f"{sys.executable} -c 'import sys; from pathlib import Path; from tinyllama.engine.checkpoint import *; "
        'one = Checkpoint.at(found(Path("small/run/checkpoints"))[-1]); one.verify(); print("whole", one.step)\'; }'
    )
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script.replace("PROGRAM", '"$@"'), "bash", *line],
        cwd=here.folder,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert f"status {os.EX_IOERR}" in done.stdout, done.stdout
    assert "a checkpoint takes 0.00246 GB and the disk of small/run/checkpoints has" in done.stdout
    assert "whole 40" in done.stdout
    assert ".partial" not in done.stdout
