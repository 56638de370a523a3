"""Processes that do one job after the other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path
from threading import Timer

import pytest

from tests.processes import alive, until
from tinyllama.config.schema import RunConfig
from tinyllama.launch import launcher
from tinyllama.launch.workers import OUTPUT, Worker, log_of, stop

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, str(Path(__file__).with_name("worker_command.py"))]


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    one = Worker(COMMAND, {"PART": "3"})
    yield one
    one.stop()
    one.close()


def job(folder: Path, name: str, does: str) -> Path:
    path = folder / f"{name}.json"
    path.write_text(does)
    return path


def pid_of(path: Path) -> int:
    """The process that did a job."""
    return int(path.with_suffix(".pid").read_text().split()[0])


def status(worker: Worker) -> int:
    found: list[int] = []
    until(lambda: (ended := worker.ended()) is not None and (found.append(ended) or True))
    return found[0]


def test_one_process_does_job_after_job_each_into_its_own_log(worker: Worker, tmp_path: Path) -> None:
    jobs = [job(tmp_path, name, does) for name, does in {"a": "end 0", "b": "end 75", "c": "end 0"}.items()]
    statuses = []
    for path in jobs:
        worker.begin(path)
        statuses.append(status(worker))
    assert statuses == [0, 75, 0]
    assert len({path.with_suffix(".pid").read_text() for path in jobs}) == 1
    assert jobs[0].with_suffix(".pid").read_text().endswith(" 3")
    worker.close()
    for path in jobs:
        assert sorted(log_of(path).read_text().splitlines()) == [
            f"child of {path.stem}",
            f"says {path.stem}",
            f"to err {path.stem}",
        ]


def test_ranks_are_told_the_log_of_the_job(config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked ranks have the environment of their server, which was started in an earlier job."""
    monkeypatch.setenv(OUTPUT, "second.log")
    assert launcher._variables(config().parallelism)[OUTPUT] == "second.log"
    monkeypatch.delenv(OUTPUT)
    assert OUTPUT not in launcher._variables(config().parallelism)


@pytest.mark.parametrize(("does", "ended"), [("die 5", 5), ("die 0", 1)])
def test_a_worker_that_dies_is_started_anew(worker: Worker, tmp_path: Path, does: str, ended: int) -> None:
    """One that leaves with status 0 in the midst of its job has not finished it."""
    first, second = job(tmp_path, "a", does), job(tmp_path, "b", "end 0")
    worker.begin(first)
    assert status(worker) == ended
    worker.begin(second)
    assert status(worker) == 0


def test_one_that_dies_idle_takes_no_job_along(worker: Worker, tmp_path: Path) -> None:
    first, second = job(tmp_path, "a", "end 0"), job(tmp_path, "b", "end 0")
    worker.begin(first)
    assert status(worker) == 0
    os.kill(pid_of(first), signal.SIGKILL)
    worker.begin(second)  # it may not be dead yet
    assert status(worker) == 0
    assert pid_of(second) != pid_of(first)


def test_one_that_is_asked_to_stop_as_its_job_ends_takes_no_other(worker: Worker, tmp_path: Path) -> None:
    first, second = job(tmp_path, "a", "asked 0"), job(tmp_path, "b", "end 0")
    for path in (first, second):
        worker.begin(path)
        assert status(worker) == 0
    assert pid_of(second) != pid_of(first)


def test_one_whose_parent_is_gone_before_it_serves_does_nothing(tmp_path: Path) -> None:
    path = job(tmp_path, "a", "end 0")
    ours, theirs = Pipe()
    with ours, theirs:
        ours.send(str(path))
        done = subprocess.run(
            [*COMMAND, "--jobs", str(theirs.fileno()), "--parent", str(2**22 + 1)],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PART": "1"},
            timeout=30,
            check=False,
        )
    assert done.returncode == 1
    assert not path.with_suffix(".pid").exists()


def test_a_worker_is_asked_to_stop_in_the_midst_of_a_job(worker: Worker, tmp_path: Path) -> None:
    worker.begin(job(tmp_path, "a", "wait 0"))
    until((tmp_path / "waits").exists)
    assert worker.ended() is None
    worker.stop()
    assert status(worker) == -signal.SIGTERM


def test_a_second_ctrl_c_kills_what_does_not_stop(worker: Worker, tmp_path: Path) -> None:
    worker.begin(job(tmp_path, "a", "deaf 0"))
    until((tmp_path / "waits").exists)
    assert worker._process is not None
    Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        stop([worker])
    assert worker._process.wait(timeout=10) == -signal.SIGKILL


@pytest.mark.parametrize("does", ["wait 0", "end 0"])
def test_it_ends_with_the_process_that_hands_out_jobs(tmp_path: Path, does: str) -> None:
    path = job(tmp_path, "a", does)
    hands_out = f"""
        import sys, time
        from pathlib import Path
        from tinyllama.launch.workers import Worker
        worker = Worker({COMMAND!r}, {{"PART": "1"}})
        worker.begin(Path({str(path)!r}))
        print(worker._process.pid, flush=True)
        time.sleep(60)
        """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    asked = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(hands_out)], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert asked.stdout is not None
    pid = int(asked.stdout.readline())
    until((tmp_path / ("waits" if does == "wait 0" else "a.pid")).exists)
    asked.kill()
    asked.communicate()
    until(lambda: not alive(pid))
