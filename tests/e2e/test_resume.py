"""A run that is killed and started again is the run that was not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Here


def wait_for_checkpoint(here: Here, run_dir: str, step: int, running: subprocess.Popen[str]) -> None:
    checkpoints = here.folder / run_dir / "checkpoints"
    deadline = time.monotonic() + 120
    while not any(int(path.name[5:]) >= step for path in checkpoints.glob("step-*")):
        assert running.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_after_checkpoint(here: Here, run_dir: str, step: int) -> None:
    """Start the run and kill all its processes, without warning, once it has a checkpoint at `step` or later."""
    running = subprocess.Popen(
        here.command(f"run_dir={run_dir}"),
        cwd=here.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    wait_for_checkpoint(here, run_dir, step, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def test_killed_twice_equals_uninterrupted_bit_for_bit(here: Here, whole: str) -> None:
    kill_after_checkpoint(here, "runs/killed", 40)
    kill_after_checkpoint(here, "runs/killed", 120)
    assert here.result("runs/killed")["status"] == "running", "nobody was left to say otherwise"
    here.run("run_dir=runs/killed")
    assert here.result("runs/killed")["resumed_at"] >= 120
    assert here.final_hashes("runs/killed") == here.final_hashes("runs/whole")
    ours, theirs = here.losses("runs/killed"), here.losses("runs/whole")
    assert len(theirs) == 26
    assert {step: ours[step] for step in theirs} == theirs
    held_out = here.result("runs/whole")["held_out"]
    assert here.result("runs/killed")["held_out"] == held_out


def test_interrupted_says_so_and_lets_nobody_else_in(here: Here, whole: str) -> None:
    """Ctrl-C reaches the launcher and the ranks; while they run a second process is refused."""
    running = subprocess.Popen(
        here.command("run_dir=runs/interrupted"),
        cwd=here.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_checkpoint(here, "runs/interrupted", 40, running)
    refusal = here.run("run_dir=runs/interrupted", expect=2)
    assert "run_dir: another process is training in runs/interrupted" in refusal
    os.killpg(running.pid, signal.SIGINT)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 130, out
    assert "interrupted: the same command goes on from the last checkpoint" in out
    assert "Traceback" not in out
    assert here.result("runs/interrupted")["status"] == "interrupted"


def test_a_seed_makes_another_run(here: Here, whole: str) -> None:
    """The comparison above can fail."""
    here.run("run_dir=runs/seeded", "seed=3", "budget.tokens=50K")
    assert here.losses("runs/seeded")[10] != here.losses("runs/whole")[10]


def test_two_machines_meet_and_train_the_same_model(here: Here, whole: str) -> None:
    """Two launchers on loopback, one rank each: the same samples in each step, so the same losses but for rounding."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    line = here.command(
        "run_dir=runs/nodes", "parallelism.nodes=2", f"parallelism.rendezvous=localhost:{port}", "budget.tokens=100K"
    )
    alone = here.run("run_dir=runs/alone", "budget.tokens=100K")
    both = [
        subprocess.Popen(line, cwd=here.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert alone.count("step 49/49") >= 1
    one, two = here.losses("runs/alone"), here.losses("runs/nodes")
    assert one.keys() == two.keys()
    # fp32 sums in another order, amplified by 49 steps of Adam; another sample anywhere moves a loss by over 1e-2
    assert all(abs(two[step] - loss) < 2e-3 for step, loss in one.items())
