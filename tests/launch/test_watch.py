"""What the watch finds of one group of ranks is not held against the next."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tinyllama.launch import watch as module
from tinyllama.launch.lifeline import Board, Lifeline
from tinyllama.launch.watch import Watch, Watched


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_a_verdict_about_ranks_that_were_started_again_meanwhile_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DUMP", 1.0)
    monkeypatch.setattr(module, "_INTERVAL", 0.05)
    board = Board.create(tmp_path / "board", ranks=1)
    former, later = sleeper(), sleeper()
    watch = Watch(board, hang_after=0, dumps=tmp_path, stacks=tmp_path / "stacks")
    watch.begin([Watched(0, 0, former.pid, os.getpid())])
    Lifeline(board).beat(1)
    writing = threading.Event()
    write = watch._write_stacks
    monkeypatch.setattr(watch, "_write_stacks", lambda *given: (writing.set(), write(*given))[1])
    try:
        watch.start()
        assert writing.wait(10), "it is found silent"
        board.clear()
        watch.begin([Watched(0, 0, later.pid, os.getpid())])
        time.sleep(1.5)
        assert watch.verdict is None
        assert watch.killed == set()
        assert later.poll() is None
        Lifeline(board).beat(2)
        end = time.monotonic() + 10
        while watch.verdict is None:
            assert time.monotonic() < end, "the next one is found, too"
            time.sleep(0.05)
    finally:
        watch.stop()
        for process in (former, later):
            process.kill()
            process.wait()
