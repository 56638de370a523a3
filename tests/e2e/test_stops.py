"""A stop at any moment of a command line ends it with its own status, and nothing is left half-written."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Here

GOES_ON = "the same command goes on where this one stopped"


def start(here: Here, *line: str) -> subprocess.Popen[str]:
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    return subprocess.Popen(here.command(*line), cwd=here.folder, stdout=pipe, stderr=out, text=True)


def until(condition: Callable[[], object], running: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert running.poll() is None, "it ended too early"
        assert time.monotonic() < end
        time.sleep(0.005)


def ended(running: subprocess.Popen[str], *, status: int) -> str:
    out, _ = running.communicate(timeout=60)
    assert running.returncode == status, out
    assert "Traceback" not in out
    return out


def takes_signals(pid: int) -> bool:
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> signal.SIGTERM - 1 & 1)


def workers_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.parametrize("wait", [0, 0.1, 0.3])
def test_while_it_imports_and_composes(here: Here, wait: float) -> None:
    running = start(here, "task=plan", "name=early")
    began = time.monotonic()
    until(lambda: takes_signals(running.pid), running)
    assert time.monotonic() - began < 1.5, "Python itself is all that comes before"
    time.sleep(wait)
    running.send_signal(signal.SIGTERM)
    ended(running, status=os.EX_TEMPFAIL)


def test_between_the_points_of_a_grid(here: Here) -> None:
    seeds = ",".join(map(str, range(1, 16)))
    running = start(here, "-m", f"seed={seeds}", "task=plan", "name=grid")
    until(lambda: len(list((here.folder / "runs").glob("grid-*/plan.json"))) > 0, running)
    running.send_signal(signal.SIGUSR2)
    assert GOES_ON in ended(running, status=os.EX_TEMPFAIL)
    plans = list((here.folder / "runs").glob("grid-*/*"))
    assert len(plans) < 15
    assert all(path.name == "plan.json" and json.loads(path.read_text()) for path in plans)


def test_the_time_limit_counts_what_comes_before_the_ranks_and_for_all_points(here: Here) -> None:
    line = ("-m", "seed=1,2", "time_limit=1", "name=late", "data_dir=elsewhere")
    assert f"stopped by a signal or the time limit: {GOES_ON}" in here.run(*line, expect=os.EX_TEMPFAIL)
    assert not list((here.folder / "runs").glob("late-*"))
    assert not list((here.folder / "elsewhere").glob("stdlib-*"))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in two units, each of which takes a process seconds to encode."""
    folder, letters = tmp_path_factory.mktemp("raw"), str.maketrans("0123456789", "etaoinshrd")
    words = (str(7 * index % 99_991).translate(letters) for index in range(400_000))
    lines = [json.dumps({"text": " ".join(one)}) + "\n" for one in zip(*[words] * 100, strict=True)]
    for number in (1, 2):
        (folder / f"{number}.jsonl").write_text("".join(lines) * 16)
    return folder


@pytest.mark.parametrize("whom", ["the launcher", "all of its processes"])
def test_while_data_is_prepared(here: Here, raw: Path, whom: str) -> None:
    """The workers go, too, and what is half done is hidden: the same line goes on with it."""
    data_dir = here.folder / whom.replace(" ", "-")
    web = f"+data.sources.web={{format: jsonl, raw: {raw}, include: ['*'], weight: 1, held_out: 0.01, tokens: 1M}}"
    line = ("~data.sources.text", "~data.sources.code", web, "data.name=web", f"data_dir={data_dir}")
    running = start(here, "task=prepare", "prepare.workers=2", *line)
    until(lambda: len(list(data_dir.glob(".web-*/web/.unit-*"))) == 2, running)
    workers = workers_of(running.pid)
    assert len(workers) == 2
    asked = time.monotonic()
    for pid in [running.pid] if whom == "the launcher" else [running.pid, *workers]:
        os.kill(pid, signal.SIGTERM)
    assert GOES_ON in ended(running, status=os.EX_TEMPFAIL)
    assert time.monotonic() - asked < 10
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(data_dir.glob("web-*"))
