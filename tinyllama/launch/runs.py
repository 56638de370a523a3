"""A run's folder: what freezes the run, and what says how far it is.

Ranks read what to do from the frozen folder and from nowhere else, so that editing a YAML file never changes a run that
has started, and the machines of one run cannot disagree.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tinyllama.config.load import ConfigError, as_dict, digest, essence, run_folder, validate
from tinyllama.config.schema import RunConfig
from tinyllama.data.manifest import FILE, TOKENIZER_FILE
from tinyllama.engine.room import check_room
from tinyllama.plan.plan import Plan
from tinyllama.tracking.folder import CONFIG, PLAN, READABLE, RESULT
from tinyllama.tracking.record import write_json, write_whole

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
class Origin:
    """Where imported weights came from, and how text becomes tokens for them."""

    source: str
    start: int
    """The token that a document begins with."""
    adds_start: bool
    """Whether every text is begun with it."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A run as its folder holds it."""

    config: RunConfig
    digest: str
    data: DataIdentity
    changed: bool = False
    """Whether resume=force has made it another run than it was begun as."""
    origin: Origin | None = None
    """Of weights that were not trained here."""


def freeze(run_dir: Path, config: RunConfig, data: DataIdentity, plan: Plan, *, writes: bool = True) -> bool:
    """Write a run down in its folder, for the ranks (config.json) and for people (config.yaml, plan.json).

    A finished run stays as it is, unless it is to go on changed; whether there is anything left to train. Raises
    ValueError, and writes nothing, where the folder holds another run or one that was trained on other data, and
    config.resume does not force it, and where more steps are behind it than are planned; OSError where the disk has no
    room for its checkpoints. A launcher that is not to write only compares.
    """
    frozen = Frozen(config=config, digest=digest(config), data=data)
    earlier = thaw(run_dir) if is_begun(run_dir) else None
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
    if (taken := steps_taken(run_dir)) > plan.steps:
        raise ValueError(f"budget: {run_dir} has taken {taken:,} steps, more than {plan.steps:,}: raise it")
    if (seen := tokens_seen(run_dir, taken)) not in (None, plan.tokens_by(taken)):
        raise ValueError(
            f"train.batch_tokens: the {taken:,} steps that {run_dir} has taken saw {seen:,} tokens, where this batch "
            f"and these stages make them {plan.tokens_by(taken):,}: keep the batches of the steps that are behind it"
        )
    if finished(run_dir) and earlier is not None and earlier.digest == frozen.digest:
        return False
    if not writes:
        return True
    # what a run was changed to while it was under way does not tell what its steps were
    other = earlier is not None and (
        earlier.changed or earlier.digest != frozen.digest or earlier.data.manifest_sha256 != data.manifest_sha256
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    for stale in (RESULT, FAILURE):  # what an earlier attempt failed of is past
        (run_dir / stale).unlink(missing_ok=True)
    write_whole(tokenizer(run_dir), (Path(data.folder) / TOKENIZER_FILE).read_bytes())
    write_down(run_dir, replace(frozen, changed=other))
    write_json(run_dir / PLAN, plan.as_dict())
    check_room(run_dir, plan.disk.checkpoint)
    return True


def write_down(run_dir: Path, frozen: Frozen) -> None:
    """Write what a run is, for the program and for people."""
    whole = {
        "digest": frozen.digest,
        "changed": frozen.changed,
        "data": asdict(frozen.data),
        "config": as_dict(frozen.config),
    }
    if frozen.origin:
        whole["origin"] = asdict(frozen.origin)
    write_json(run_dir / CONFIG, whole)
    write_whole(run_dir / READABLE, OmegaConf.to_yaml(as_dict(frozen.config)).encode())


def thaw(run_dir: Path) -> Frozen:
    """Read a run back from its folder. Raises ValueError where the folder holds none, or another version's."""
    try:
        whole = json.loads((run_dir / CONFIG).read_text())
        return Frozen(
            config=validate(whole["config"]),
            digest=whole["digest"],
            data=DataIdentity(**whole["data"]),
            changed=whole.get("changed", False),
            origin=Origin(**whole["origin"]) if "origin" in whole else None,
        )
    except ConfigError as error:
        raise ValueError(
            f"{run_dir} was written by another version of this program, and this one cannot read its configuration "
            f"({error.problems[0]}): use that version, or another folder"
        ) from error
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{run_dir} holds no run ({error!r}): name the folder of one") from error


def is_published(folder: Path) -> bool:
    """Whether a folder holds a model in Hugging Face's format rather than a run."""
    try:
        return "model_type" in json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, TypeError):
        return False


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


def steps_taken(run_dir: Path) -> int:
    """The step of a run's newest checkpoint, by its name; 0 where there is none."""
    return max((step for step, _ in checkpoints(run_dir)), default=0)


def checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """The steps of a run's checkpoints, by their names, and where they are."""
    found = ((path.name.removeprefix("step-"), path) for path in (run_dir / CHECKPOINTS).glob("step-*"))
    return [(int(step), path) for step, path in found if step.isdecimal()]


def tokens_seen(run_dir: Path, step: int) -> int | None:
    """What the checkpoint of a step says; None where it does not: whoever resumes from it finds it damaged."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        whole = json.loads((run_dir / CHECKPOINTS / f"step-{step:09d}/state.json").read_text())
        return int(whole["state"]["meta"]["tokens"])
    return None


def settled_before(config: RunConfig) -> RunConfig:
    """A run with the automatic micro-batch of its earlier start on the same GPUs, which may have had to halve it."""
    run_dir = run_folder(config)
    if config.parallelism.micro_batch != "auto" or config.resume == "never" or not is_begun(run_dir):
        return config
    earlier = thaw(run_dir)
    layout = replace(earlier.config.parallelism, micro_batch="auto")
    same = (layout, earlier.config.hardware, earlier.digest) == (config.parallelism, config.hardware, digest(config))
    return replace(config, parallelism=earlier.config.parallelism) if same else config


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
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        return result if result["status"] == "finished" else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a run: {error!r}: move it away, or choose another run_dir") from error


def is_begun(run_dir: Path) -> bool:
    """Whether a run was ever started in a folder."""
    return (run_dir / CONFIG).exists()


def set_aside(run_dir: Path) -> Path | None:
    """Move an earlier run out of the way, if there is one, and say where it is now."""
    if not is_begun(run_dir):
        return None
    number = 1
    while (aside := run_dir.with_name(f"{run_dir.name}.{number}")).exists():
        number += 1
    return run_dir.rename(aside)
