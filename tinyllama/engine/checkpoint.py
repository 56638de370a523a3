"""Checkpoints that no ZeRO stage and no number of ranks can be read off.

A checkpoint is a folder `step-000000100` that holds `weights`, `exp_avg` and `exp_avg_sq` as safetensors, fp32 by
parameter name, and `state.json` with the counters and every file's sha256. It is written beside its place and renamed:
a folder of that name is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from tinyllama.engine.zero import TrainState, Weights

_PARTS = ("weights", "exp_avg", "exp_avg_sq")


class Damaged(ValueError):  # noqa: N818
    """A checkpoint's files are not what was written."""


def save(folder: Path, state: TrainState, *, meta: dict[str, Any], keep: int) -> Path:
    """Write a state under `folder` and remove all but the newest `keep` checkpoints. Raises OSError; leaves no part."""
    place = folder / f"step-{state.step:09d}"
    partial = folder / f".{place.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        hashes = {}
        for part in _PARTS:
            path = partial / f"{part}.safetensors"
            save_file(getattr(state, part), path)
            hashes[path.name] = _sha256(path)
            _sync(path)
        counters = partial / "state.json"
        counters.write_text(json.dumps({"step": state.step, **meta, "sha256": hashes}, indent=2) + "\n")
        _sync(counters)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
        _sync(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for old in found(folder)[:-keep]:
        shutil.rmtree(old)
    return place


def found(folder: Path) -> list[Path]:
    """The checkpoints under a folder, oldest first by their step."""
    names = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(names, key=lambda path: int(path.name.removeprefix("step-")))


def load(place: Path) -> tuple[TrainState, dict[str, Any]]:
    """A checkpoint's state and what else its state.json says. Raises Damaged where a file is not what was written."""
    meta = _read_meta(place)
    parts = {part: _read_part(place, part, meta) for part in _PARTS}
    return TrainState(step=meta["step"], **parts), meta


def latest_weights(folder: Path) -> Weights:
    """The weights alone of the newest checkpoint, of which there has to be one. Raises Damaged."""
    place = found(folder)[-1]
    return _read_part(place, "weights", _read_meta(place))


def newest(folder: Path, *, report: Callable[[str], None]) -> tuple[TrainState, dict[str, Any]] | None:
    """The newest checkpoint that is whole, with what else its state.json says, reporting those passed over."""
    for place in reversed(found(folder)):
        try:
            return load(place)
        except Damaged as error:
            report(f"warning: {error}; going back to the checkpoint before it")
    return None


def _read_meta(place: Path) -> dict[str, Any]:
    try:
        meta: dict[str, Any] = json.loads((place / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise Damaged(f"{place / 'state.json'} cannot be read: {error}") from error
    return meta


def _read_part(place: Path, part: str, meta: dict[str, Any]) -> Weights:
    path = place / f"{part}.safetensors"
    if not path.is_file():
        raise Damaged(f"{path} is missing")
    if _sha256(path) != meta["sha256"][path.name]:
        raise Damaged(f"{path} is not what was written: its sha256 differs")
    weights: Weights = load_file(path)
    return weights


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
