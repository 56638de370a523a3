"""What a launcher and its ranks tell each other through memory."""

from __future__ import annotations

import errno
import time
from pathlib import Path

import pytest
import torch

from tinyllama.launch.lifeline import Board, Lifeline, State, first


def raised(error: Exception) -> Exception:
    try:
        raise error
    except type(error) as caught:
        return caught


def test_each_rank_has_a_slot_and_the_launcher_reads_it(tmp_path: Path) -> None:
    launcher = Board.create(tmp_path / "board", ranks=2)
    lines = [Lifeline(Board.open(tmp_path / "board"), local=local) for local in (0, 1)]
    assert [launcher.state(local) for local in (0, 1)] == [State.STARTING, State.STARTING]
    before = time.monotonic()
    lines[1].beat(12)
    assert before <= launcher.beat(1) <= time.monotonic()
    assert (launcher.state(1), launcher.step(1)) == (State.BEATING, 12)
    assert (launcher.state(0), launcher.beat(0)) == (State.STARTING, 0)
    lines[0].rest()
    lines[0].beat(13)
    assert launcher.state(0) == State.RESTING, "rest is for good"
    launcher.clear()
    assert (launcher.state(1), launcher.beat(1), launcher.step(1)) == (State.STARTING, 0, 0)


def test_a_stop_reaches_all_and_outlives_a_restart(tmp_path: Path) -> None:
    launcher = Board.create(tmp_path / "board", ranks=1)
    line = Lifeline(Board.open(tmp_path / "board"))
    assert not line.stop_asked()
    launcher.ask_to_stop()
    launcher.clear()
    assert line.stop_asked()
    assert not Lifeline().stop_asked(), "without a launcher nobody asks"


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ValueError("bad"), State.FAILED_FOR_GOOD),
        (ZeroDivisionError("bad"), State.FAILED_FOR_GOOD),
        (FileNotFoundError(errno.ENOENT, "bad"), State.FAILED_FOR_GOOD),
        (OSError(errno.ENOSPC, "full"), State.DISK_FULL),
        (OSError(errno.EDQUOT, "full"), State.DISK_FULL),
        (OSError(errno.EIO, "broken"), State.FAILED),
        (RuntimeError("connection closed"), State.FAILED),
        (torch.OutOfMemoryError("no room"), State.OUT_OF_MEMORY),
    ],
)
def test_a_failure_is_kept_with_what_it_means(tmp_path: Path, error: Exception, state: State) -> None:
    launcher = Board.create(tmp_path / "board", ranks=2)
    Lifeline(Board.open(tmp_path / "board"), local=1).fail(raised(error))
    failure = launcher.failure(1)
    assert failure and failure.state == state
    assert failure.message == f"{type(error).__name__}: {error}"
    assert "test_lifeline.py" in failure.traceback
    assert launcher.failure(0) is None


def test_memory_that_runs_out_after_a_step_may_be_in_order_in_another_attempt(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", ranks=1)
    line = Lifeline(Board.open(tmp_path / "board"))
    line.beat(1)
    line.fail(raised(torch.OutOfMemoryError("no room")))
    failure = board.failure(0)
    assert failure and failure.state == State.FAILED


def test_a_failure_longer_than_its_room_keeps_both_ends(tmp_path: Path) -> None:
    board = Board.create(tmp_path / "board", ranks=2)
    for local in (0, 1):
        Lifeline(board, local=local).fail(raised(ValueError("ä\0" * 200_000 + f"end of {local}")))
    for local in (0, 1):
        failure = board.failure(local)
        assert failure and failure.message.startswith("ValueError: ää")
        assert failure.traceback.rstrip().endswith(f"end of {local}")


def test_the_cause_is_what_would_come_again_then_the_earliest() -> None:
    board = Board(bytearray(8 + 3 * (8 * 3 + (1 << 16))))
    for local, error in enumerate([RuntimeError("one"), RuntimeError("two"), ValueError("three")]):
        board.write_failure(local, error)
    failures = [(local, failure) for local in (2, 1, 0) if (failure := board.failure(local))]
    assert first(failures)[0] == 2
    assert first(failures[1:])[0] == 0
    assert first([]) is None
