"""The process that CPU ranks are forked from: what it has, what it hands on, and that it goes with its launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import children

ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, multiprocessing, os, signal, sys
from tinyllama.launch import forkserver
from tinyllama.launch.lifeline import LATE_SIGNALS

def rank(conn):
    import torch
    conn.send({
        "imported": all(name in sys.modules for name in ("torch", "deepspeed", "mlflow", "tinyllama.train.loop")),
        "parent": os.getppid() == forkserver.parent_of_ranks(0),
        "threads": len(os.listdir("/proc/self/task")),
        "malloc": os.environ["MALLOC_MMAP_MAX_"],
        "blocked": LATE_SIGNALS <= signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "drawn": torch.rand(3).tolist(),
    })

if __name__ == "__main__":
    for line in sys.stdin:
        forkserver.start("tinyllama.preload")
        forkserver.wait()
        mine, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("forkserver").Process(target=rank, args=(theirs,))
        process.start()
        theirs.close()
        print(json.dumps(mine.recv()), flush=True)
        process.join()
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts a server, if there is none, and a rank for each line that it is given, and prints what the rank finds."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith(("OPENBLAS", "MALLOC"))}
        | {"PYTHONPATH": str(ROOT)},
    )
    yield process
    process.kill()
    process.communicate()


def asked(launcher: subprocess.Popen[str]) -> dict[str, object]:
    assert launcher.stdin and launcher.stdout
    launcher.stdin.write("\n")
    launcher.stdin.flush()
    told: dict[str, object] = json.loads(launcher.stdout.readline())
    return told


def test_one_that_dies_of_its_imports_is_told(tmp_path: Path) -> None:
    (tmp_path / "dies.py").write_text("import os\nos.abort()\n")
    code = "from tinyllama.launch import forkserver\nforkserver.start('dies')\nforkserver.wait()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "ChildProcessError: the process that ranks are forked from ended" in done.stderr


def ends(pid: int) -> None:
    """Returns when a process has ended, which may still be there for its parent to hear of it."""
    end = time.monotonic() + 10
    while (path := Path(f"/proc/{pid}/stat")).exists() and path.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end, "it lives"
        time.sleep(0.02)


def test_it_has_one_thread_and_all_that_ranks_import_and_goes_with_its_launcher(
    launcher: subprocess.Popen[str],
) -> None:
    first = asked(launcher)
    [server] = children(launcher.pid, running=b"forkserver")
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1, "a fork takes one along"
    assert first | {"drawn": None} == {
        "imported": True,
        "parent": True,
        "threads": 1,
        "malloc": "0",
        "blocked": True,
        "drawn": None,
    }
    assert asked(launcher) == first, "what one rank does, no other finds"
    assert children(launcher.pid, running=b"forkserver") == [server]

    os.kill(server, signal.SIGKILL)
    ends(server)
    assert asked(launcher) | {"drawn": None} == first | {"drawn": None}, "PyTorch begins with a seed of chance"
    [another] = children(launcher.pid, running=b"forkserver")
    assert another != server
    os.kill(another, signal.SIGSTOP)
    launcher.kill()
    ends(another)
