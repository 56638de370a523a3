"""Checkpoints that no ZeRO stage and no number of ranks can be read off.

A checkpoint is a folder `step-000000100`. Its tensors are fp32 by parameter name, in safetensors files of one part
(`weights`, `exp_avg`, `exp_avg_sq`) each, as many as ranks wrote it; `state.json` has the counters, every file's sha256
and its own. It is written beside its place and renamed: a folder of that name is whole. Nothing in it is a pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

PARTS = ("weights", "exp_avg", "exp_avg_sq")
STATE = "state.json"
BAD = (errno.EIO, errno.EBADMSG, errno.EUCLEAN)
"""What a disk says of what it has lost. Whatever else it says may pass: a folder that is not mounted comes back."""
_CHUNK = 1 << 20


class Damaged(ValueError):  # noqa: N818
    """A checkpoint's files are not what was written."""


class Tensors(Mapping[str, Tensor]):
    """The tensors of one part by name, each read from its file when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        """Raises Damaged where a file is no safetensors."""
        self._open = ExitStack()
        self._file_of: dict[str, Any] = {}
        for path in files:
            try:
                file = self._open.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise Damaged(f"{path} is no safetensors file: {error}") from error
            self._file_of |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file_of[name].get_tensor(name)
        return tensor

    def described(self, name: str) -> tuple[tuple[int, ...], str]:
        """A tensor's shape and its dtype as safetensors spells it, without reading it."""
        piece = self._file_of[name].get_slice(name)
        return tuple(piece.get_shape()), piece.get_dtype()

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: what its state.json says."""

    place: Path
    step: int
    meta: dict[str, Any]
    """What was handed to the saving beside the tensors."""
    sha256: dict[str, str]
    """Of every file of tensors, by name."""

    @classmethod
    def at(cls, place: Path) -> Checkpoint:
        """Read its state.json. Raises Damaged where it is not what was written, OSError where it cannot be reached."""
        try:
            with _reading(place / STATE):
                whole = json.loads((place / STATE).read_text())
            state = whole["state"]
            if whole["sha256"] != _digest(state):
                raise Damaged(f"{place / STATE} is not what was written: its sha256 differs")
            return cls(place, state["step"], state["meta"], state["files"])
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, Damaged):
                raise
            raise Damaged(f"{place / STATE} cannot be read: {error!r}") from error

    def files(self, *parts: str) -> list[Path]:
        """The files of some parts, or of all."""
        return [self.place / name for name in sorted(self.sha256) if name.partition("-")[0] in (parts or PARTS)]

    def verify(self, *parts: str, share: tuple[int, int] = (0, 1), beat: Callable[[], None] = lambda: None) -> None:
        """Hash the files of some parts, or of all: every n-th from the i-th on for a share of (i, n).

        beat is called on the way. Raises Damaged where a file is not what was written, OSError where it cannot be
        reached.
        """
        first, every = share
        for path in self.files(*parts)[first::every]:
            with _reading(path):
                hashed = sha256_of(path, beat=beat)
            if hashed != self.sha256[path.name]:
                raise Damaged(f"{path} is not what was written: its sha256 differs")

    def tensors(self, part: str) -> Tensors:
        """A part's tensors by parameter name. Raises Damaged."""
        return Tensors(self.files(part))


def write_state(place: Path, *, step: int, meta: dict[str, Any], files: dict[str, str]) -> None:
    """Write a checkpoint's state.json."""
    state = {"step": step, "meta": meta, "files": files}
    (place / STATE).write_text(json.dumps({"sha256": _digest(state), "state": state}, indent=2) + "\n")


def name_of(step: int) -> str:
    """The folder of the checkpoint of a step."""
    return f"step-{step:09d}"


def step_of(place: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(place.name.removeprefix("step-"))


def found(folder: Path) -> list[Path]:
    """The checkpoints under a folder, oldest first by their step."""
    names = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(names, key=step_of)


def latest_weights(folder: Path) -> Tensors:
    """The weights alone of the newest checkpoint, of which there has to be one. Raises Damaged."""
    newest = Checkpoint.at(found(folder)[-1])
    newest.verify("weights")
    return newest.tensors("weights")


def sha256_of(path: Path, *, beat: Callable[[], None] = lambda: None) -> str:
    """A file's hash, in hex. beat is called on the way."""
    digest, chunk = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while length := file.readinto(chunk):
            digest.update(chunk[:length])
            beat()
    return digest.hexdigest()


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what the disk has lost, and raise Damaged, from what cannot be reached now, which stays an OSError."""
    try:
        yield
    except OSError as error:
        if error.errno in BAD:
            raise Damaged(f"{path} cannot be read: {error!r}") from error
        if isinstance(error, FileNotFoundError) and path.parent.is_dir():
            raise Damaged(f"{path} is missing") from error
        raise


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
