"""The ranks of one run on this machine, through torch's elastic launcher.

Even one rank is a process of its own: the runs of a sweep share no process, no CUDA state and no process group.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tinyllama.config.schema import Parallelism
from tinyllama.launch.runs import FAILURE, RESULT
from tinyllama.tracking.record import write_json


def check_gpus(parallelism: Parallelism) -> None:
    """Raise ValueError where this machine has fewer GPUs than its ranks need."""
    if parallelism.device == "cpu":
        return
    import torch

    here = torch.cuda.device_count()
    if here < parallelism.gpus:
        raise ValueError(
            f"parallelism.gpus: {parallelism.gpus} are asked for on each machine and {here} are here: "
            + (f"set parallelism.gpus={here}" if here else "choose parallelism=cpu")
        )


class RankError(RuntimeError):
    """A rank of a run failed."""


def start_ranks(function: Callable[[Path], None], run_dir: Path, parallelism: Parallelism) -> None:
    """Run `function(run_dir)` on this machine's ranks and return when all are done.

    `function` is a module's own: every rank imports it anew. Several machines meet at `parallelism.rendezvous`. Raises
    RankError where a rank fails; the others are then stopped, and its traceback is in failure.txt.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # what it would log of a failure is told here
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    host = (parallelism.rendezvous or "localhost").partition(":")[0]
    here = host in ("localhost", "127.0.0.1")
    # the folder is for what the ranks' launcher records of a failure
    with TemporaryDirectory() as folder, _environment(_suited(parallelism, here=here)):
        launch = LaunchConfig(
            min_nodes=parallelism.nodes,
            max_nodes=parallelism.nodes,
            nproc_per_node=parallelism.gpus,
            rdzv_backend="c10d",
            rdzv_endpoint=parallelism.rendezvous or "localhost:0",
            run_id=run_dir.name,
            max_restarts=0,
            local_addr="localhost" if here else None,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(launch, _rank)(function, run_dir)
        except SignalException as stopped:  # what the launcher makes of Ctrl-C and of a scheduler's signals
            raise KeyboardInterrupt from stopped
        except RendezvousError as error:
            raise RankError(
                f"the {parallelism.nodes} machines did not meet at {parallelism.rendezvous}: {error}"
            ) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise RankError(f"rank {rank}: {_explain(failure.message, run_dir)}") from None


def _explain(message: Any, run_dir: Path) -> str:
    """What a rank failed of, its traceback kept in failure.txt; the result says so where no rank could write it."""
    reason = str(message)
    if isinstance(message, dict):  # otherwise it died without a word, of a signal for one
        report = run_dir / FAILURE
        report.write_text(message["extraInfo"]["py_callstack"])
        reason = f"{message['message']} (traceback in {report})"
    path = run_dir / RESULT
    told = json.loads(path.read_text()) if path.exists() else {}
    if told.get("status") != "failed":  # the first rank, which writes it, was stopped for another's sake
        write_json(path, told | {"status": "failed", "reason": reason})
    return reason


def _rank(function: Callable[[Path], None], run_dir: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import record

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    record(function)(run_dir)


def _stop(*_: object) -> None:
    """Unwind, so that what has begun is put in order on the way out, which a second signal must not cut short."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _suited(parallelism: Parallelism, *, here: bool) -> dict[str, str]:
    """Environment variables that suit ranks, which a user's own come before."""
    suited = {}
    if here and sys.platform == "linux":
        suited["GLOO_SOCKET_IFNAME"] = "lo"  # a machine's own name may lead nowhere, and these ranks need none
    if parallelism.device == "cpu":
        # glibc gives large blocks back to the system and asks for them anew at every step: a tenth of a CPU step's time
        suited |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000"}
    return {name: value for name, value in suited.items() if name not in os.environ}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
