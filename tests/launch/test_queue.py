"""What is made of SLURM's words, and of its silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllama.launch import queue
from tinyllama.launch.queue import JobState, states, status_file, wait

Programs = Callable[..., None]
NO_ANSWER = "echo 'Unable to contact slurm controller' >&2; exit 1"


def says(*lines: str) -> str:
    return f"cat <<'END'\n{chr(10).join(lines)}\nEND"


def test_where_jobs_stand(programs: Programs, tmp_path: Path) -> None:
    programs(
        squeue=says(
            "8_0 PENDING Nodes required for job are DOWN, DRAINED or reserved",
            "8_1 RUNNING None",
            "8_2 COMPLETED None",
            "8_3 FAILED NonZeroExitCode",
            "8_10 TIMEOUT TimeLimit",
            "9 COMPLETING None",
        )
    )
    for id_, status in {"8_0": 75, "8_3": 74, "7": 1, "6": 0}.items():
        status_file(tmp_path, id_, "0").write_text(f"{status}\n")
    status_file(tmp_path, "6", "1").write_text("1\n")  # another of its nodes
    ids = ["9", "8_0", "8_1", "8_2", "8_3", "8_10", "7", "6", "5"]
    assert states(ids, folder=tmp_path) == [
        JobState(id="9", state="COMPLETING", reason="None"),
        JobState(id="8_0", state="PENDING", reason="Nodes required for job are DOWN, DRAINED or reserved"),
        JobState(id="8_1", state="RUNNING", reason="None"),
        JobState(id="8_2", state="COMPLETED", status=0, reason="None"),
        JobState(id="8_3", state="FAILED", status=74, reason="NonZeroExitCode"),
        JobState(id="8_10", state="TIMEOUT", reason="TimeLimit"),
        # which SLURM has forgotten
        JobState(id="7", state="FAILED", status=1),
        JobState(id="6", state="FAILED", status=1),
        JobState(id="5", state="GONE"),
    ]


def test_waiting_tells_each_change_and_outlasts_a_silence(
    programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = says("8_0 RUNNING None", "8_1 PENDING Priority")
    done = says("8_0 COMPLETED None", "8_1 CANCELLED None")
    answers = iter([running, running, NO_ANSWER, running, done])
    naps: list[float] = []

    def next_answer(seconds: float) -> None:
        naps.append(seconds)
        programs(squeue=next(answers))

    next_answer(0)
    monkeypatch.setattr(queue.time, "sleep", next_answer)
    told: list[list[str]] = []
    ended = wait(
        ["8_0", "8_1"], folder=tmp_path, every=7, progress=lambda jobs: told.append([job.state for job in jobs])
    )
    assert told == [["RUNNING", "PENDING"], ["COMPLETED", "CANCELLED"]]
    assert [(job.state, job.status) for job in ended] == [("COMPLETED", 0), ("CANCELLED", None)]
    assert naps == [0, 7, 7, 7, 7]
