"""Ranks as processes: who dies, hangs or is asked to stop, and what becomes of the others. Nothing is trained."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.processes import alive, children, ranks_of, until

pytestmark = pytest.mark.faults

HERE = Path(__file__).parent
DRIVER = """
import sys
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, {here!r})
import rank_functions
from tinyllama.launch import forkserver, launcher
from tinyllama.launch.signals import Stopped, StopRequests

if __name__ == "__main__":
    layout = SimpleNamespace(nodes=1, gpus=2, rendezvous=None, device="cpu", max_restarts={restarts}, hang_after={hang})
    run_dir = Path({run_dir!r})
    report = lambda text: print("report", text, flush=True)
    function = getattr(rank_functions, {function!r})
    requests = StopRequests()
    requests.begin()
    try:
        requests.begin_part({limit})
        if {forked}:
            forkserver.start("preloaded_ranks")
        launcher.start_ranks(function, run_dir, layout, requests=requests, report=report)
        print("finished")
    except Stopped as stopped:
        print("stopped", stopped.by_user)
    except launcher.RankError as error:
        print("failed", error.disk_full, error)
    except KeyboardInterrupt:
        print("interrupted")
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(params=["spawned", "forked"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Start]:
    """Start a launcher of two ranks in a process of its own, whose run folder is tmp_path."""
    begun: list[subprocess.Popen[str]] = []

    def begin(function: str, *, restarts: int = 0, hang: int = 600, limit: int | None = None) -> subprocess.Popen[str]:
        values = {"function": function, "restarts": restarts, "hang": hang, "limit": limit}
        values["forked"] = request.param == "forked"
        script = tmp_path / "driver.py"
        script.write_text(DRIVER.format(here=str(HERE), run_dir=str(tmp_path), **values))
        environment = os.environ | {"PYTHONPATH": str(HERE.parents[1])}
        command = [sys.executable, str(script)]
        begun.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return begun[-1]

    yield begin
    for process in begun:  # after a test that failed
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate(timeout=90)[0].splitlines()


def pids(run_dir: Path, attempt: int = 0) -> list[int]:
    """The ranks' processes, once both have begun."""
    files = [run_dir / f"began-{attempt}-{rank}" for rank in (0, 1)]
    until(lambda: all(file.exists() for file in files))
    return [int(file.read_text()) for file in files]


def test_a_killed_rank_ends_a_deaf_group_which_starts_again(start: Start, tmp_path: Path) -> None:
    launcher = start("die_once", restarts=1)
    deaf = pids(tmp_path)[0]
    until(lambda: not alive(deaf))
    assert time.monotonic() - float((tmp_path / "died").read_text()) < 15
    report, end = told(launcher)
    assert report.startswith("report rank 1: killed by SIGKILL") and report.endswith("attempt 2 of 2 begins")
    assert end == "finished"


def test_what_would_come_again_is_not_tried_again(start: Start, tmp_path: Path) -> None:
    failure = tmp_path / "failure.txt"
    assert told(start("refuse", restarts=3)) == [f"failed False rank 1: ValueError: a bad set (traceback in {failure})"]
    assert "in refuse" in failure.read_text()


def test_memory_that_an_earlier_attempt_had_may_be_free_again(start: Start) -> None:
    first, second, end = told(start("run_out_of_memory", restarts=2))
    assert first.endswith("attempt 2 of 3 begins")
    assert second == "report rank 1: OutOfMemoryError: no room; attempt 3 of 3 begins"
    assert end == "finished"


def test_a_full_disk_is_said_to_be_one(start: Start) -> None:
    [line] = told(start("fill_the_disk", restarts=3))
    assert line.startswith("failed True rank ")


def test_a_rank_that_leaves_without_a_word_has_failed(start: Start) -> None:
    [line] = told(start("leave"))
    assert line.endswith("ended with exit status 0 and without a word")


@pytest.mark.parametrize("start", ["forked"], indirect=True)
def test_ranks_whose_server_is_killed_end_and_start_again(start: Start, tmp_path: Path) -> None:
    launcher = start("beat_until_asked", restarts=1)
    first = pids(tmp_path)
    [server] = children(launcher.pid, running=b"forkserver")
    os.kill(server, signal.SIGKILL)
    until(lambda: not any(map(alive, first)))
    pids(tmp_path, attempt=1)
    launcher.send_signal(signal.SIGTERM)
    report, end = told(launcher)
    assert "255 and without a word, as where the process that it was forked from is killed" in report
    assert end == "stopped False"


def test_requests_to_the_launcher(start: Start, tmp_path: Path) -> None:
    launcher = start("beat_until_asked", restarts=1)
    for pid in pids(tmp_path):
        os.kill(pid, signal.SIGINT)  # as a terminal does
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
        launcher.send_signal(number)
    assert told(launcher) == ["stopped False"]


def test_ctrl_c(start: Start, tmp_path: Path) -> None:
    launcher = start("beat_until_asked", restarts=1)
    pids(tmp_path)
    launcher.send_signal(signal.SIGINT)
    assert told(launcher) == ["stopped True"]


def test_requests_to_a_rank_that_has_no_handlers_yet(
    request: pytest.FixtureRequest, start: Start, tmp_path: Path
) -> None:
    """One that was spawned imports for seconds; one that was forked is only just there."""
    launcher = start("beat_until_asked", restarts=1)
    until(lambda: len(ranks_of(launcher.pid)) == 2)
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGTERM):
        os.kill(ranks_of(launcher.pid)[0], number)
    if "spawned" in request.node.callspec.id:
        assert not list(tmp_path.glob("began-*"))
    assert told(launcher) == ["stopped False"]


@pytest.mark.parametrize("limit", [1, 20])
def test_the_time_limit(start: Start, tmp_path: Path, limit: int) -> None:
    """While the launcher imports what it needs, and when the ranks have begun."""
    began = time.monotonic()
    assert told(start("beat_until_asked", restarts=1, limit=limit)) == ["stopped False"]
    assert limit <= time.monotonic() - began < limit + 10
    assert bool(list(tmp_path.glob("began-*"))) == (limit > 1)


def test_signs_of_life_wait_for_no_disk(start: Start, tmp_path: Path) -> None:
    start("beat_until_asked")
    if not os.access("/dev/shm", os.W_OK):
        pytest.skip("this machine has no folder in memory")
    for pid in pids(tmp_path):
        [board] = [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if line.endswith("/board")]
        assert board.split()[-1].startswith("/dev/shm/")


@pytest.mark.parametrize(
    ("function", "state"), [("stop_itself", "stopped by a signal"), ("keep_the_interpreter", "computing")]
)
def test_a_silent_rank_leaves_all_stacks(start: Start, tmp_path: Path, function: str, state: str) -> None:
    [line] = told(start(function, hang=2))
    stacks = tmp_path / "stacks"
    assert line == f"failed False rank 1: no sign of life for 2 s ({state}); stacks of all ranks in {stacks}"
    silence = []
    for rank in (0, 1):
        text = (stacks / f"rank-{rank}.txt").read_text()
        assert text.startswith(f"rank {rank}, process ") and "at step 7" in text and "in _stuck" in text
        silence.append(float(re.search(r"last sign of life ([\d.]+) s before", text)[1]))
    assert silence[0] + 0.2 < silence[1] >= 2  # where neither beats, they are as silent


@pytest.mark.parametrize("function", ["stop_itself", "keep_the_interpreter"])
def test_no_rank_outlives_its_launcher(start: Start, tmp_path: Path, function: str) -> None:
    launcher = start(function)
    ranks = pids(tmp_path)
    started = ranks + children(launcher.pid, running=b"forkserver")
    launcher.kill()
    try:
        until(lambda: not any(alive(pid) for pid in started), seconds=5)
    finally:
        for pid in started:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
