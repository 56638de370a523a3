"""The ranks of one run on this machine, through torch's elastic launcher.

Even one rank is a process of its own: the runs of a sweep share no rank, no CUDA state and no process group.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tinyllama.config.load import ConfigError, Problem
from tinyllama.config.schema import Parallelism
from tinyllama.launch import forkserver, workers
from tinyllama.launch.lifeline import DISK_FULL, Board, Lifeline
from tinyllama.launch.runs import FAILURE
from tinyllama.launch.signals import Stopped, StopRequests
from tinyllama.launch.watch import Watch, dump_of
from tinyllama.tracking.folder import RESULT
from tinyllama.tracking.record import write_json

if TYPE_CHECKING:
    from tinyllama.launch.agent import Agent, Death

__all__ = ["RankError", "RankFunction", "check_gpus", "exit_status", "start_ranks"]

RankFunction = Callable[[Path, Lifeline], bool]
"""What a rank runs: a module's own function of the run folder, True where the run is finished, False where it stopped
because it was asked to. It is handed to ranks by its name."""

STACKS = "stacks"
_MEMORY = Path("/dev/shm")


def check_gpus(parallelism: Parallelism) -> None:
    """Raise ConfigError where this machine has fewer GPUs than its ranks need."""
    if parallelism.device == "cpu":
        return
    here = len(visible_gpus())
    if here < parallelism.gpus:
        way_out = f"set parallelism.gpus={here}" if here else "choose parallelism=cpu"
        says = f"{parallelism.gpus} are asked for on each machine and {here} are here: {way_out}"
        raise ConfigError([Problem("parallelism.gpus", says)])


def visible_gpus() -> list[str]:
    """The GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


class RankError(RuntimeError):
    """A rank of a run failed, and trying again did not help or could not."""

    def __init__(self, message: str, *, disk_full: bool = False, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.disk_full = disk_full
        """Whether the disk was full, or the user's share of it."""
        self.out_of_memory = out_of_memory
        """Whether the first step already took more than its GPU has."""


def exit_status(error: RankError | OSError, requests: StopRequests) -> int:
    """The status of a process whose work has failed. Raises Stopped where it failed because it was to stop."""
    full = error.disk_full if isinstance(error, RankError) else error.errno in DISK_FULL
    if isinstance(error, OSError) and not full:
        requests.check()  # a scheduler has ended the processes that prepare as well
    return os.EX_IOERR if full else 1


def start_ranks(
    function: RankFunction,
    run_dir: Path,
    parallelism: Parallelism,
    *,
    requests: StopRequests,
    report: Callable[[str], None] = print,
) -> None:
    """Run `function(run_dir, lifeline)` on this machine's ranks and return when all have finished.

    For the main thread. Several machines meet at `parallelism.rendezvous`. The ranks are asked to stop as this process
    is. Ranks that died are started again, up to `parallelism.max_restarts` times; what a rank raised that would come
    again (ValueError, ArithmeticError, FileNotFoundError, a full disk) is not tried again, nor anything once a stop is
    asked for.

    Raises Stopped where the ranks stopped because they were asked to, RankError where one failed for good, with its
    traceback in failure.txt, and KeyboardInterrupt, with all ranks dead, at the second Ctrl-C.
    """
    # the folder is also for what the elastic agent records of a failure
    variables = _variables(parallelism)
    with TemporaryDirectory(dir=_in_memory()) as name, forkserver.environment(variables):
        folder = Path(name)
        board = Board.create(folder / _Start.BOARD, ranks=parallelism.gpus)
        watch = Watch(board, hang_after=parallelism.hang_after, dumps=folder, stacks=run_dir / STACKS)
        with requests.passed_to(board):
            watch.start()
            try:
                start = _Start(function, run_dir, folder, variables)
                finished = _run(start, parallelism, board, watch, requests, report)
            finally:
                watch.stop()
        if not finished:
            raise Stopped(by_user=requests.by_user)


@dataclass(frozen=True)
class _Start:
    """What each rank process begins with."""

    BOARD = "board"

    function: RankFunction
    run_dir: Path
    folder: Path
    variables: Mapping[str, str]
    """Of the environment: a rank that is forked from a server has that of the server."""


def _run(
    start: _Start,
    parallelism: Parallelism,
    board: Board,
    watch: Watch,
    requests: StopRequests,
    report: Callable[[str], None],
) -> bool:
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters, registry
    from torch.distributed.launcher.api import LaunchConfig

    from tinyllama.launch.agent import Agent

    # what it would log of a failure is told here
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    nodes, ranks = parallelism.nodes, parallelism.gpus
    logs = DefaultLogsSpecs(log_dir=str(start.folder))
    address = "localhost" if _is_here(parallelism) else None
    agent: Agent | None = None
    try:
        rendezvous = registry.get_rendezvous_handler(
            RendezvousParameters(
                backend="c10d",
                endpoint=parallelism.rendezvous or "localhost:0",
                run_id=start.run_dir.name,
                min_nodes=nodes,
                max_nodes=nodes,
                local_addr=address,
            )
        )
        try:
            spec = WorkerSpec(
                role="rank",
                local_world_size=ranks,
                entrypoint=_rank,
                args=(start, os.getpid()),
                rdzv_handler=rendezvous,
                max_restarts=parallelism.max_restarts,
                local_addr=address,
                # which cores are near a rank's GPU
                numa_options=LaunchConfig(nodes, nodes, ranks, logs_specs=logs).numa_options,
            )
            forked = parallelism.device == "cpu" and forkserver.is_started()
            agent = Agent(spec, logs, forked=forked, board=board, watch=watch, requests=requests, report=report)
            result = agent.run()
        finally:
            rendezvous.shutdown()  # other machines are not to wait for this one
    except SignalException as quit_:  # Ctrl-\, which is left to the agent
        raise KeyboardInterrupt from quit_
    except RendezvousError as error:
        raise RankError(_did_not_meet(agent, parallelism, str(error))) from None
    if result is None:
        raise RankError(_did_not_meet(agent, parallelism, "another machine left"))
    if not result.is_failed():
        return all(result.return_values.values())
    assert agent.death is not None  # whatever fails has a reason
    if agent.death.by_stop and board.stop_asked():
        return False
    death = agent.death
    raise RankError(_explain(death, start.run_dir), disk_full=death.disk_full, out_of_memory=death.out_of_memory)


def _in_memory() -> Path | None:
    """A folder that is memory, where there is one with room: signs of life are not to wait for a disk that stalls."""
    room = os.access(_MEMORY, os.W_OK | os.X_OK) and shutil.disk_usage(_MEMORY).free > 16 << 20
    return _MEMORY if room else None


def _did_not_meet(agent: Agent | None, parallelism: Parallelism, error: str) -> str:
    if agent is None or not agent.met:
        return f"the {parallelism.nodes} machines did not meet at {parallelism.rendezvous}: {error}"
    reason = f"{agent.death}; " if agent.death else ""
    return f"{reason}the {parallelism.nodes} machines did not meet again at {parallelism.rendezvous}: {error}"


def _explain(death: Death, run_dir: Path) -> str:
    """What a rank failed of, its traceback kept in failure.txt; the result says so where no rank could write it.

    Where several machines have failed, what the first of them wrote stays, and a finished result does at any time.
    """
    reason = death.reason
    with suppress(OSError):  # the disk may be full, and that may be the reason
        if death.traceback is not None:
            report = run_dir / FAILURE
            with suppress(FileExistsError), report.open("x") as file:
                file.write(death.traceback)
            reason = f"{reason} (traceback in {report})"
        path = run_dir / RESULT
        told = json.loads(path.read_text()) if path.exists() else {}
        # the first rank, which writes it, may have been stopped for another's sake
        if told.get("status") not in ("failed", "finished"):
            write_json(path, told | {"status": "failed", "reason": reason})
    return f"rank {death.rank}: {reason}"


def _rank(start: _Start, launcher: int) -> bool:
    """A rank's process. What the function raises is kept on the board and makes the process fail."""
    from tinyllama.engine.distributed import Ranks

    os.environ.update(start.variables)
    workers.speak_into_log()
    local = Ranks.from_environment().local_rank
    parent, stacks = forkserver.parent_of_ranks(launcher), dump_of(start.folder, local)
    lifeline = Lifeline.attach(start.folder / _Start.BOARD, local=local, parent=parent, stacks=stacks)
    try:
        finished = start.function(start.run_dir, lifeline)
    except BaseException as error:
        lifeline.fail(error)
        if isinstance(error, Exception):
            raise
        raise RuntimeError("a rank does not end by itself") from error  # torch takes a KeyboardInterrupt for success
    lifeline.finish()
    return finished


def _is_here(parallelism: Parallelism) -> bool:
    return (parallelism.rendezvous or "localhost").partition(":")[0] in ("localhost", "127.0.0.1")


def _variables(parallelism: Parallelism) -> dict[str, str]:
    """Environment variables that suit ranks, which a user's own come before, and what a worker and the agent set."""
    suited = {}
    if _is_here(parallelism) and sys.platform == "linux":
        suited["GLOO_SOCKET_IFNAME"] = "lo"  # a machine's own name may lead nowhere, and these ranks need none
    if parallelism.device == "cpu":
        suited |= forkserver.MEMORY
    ours = {
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT",  # the others are handled here
        # otherwise ranks that are started again meet in the store of the attempt before, at its ranks' addresses
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }
    if log := os.environ.get(workers.OUTPUT):
        ours[workers.OUTPUT] = log  # a server that a worker has started knows that of its first job
    return forkserver.unset(suited) | ours
