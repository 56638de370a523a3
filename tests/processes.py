"""Finding the ranks of a launcher among the processes of this machine, and waiting for what becomes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def children(pid: int, *, running: bytes) -> list[int]:
    """The children of a process that multiprocessing has started in this way, in the order of their ids."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = sorted(int(child) for task in tasks for child in (task / "children").read_text().split())
    return [child for child in found if running in Path(f"/proc/{child}/cmdline").read_bytes()]


def ranks_of(launcher: int) -> list[int]:
    """The ranks of a launcher: its own children, or those of its fork server, in the order in which they began."""
    servers = children(launcher, running=b"forkserver")
    forked = [child for server in servers for child in children(server, running=b"forkserver")]
    return children(launcher, running=b"spawn_main") + forked


def until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    try:
        return path.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
