"""Who may write into a run's folder: one process, or the launchers of one run together; looking keeps nobody out."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tinyllama.tracking import folder
from tinyllama.tracking.folder import alone, is_kept

KEEPER = """
import sys
from pathlib import Path
from tinyllama.tracking.folder import alone
with alone(Path(sys.argv[1]), meet=sys.argv[2] or None) as first:
    print(first, flush=True)
    sys.stdin.read()
"""


@contextmanager
def kept(run_dir: Path, meet: str = "") -> Iterator[str]:
    """Another process in a folder; whether it is the first there, as it says."""
    command = [sys.executable, "-c", KEEPER, str(run_dir), meet]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "one"
    assert not is_kept(run_dir)
    with kept(run_dir) as first:
        assert first == "True"
        assert is_kept(run_dir)
        began = time.monotonic()
        with pytest.raises(ValueError, match=r"run_dir: another process is training in .*/one: let it end, or stop it"):
            alone(run_dir).__enter__()
        assert time.monotonic() - began < 3
    with alone(run_dir) as here:
        assert here
    assert not is_kept(run_dir)


def test_the_launchers_of_one_run_are_let_in_together(tmp_path: Path) -> None:
    run_dir = tmp_path / "one"
    with kept(run_dir, "node1:29400") as first:
        assert first == "True"
        with alone(run_dir, meet="node1:29400") as second, alone(run_dir, meet="node1:29400") as third:
            assert (second, third) == (False, False)
        for stranger in (None, "node2:29400"):
            with pytest.raises(ValueError, match="another process is training"):
                alone(run_dir, meet=stranger).__enter__()
    with kept(run_dir), pytest.raises(ValueError, match="another process is training"):
        alone(run_dir, meet="node1:29400").__enter__()


def test_looking_keeps_nobody_out(tmp_path: Path) -> None:
    """Some look all the time while others come and go, a thousand times."""
    run_dir, over, looks = tmp_path / "one", threading.Event(), [0]

    def look() -> None:
        while not over.is_set():
            is_kept(run_dir)
            looks[0] += 1

    lookers = [threading.Thread(target=look) for _ in range(4)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(1000):
            with alone(run_dir) as first:
                assert first
    finally:
        over.set()
        for looker in lookers:
            looker.join()
    assert looks[0] > 100


def test_a_look_that_takes_long_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / ".one.lock").open("w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        threading.Timer(0.3, fcntl.flock, (looking, fcntl.LOCK_UN)).start()
        with alone(tmp_path / "one") as first:
            assert first


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_filesystem_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    refuse(monkeypatch, number)
    with caplog.at_level(logging.WARNING), alone(tmp_path / "one") as first:
        assert first
        assert not is_kept(tmp_path / "one")
    assert f"the filesystem of {tmp_path} has no locks" in caplog.text


def test_what_is_not_another_process_is_said_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".folder.lock").mkdir()
    with pytest.raises(IsADirectoryError, match=r"\.folder\.lock can not be locked .*: let this user write there"):
        alone(tmp_path / "folder").__enter__()
    refuse(monkeypatch, errno.EACCES)
    with pytest.raises(PermissionError, match=r"\.one\.lock can not be locked \(Permission denied\): let this user"):
        alone(tmp_path / "one").__enter__()


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Make locks fail with this error."""

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(folder.fcntl, "flock", flock)
