"""The one reader of the variables by which a launcher tells a process its rank, and the sums over ranks."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

Beat = Callable[[], None]
"""Gives a sign of life."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where this process stands among those that train one model."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> Ranks:
        """What the launcher says. Raises KeyError where no launcher started this process."""
        return cls(
            rank=int(os.environ["RANK"]),
            local_rank=int(os.environ["LOCAL_RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
        )

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0


def use_device(kind: str, ranks: Ranks, *, threads: int | None, ranks_here: int) -> torch.device:
    """This rank's device, made the current one, and its share of the cores, or the given count of threads."""
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // ranks_here))
    if kind == "cuda":
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    return torch.device("cpu")


def meet(device: torch.device, *, patience: float) -> None:
    """Begin the group of all ranks; a collective that waits longer than so many seconds fails."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=patience))


def share_out(sizes: Mapping[str, int], ranks: int) -> dict[str, int]:
    """Which rank keeps which parameter: the largest first, each to the rank that has least."""
    load, owner = [0] * ranks, {}
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        owner[name] = load.index(min(load))
        load[owner[name]] += sizes[name]
    return owner


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum of every rank's tensor, in place on all of them; a process in no group is alone."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def anywhere(flag: bool, *, device: torch.device, beat: Beat | None = None) -> bool:
    """Whether it is so on any rank; all learn of it. beat is called while others are awaited, who may be slow."""
    if not dist.is_initialized():
        return flag
    total = torch.tensor([float(flag)], device=device)
    asked = dist.all_reduce(total, async_op=True)
    while beat is not None and not asked.is_completed():
        beat()
        time.sleep(0.001)
    asked.wait()
    return bool(total[0])


def from_first(number: int, ranks: Ranks, *, device: torch.device) -> int:
    """The first rank's number, on all of them."""
    return int(sum_over_ranks(torch.tensor([number if ranks.is_first else 0], device=device))[0])


def wait_for_all() -> None:
    """Return when every rank has come here."""
    dist.barrier()


def leave() -> None:
    """Take this process out of its group once all are here, as the last thing it does.

    It then ends without the interpreter's own shutdown, in which threads of gloo's abort every tenth process or so
    (torch 2.13: "terminate called without an active exception"), which would make a failure of a finished run.
    """
    if dist.is_initialized():
        wait_for_all()
        dist.destroy_process_group()
    atexit.register(_end)


def _end() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


@contextmanager
def kept_alive(beat: Beat, *, every: float = 5.0, at_most: float = 3600.0) -> Iterator[None]:
    """Within, a thread gives signs of life: a compilation takes minutes where much else runs. But not for ever."""
    ended = threading.Event()

    def give() -> None:
        for _ in range(round(at_most / every)):
            if ended.wait(every):
                return
            beat()

    thread = threading.Thread(target=give, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
