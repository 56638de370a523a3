"""Finding the ranks of a launcher among the processes of this machine."""

from __future__ import annotations

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
