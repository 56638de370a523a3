"""What ranks do in the tests of their launcher. Nothing here imports torch but where a process group is needed."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tinyllama.launch.lifeline import Lifeline


def rank() -> int:
    return int(os.environ["RANK"])


def attempt() -> int:
    return int(os.environ["TORCHELASTIC_RESTART_COUNT"])


def note(run_dir: Path, what: str) -> None:
    """A file that says this rank has done something, in which attempt and as which process."""
    path = run_dir / f"{what}-{attempt()}-{rank()}"
    path.with_suffix(".tmp").write_text(str(os.getpid()))
    path.with_suffix(".tmp").rename(path)


def beat_until_asked(run_dir: Path, lifeline: Lifeline) -> bool:
    """A run that never ends by itself; a rank asked to stop tells the others, as a loop does by its collectives."""
    note(run_dir, "began")
    step = 0
    while not lifeline.stop_asked() and not any(run_dir.glob(f"asked-{attempt()}-*")):
        step += 1
        lifeline.beat(step)
        time.sleep(0.02)
    note(run_dir, "asked")
    return False


def finish(run_dir: Path, lifeline: Lifeline) -> bool:
    """Ends well, though only one rank's end is at once and it is silent at last."""
    lifeline.beat(1)
    lifeline.rest()
    time.sleep(2.5 * rank())
    return True


def die_once(run_dir: Path, lifeline: Lifeline) -> bool:
    """The last rank is killed in the first attempt; the other one sees nothing, not even the SIGTERM that follows."""
    note(run_dir, "began")
    assert not lifeline.stop_asked()
    lifeline.beat(attempt())
    if attempt() == 0:
        if rank() == 1:
            (run_dir / "died").write_text(str(time.monotonic()))
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(100)
    return True


def run_out_of_memory(run_dir: Path, lifeline: Lifeline) -> bool:
    """In the second attempt one rank finds the device still taken."""
    import torch

    if rank() == 1 and attempt() < 2:
        raise RuntimeError("connection closed by peer") if attempt() == 0 else torch.OutOfMemoryError("no room")
    return True


def always_die(run_dir: Path, lifeline: Lifeline) -> bool:
    """Fails as a lost connection does, every time; the other rank has finished."""
    if rank() == 1:
        raise RuntimeError("connection closed by peer")
    return True


def refuse(run_dir: Path, lifeline: Lifeline) -> bool:
    """One rank raises what would come again, the others what follows from it."""
    note(run_dir, "began")
    if rank() == 1:
        raise ValueError("a bad set")
    while not (run_dir / "began-0-1").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    raise RuntimeError("connection closed by peer")


def fill_the_disk(run_dir: Path, lifeline: Lifeline) -> bool:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def leave(run_dir: Path, lifeline: Lifeline) -> bool:
    """Ends with the status of success and without returning."""
    os._exit(0)


def _stuck(run_dir: Path, lifeline: Lifeline, how: Callable[[], object]) -> bool:
    note(run_dir, "began")
    while True:
        lifeline.beat(7)
        if rank() == 1:
            how()
        time.sleep(0.02)


def stop_itself(run_dir: Path, lifeline: Lifeline) -> bool:
    """One rank is stopped, the other goes on."""
    return _stuck(run_dir, lifeline, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def keep_the_interpreter(run_dir: Path, lifeline: Lifeline) -> bool:
    """One rank is in C and does not let go of the interpreter's lock, so that no Python thread of it can run."""
    return _stuck(run_dir, lifeline, lambda: re.match(r"(a+)+$", "a" * 40 + "b"))


def lose_its_peer(run_dir: Path, lifeline: Lifeline) -> bool:
    """The other rank is in a collective of gloo's when this one is killed."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    if attempt() == 0:
        if rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))
    dist.destroy_process_group()
    return True
