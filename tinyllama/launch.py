"""From a checked configuration to running ranks: the run folder that freezes it, and torch's elastic launcher.

Ranks read what to do from the frozen folder and from nowhere else, so that editing a YAML file never changes a run that
has started, and the machines of one run cannot disagree. Even one rank is a process of its own: the runs of a sweep
share no process, no CUDA state and no process group.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from tinyllama.config.load import as_dict, digest, essence, validate
from tinyllama.config.schema import Parallelism, RunConfig
from tinyllama.data.manifest import FILE, TOKENIZER_FILE
from tinyllama.tracking.record import write_json

CONFIG = "config.json"
RESULT = "result.json"
FAILURE = "failure.txt"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """Which prepared data a run is trained on."""

    folder: str
    manifest_sha256: str
    tokenizer_sha256: str

    @classmethod
    def of(cls, folder: Path, *, tokenizer_sha256: str) -> DataIdentity:
        """The identity of the data set in a folder."""
        manifest = (folder / FILE).read_bytes()
        return cls(folder=str(folder), manifest_sha256=sha256(manifest).hexdigest(), tokenizer_sha256=tokenizer_sha256)


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A run as its folder holds it."""

    config: RunConfig
    digest: str
    data: DataIdentity


def freeze(run_dir: Path, config: RunConfig, data: DataIdentity) -> None:
    """Write a run down in its folder, for the ranks (config.json) and for people (config.yaml).

    A finished run stays as it is. Raises ValueError, and writes nothing, where the folder holds another run or one that
    was trained on other data.
    """
    frozen = Frozen(config=config, digest=digest(config), data=data)
    if (run_dir / CONFIG).exists():
        earlier = thaw(run_dir)
        if earlier.digest != frozen.digest:
            changed = ", ".join(differences(essence(earlier.config), essence(config)))
            raise ValueError(
                f"run_dir: {run_dir} holds a run with another {changed}: choose another run_dir, leave it out so that "
                "the run gets a folder of its own, or set resume=never to start over"
            )
        if earlier.data.manifest_sha256 != data.manifest_sha256:
            raise ValueError(
                f"data: {run_dir} was trained on {earlier.data.folder}, which holds other tokens than {data.folder} "
                "does now: set resume=never to start over"
            )
    if finished(run_dir):
        return
    run_dir.mkdir(parents=True, exist_ok=True)
    for stale in (RESULT, FAILURE):  # what an earlier attempt failed of is past
        (run_dir / stale).unlink(missing_ok=True)
    shutil.copyfile(Path(data.folder) / TOKENIZER_FILE, tokenizer(run_dir))
    write_json(run_dir / CONFIG, {"digest": frozen.digest, "data": asdict(data), "config": as_dict(config)})
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(as_dict(config)))


def thaw(run_dir: Path) -> Frozen:
    """Read a run back from its folder. Raises ValueError where the folder holds none."""
    try:
        whole = json.loads((run_dir / CONFIG).read_text())
        return Frozen(config=validate(whole["config"]), digest=whole["digest"], data=DataIdentity(**whole["data"]))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{run_dir} holds no run: {error}") from error


def tokenizer(run_dir: Path) -> Path:
    """A run's own copy of its tokenizer."""
    return run_dir / TOKENIZER_FILE


def check_init(config: RunConfig, data: DataIdentity) -> None:
    """Raise ValueError where the run whose weights are to be started from has another shape or another tokenizer."""
    if config.init_from is None:
        return
    origin = with_checkpoint(Path(config.init_from))
    ours, theirs = as_dict(config)["model"], as_dict(origin.config)["model"]
    if changed := [key for key in differences(ours, theirs) if key not in ("name", "context")]:
        raise ValueError(
            f"init_from: {config.init_from} has another model.{', model.'.join(changed)}: its weights do not fit; "
            "choose the same model or another run"
        )
    if origin.data.tokenizer_sha256 != data.tokenizer_sha256:
        raise ValueError(
            f"init_from: {config.init_from} was trained with another tokenizer: its embeddings mean other tokens; "
            f"set data.tokenizer.model={Path(config.init_from) / TOKENIZER_FILE}"
        )


def with_checkpoint(run_dir: Path) -> Frozen:
    """A run that has weights to read. Raises ValueError where the folder holds none yet."""
    frozen = thaw(run_dir)
    if not any((run_dir / CHECKPOINTS).glob("step-*")):
        raise ValueError(f"{run_dir} has no checkpoint yet: let the run train on, or name another")
    return frozen


def differences(one: dict[str, Any], other: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys whose values differ."""
    keys = []
    for key in sorted(one.keys() | other.keys()):
        a, b = one.get(key), other.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            keys += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            keys.append(prefix + key)
    return keys


def finished(run_dir: Path) -> dict[str, Any] | None:
    """The result of a run that has finished, else None."""
    path = run_dir / RESULT
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result["status"] == "finished" else None


def set_aside(run_dir: Path) -> Path | None:
    """Move an earlier run out of the way, if there is one, and say where it is now."""
    if not (run_dir / CONFIG).exists():
        return None
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    return run_dir.rename(aside)


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


@contextmanager
def alone(run_dir: Path, parallelism: Parallelism) -> Iterator[None]:
    """Keep every other process out of a run's folder. Raises ValueError where one is in it.

    The launchers of one run on several machines work in one folder together and are let in.
    """
    if parallelism.nodes > 1:
        yield
        return
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    with run_dir.with_name(f".{run_dir.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"run_dir: another process is training in {run_dir}: let it end, or stop it") from error
        yield


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
