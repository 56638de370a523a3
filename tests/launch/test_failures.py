"""What is written down of a failure that launchers of several machines explain."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinyllama.launch import launcher
from tinyllama.launch.launcher import RankError, exit_status
from tinyllama.launch.signals import Stopped, StopRequests


def explain(run_dir: Path, *, rank: int) -> str:
    from tinyllama.launch.agent import Death

    return launcher._explain(Death(rank=rank, reason=f"reason {rank}", traceback=f"calls of {rank}"), run_dir)


def test_the_first_explanation_stays(tmp_path: Path) -> None:
    told = [explain(tmp_path, rank=rank) for rank in (3, 0)]
    assert told == [f"rank {rank}: reason {rank} (traceback in {tmp_path / 'failure.txt'})" for rank in (3, 0)]
    assert (tmp_path / "failure.txt").read_text() == "calls of 3"
    assert json.loads((tmp_path / "result.json").read_text())["reason"].startswith("reason 3")


@pytest.mark.parametrize(("status", "after"), [("running", "failed"), ("failed", "failed"), ("finished", "finished")])
def test_a_finished_result_stays(tmp_path: Path, status: str, after: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"status": status, "reason": None, "tokens": 7}))
    explain(tmp_path, rank=1)
    told = json.loads(path.read_text())
    assert (told["status"], told["tokens"]) == (after, 7)
    assert (told["reason"] is not None) == (status == "running")


def test_what_fails_because_the_process_is_to_stop_is_no_failure() -> None:
    """A scheduler's signal ends those that prepare as well; a full disk and a rank's failure stay what they are."""
    asked, idle = StopRequests(), StopRequests()
    asked._asked = True
    full = OSError(28, "full")
    assert [exit_status(error, idle) for error in (OSError("a worker was killed"), RankError("x"), full)] == [1, 1, 74]
    ranks = RankError("x"), RankError("x", disk_full=True)
    assert [exit_status(error, asked) for error in (*ranks, full)] == [1, 74, 74]
    with pytest.raises(Stopped) as stopped:
        exit_status(OSError("a worker was killed"), asked)
    assert stopped.value.code == 75
