"""Raw files in units of work: each is encoded on its own, whole or not at all, and comes out the same wherever it is.

A unit is a run of a source's raw files in their order, some 64 MiB of them. What is made of it lies in the source's
folder under its number; its record is written last, and so says that the rest is there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from tinyllama.config.data import Source
from tinyllama.data.formats import Document, Fault, RawFile, read_file
from tinyllama.data.manifest import FileEntry, ShardEntry, TokenizerEntry, write_through
from tinyllama.data.shards import ShardWriter
from tinyllama.data.words import Encoder

UNIT_BYTES = 64 * 2**20
"""Raw bytes that a unit is filled up to."""

Tick = Callable[[int, int, int, int], None]
"""Told what was just done: raw bytes read, documents, bytes of their text, tokens."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Raw files that are encoded together."""

    source: str
    number: int
    files: tuple[RawFile, ...]

    def path(self, what: str) -> str:
        """Where a part of it lies in the data set's folder: `NAME/WHAT-NUMBER`."""
        return f"{self.source}/{what}-{self.number:05d}"

    def raw(self) -> list[list[Any]]:
        """What the raw files are known by: name, size, time of the last change; none where there is no file."""
        return [[file.name, file.size, _changed(file.path)] for file in self.files]


def _changed(path: Path | None) -> int | None:
    try:
        return path.stat().st_mtime_ns if path else None
    except OSError:  # for `read_file` to tell of
        return None


def units_of(name: str, files: Sequence[RawFile]) -> list[Unit]:
    """A source's files cut into units, in order."""
    cut: list[list[RawFile]] = []
    size = 0
    for file in files:
        if not cut or size + file.size > UNIT_BYTES:
            cut.append([])
            size = 0
        cut[-1].append(file)
        size += file.size
    return [Unit(source=name, number=number, files=tuple(part)) for number, part in enumerate(cut)]


@dataclass(kw_only=True)
class FileCounts:
    """A line of the ledger: a raw file, and where its documents went. documents = filtered + train + held out."""

    file: str
    unit: int
    size: int
    sha256: str = ""
    """Of the raw file; of an embedded one, of its text."""
    documents: int = 0
    bytes: int = 0
    filtered_documents: int = 0
    filtered_bytes: int = 0
    train_documents: int = 0
    train_bytes: int = 0
    held_out_documents: int = 0
    held_out_bytes: int = 0
    skipped: int = 0

    def add(self, where: str, size: int) -> None:
        """Counts a document of so many bytes that went to `train`, to `held_out` or was `filtered` out."""
        for prefix in ("", f"{where}_"):
            for what, amount in (("documents", 1), ("bytes", size)):
                setattr(self, prefix + what, getattr(self, prefix + what) + amount)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What was made of a unit. Files are named by their path in the data set's folder."""

    raw: list[list[Any]]
    tokenizer: str
    """The sha256 of the model that it is encoded by."""
    files: list[FileCounts]
    shards: list[ShardEntry]
    index: FileEntry
    held_out_tokens: int
    skipped: list[dict[str, Any]]
    """Where and why, a `Fault` each."""

    @property
    def tokens(self) -> int:
        """Of the training documents, one end token each included."""
        return sum(shard.tokens for shard in self.shards)

    def total(self, count: str) -> int:
        """A count summed over the files."""
        return sum(getattr(file, count) for file in self.files)

    @classmethod
    def load(cls, folder: Path, unit: Unit, *, tokenizer: TokenizerEntry, strict: bool) -> Record | None:
        """The record of a unit that is done; None where it is not, or is not to be had like that.

        That is where its raw files or the tokenizer are others now, or strict does not allow what it skipped.
        """
        try:
            raw = json.loads((folder / f"{unit.path('unit')}.json").read_bytes())
        except FileNotFoundError:
            return None
        made_of = (raw["raw"], raw["tokenizer"])
        if made_of != (unit.raw(), tokenizer.sha256) or (strict and raw["skipped"]):
            return None
        shards = [ShardEntry(**shard) for shard in raw.pop("shards")]
        files = [FileCounts(**file) for file in raw.pop("files")]
        return cls(shards=shards, files=files, index=FileEntry(**raw.pop("index")), **raw)


def is_held_out(key: str, *, fraction: float) -> bool:
    """Whether a document is kept from training: by a hash of its key alone, whatever other documents there are.

    The two stdlib formats call a file's code and its docstrings by the same key, so that both fall on the same side.
    """
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) < fraction * 2**64


def split_of(document: Document, *, file: RawFile, source: Source) -> str:
    """`train` or `held_out`: what the data set's own files say, or else the hash."""
    if source.held_out_include:
        return "held_out" if file.held_out else "train"
    return "held_out" if is_held_out(document.key, fraction=source.held_out) else "train"


@dataclass
class _Hasher:
    """A sha256 that tells how many bytes go through it."""

    tick: Tick
    _hash: Any = field(default_factory=hashlib.sha256)

    def update(self, content: bytes) -> None:
        self._hash.update(content)
        self.tick(len(content), 0, 0, 0)

    def hexdigest(self) -> str:
        digest: str = self._hash.hexdigest()
        return digest


def encode_unit(
    unit: Unit, *, source: Source, encoder: Encoder, tokenizer: TokenizerEntry, folder: Path, strict: bool, tick: Tick
) -> Record:
    """Encodes a unit's documents into `folder`.

    Leaves `train-NUMBER-*.bin` shards, `train-NUMBER.index`, what is held out as tokens (`held_out-NUMBER.tokens`) and
    as text (`held_out-NUMBER.text`), and the record, `unit-NUMBER.json`. Raises ValueError at the first thing that
    cannot be read where strict; otherwise what was left out is in the record.
    """
    temporary = folder / f"{unit.path('.unit')}.{socket.gethostname()}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()  # not what is above it, which somebody else may have finished and renamed
    (temporary / unit.source).mkdir()
    try:
        record = _fill(unit, source, encoder, tokenizer, temporary, strict, tick)
        for path in sorted((temporary / unit.source).iterdir()):
            path.rename(folder / unit.source / path.name)
        write_through(folder / f"{unit.path('unit')}.json", json.dumps(asdict(record)).encode())
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return record


def _fill(
    unit: Unit, source: Source, encoder: Encoder, tokenizer: TokenizerEntry, folder: Path, strict: bool, tick: Tick
) -> Record:
    raw = unit.raw()
    width = int(tokenizer.dtype[-1])
    end = tokenizer.eos.to_bytes(width, "little")
    counted: list[FileCounts] = []
    skipped: list[Fault] = []
    index = array("I")
    held_out_tokens = 0
    with ExitStack() as stack:
        train = stack.enter_context(ShardWriter(folder, prefix=unit.path("train"), tokenizer=tokenizer))
        tokens, text = (
            stack.enter_context((folder / f"{unit.path('held_out')}.{kind}").open("wb")) for kind in ("tokens", "text")
        )
        for file in unit.files:
            hasher, counts = _Hasher(tick), FileCounts(file=file.name, unit=unit.number, size=file.size)
            for item in read_file(file, source=source, hasher=hasher):
                found = _encoded(item, encoder) if isinstance(item, Document) else item
                if isinstance(found, Fault):
                    if strict:
                        raise ValueError(found.message)
                    skipped.append(found)
                    counts.skipped += 1
                    continue
                assert isinstance(item, Document)
                ids, size = found
                n_tokens = len(ids) // width + 1 if item.kept else 0
                split = split_of(item, file=file, source=source) if item.kept else "filtered"
                counts.add(split, size)
                if split == "train":
                    train.add(ids)
                    index.extend((item.row, n_tokens))
                elif split == "held_out":
                    tokens.write(ids + end)
                    text.write(item.text.encode())
                    held_out_tokens += n_tokens
                tick(0, 1, size, n_tokens)
            counts.sha256 = hasher.hexdigest()
            counted.append(counts)
        for part in (tokens, text):
            part.flush()
            os.fsync(part.fileno())
        shards = list(train.close())
    index_path = f"{unit.path('train')}.index"
    sha256 = write_through(folder / index_path, np.array(index, dtype="<u4").tobytes())
    return Record(
        raw=raw,
        tokenizer=tokenizer.sha256,
        files=counted,
        shards=shards,
        index=FileEntry(file=index_path, sha256=sha256),
        held_out_tokens=held_out_tokens,
        skipped=[{one.name: getattr(fault, one.name) for one in fields(fault)} for fault in skipped],
    )


def _encoded(document: Document, encoder: Encoder) -> tuple[bytes, int] | Fault:
    """A document's ids, none if the filter drops it, and the bytes of its text; or why it has none."""
    size = len(document.text) if document.text.isascii() else len(document.text.encode())
    if not document.kept:
        return b"", size
    try:
        return encoder.encode(document.text), size
    except ValueError as error:
        return Fault(name=document.name, row=document.row, offset=None, says=str(error))
