"""From a checked configuration to running ranks: the run folder that freezes it, and torch's elastic launcher.

Ranks read what to do from the frozen folder and from nowhere else, so that editing a YAML file never changes a run that
has started, and the machines of one run cannot disagree. Even one rank is a process of its own: the runs of a sweep
share no process, no CUDA state and no process group.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from tinyllama.config.load import as_dict, digest, essence, validate
from tinyllama.config.schema import Parallelism, RunConfig
from tinyllama.tracking.record import write_json

CONFIG = "config.json"
RESULT = "result.json"
TOKENIZER = "tokenizer.model"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, kw_only=True)
class DataIdentity:
    """Which prepared data a run is trained on."""

    folder: str
    manifest_sha256: str
    tokenizer_sha256: str


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A run as its folder holds it."""

    config: RunConfig
    digest: str
    data: DataIdentity


def freeze(run_dir: Path, config: RunConfig, data: DataIdentity) -> Frozen:
    """Write a run down in its folder, for the ranks (config.json) and for people (config.yaml).

    Raises ValueError, and writes nothing, where the folder holds another run or one that was trained on other data.
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
    run_dir.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(data.folder) / TOKENIZER, run_dir / TOKENIZER)
    write_json(run_dir / CONFIG, {"digest": frozen.digest, "data": asdict(data), "config": as_dict(config)})
    (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(as_dict(config)))
    return frozen


def thaw(run_dir: Path) -> Frozen:
    """Read a run back from its folder. Raises ValueError where the folder holds none."""
    try:
        whole = json.loads((run_dir / CONFIG).read_text())
        return Frozen(config=validate(whole["config"]), digest=whole["digest"], data=DataIdentity(**whole["data"]))
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{run_dir} holds no run: {error}") from error


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
            f"set data.tokenizer.model={Path(config.init_from) / TOKENIZER}"
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
    if not run_dir.exists():
        return None
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    return run_dir.rename(aside)


class RankError(RuntimeError):
    """A rank of a run failed."""


def start_ranks(function: Callable[[Path], None], run_dir: Path, parallelism: Parallelism) -> None:
    """Run `function(run_dir)` on this machine's ranks and return when all are done.

    `function` is a module's own: every rank imports it anew. Several machines meet at `parallelism.rendezvous`. Raises
    RankError where a rank fails; the others are then stopped, and its traceback is in failure.txt.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # what it would log of a failure is reported here
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    if parallelism.device == "cpu":
        # glibc gives large blocks back to the system and asks for them anew at every step: a tenth of a CPU step's time
        os.environ.setdefault("MALLOC_MMAP_MAX_", "0")
        os.environ.setdefault("MALLOC_TRIM_THRESHOLD_", "1000000000")
    host = (parallelism.rendezvous or "localhost").partition(":")[0]
    here = host in ("localhost", "127.0.0.1")
    if here:
        # a machine's own name may lead nowhere, and ranks that are all on one machine need none
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with TemporaryDirectory() as folder:  # for what the ranks' launcher records of a failure
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
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise RankError(f"rank {rank}: {_explain(failure.message, run_dir)}") from None


def _explain(message: Any, run_dir: Path) -> str:
    """What a rank failed of, its traceback kept in failure.txt; the result says so where no rank could write it."""
    reason = str(message)
    if isinstance(message, dict):  # otherwise it died without a word, of a signal for one
        report = run_dir / "failure.txt"
        report.write_text(message["extraInfo"]["py_callstack"])
        reason = f"{message['message']} (traceback in {report})"
    if not (run_dir / RESULT).exists():  # the first rank, which writes it, may have been stopped for another's sake
        write_json(run_dir / RESULT, {"status": "failed", "reason": reason})
    return reason


def _rank(function: Callable[[Path], None], run_dir: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import record

    record(function)(run_dir)
