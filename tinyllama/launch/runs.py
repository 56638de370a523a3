"""A run's folder: what freezes the run, what says how far it is, and who may work in it.

Ranks read what to do from the frozen folder and from nowhere else, so that editing a YAML file never changes a run that
has started, and the machines of one run cannot disagree.
"""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from tinyllama.config.load import as_dict, digest, essence, validate
from tinyllama.config.schema import RunConfig
from tinyllama.data.manifest import FILE, TOKENIZER_FILE
from tinyllama.tracking.record import write_json

CONFIG = "config.json"
RESULT = "result.json"
FAILURE = "failure.txt"
CHECKPOINTS = "checkpoints"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk says that is full, or the user's share of it."""


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

    A finished run stays as it is, unless it is to go on changed. Raises ValueError, and writes nothing, where the
    folder holds another run or one that was trained on other data, and config.resume does not force it.
    """
    frozen = Frozen(config=config, digest=digest(config), data=data)
    earlier = thaw(run_dir) if (run_dir / CONFIG).exists() else None
    if earlier is not None and config.resume == "force":
        check_weights_fit(config, data, origin=earlier, key="run_dir", folder=run_dir)
    elif earlier is not None:
        if earlier.digest != frozen.digest:
            changed = ", ".join(differences(essence(earlier.config), essence(config)))
            raise ValueError(
                f"run_dir: {run_dir} holds a run with another {changed}: choose another run_dir, leave it out so that "
                "the run gets a folder of its own, or set resume=never to start over, or resume=force to go on so"
            )
        if earlier.data.manifest_sha256 != data.manifest_sha256:
            raise ValueError(
                f"data: {run_dir} was trained on {earlier.data.folder}, which holds other tokens than {data.folder} "
                "does now: set resume=never to start over, or resume=force to go on so"
            )
    if finished(run_dir) and earlier is not None and earlier.digest == frozen.digest:
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
    folder = Path(config.init_from)
    check_weights_fit(config, data, origin=with_checkpoint(folder), key="init_from", folder=folder)


def check_weights_fit(config: RunConfig, data: DataIdentity, *, origin: Frozen, key: str, folder: Path) -> None:
    """Raise ValueError, naming the key, where a run's weights are no use to this one."""
    ours, theirs = as_dict(config)["model"], as_dict(origin.config)["model"]
    if changed := [name for name in differences(ours, theirs) if name not in ("name", "context")]:
        raise ValueError(
            f"{key}: {folder} has another model.{', model.'.join(changed)}: its weights do not fit; "
            "choose the same model or another run"
        )
    if origin.data.tokenizer_sha256 != data.tokenizer_sha256:
        raise ValueError(
            f"{key}: {folder} was trained with another tokenizer: its embeddings mean other tokens; "
            f"set data.tokenizer.model={folder / TOKENIZER_FILE}"
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


@contextmanager
def alone(run_dir: Path, *, held: bool = True) -> Iterator[None]:
    """Keep every other process out of a run's folder. Raises ValueError where one is in it.

    Where it is not to be held, only look: the launchers of one run on several machines work in one folder together.
    """
    with _lock(run_dir) as file:
        if not held:
            fcntl.flock(file, fcntl.LOCK_UN)
        yield


def hold(run_dir: Path) -> None:
    """Keep every other process out of a run's folder until this one ends. Raises ValueError where one is in it."""
    _held.append(_lock(run_dir))


_held: list[IO[str]] = []


def _lock(run_dir: Path) -> IO[str]:
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    file = run_dir.with_name(f".{run_dir.name}.lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(f"run_dir: another process is training in {run_dir}: let it end, or stop it") from error
    return file


def check_room(run_dir: Path, *, parameters: int) -> None:
    """Raise OSError where the disk has no room for one checkpoint: weights and two moments in fp32."""
    n_bytes, free = 12 * parameters, shutil.disk_usage(run_dir).free
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"a checkpoint takes {n_bytes / 1e9:.3g} GB and the disk of {run_dir} has {free / 1e9:.3g} GB left: free "
            "some, or choose another runs_dir",
        )
