"""What a prepared data set is: its tokenizer, and per source and split its shards, counts and hashes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.model"
SMALL = 10**9
"""Tokens; see `Manifest.is_small`."""


@dataclass(frozen=True, kw_only=True)
class TokenizerEntry:
    """The tokenizer that the shards are written in."""

    file: str
    """Path in the data set's folder."""
    sha256: str
    vocab_size: int
    eos: int
    """Id of the token that ends every document."""

    @property
    def dtype(self) -> str:
        """NumPy type of the tokens in the shards: little-endian, two bytes where every id fits."""
        return "<u2" if self.vocab_size <= 1 << 16 else "<u4"


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """One file of tokens."""

    file: str
    """Path in the data set's folder."""
    tokens: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SplitEntry:
    """The training or the held-out documents of a source; the shards are one stream, in order."""

    tokens: int
    """Of all shards, one end token a document included."""
    documents: int
    bytes: int
    """UTF-8 bytes of the text, without the end tokens."""
    shards: tuple[ShardEntry, ...]


@dataclass(frozen=True, kw_only=True)
class HeldOutEntry(SplitEntry):
    """The held-out documents of a source, with what a general compressor makes of them."""

    gzip_bits_per_byte: float
    """Bits a byte that gzip -9 needs for the documents' texts in order, to set a model's bits per byte against."""


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """A file beside the shards."""

    file: str
    """Path in the data set's folder."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class UnitEntry:
    """Training documents that were read from raw files side by side; units follow each other in the stream."""

    tokens: int
    documents: int
    index: FileEntry
    """For each document the row of its raw file, from 1 (0 for a whole file), and its tokens: pairs of `<u4`."""


@dataclass(frozen=True, kw_only=True)
class RawEntry:
    """What a source was read from, and what of it did not become tokens. `ledger` says the same of each file."""

    files: int
    size: int
    """Bytes on disk."""
    documents: int
    """Those of both splits and those filtered out; what was skipped is none of them."""
    bytes: int
    """UTF-8 bytes of their text."""
    filtered_documents: int
    filtered_bytes: int
    skipped: int
    """Records, and files or what was left of them, that could not be read."""
    ledger: FileEntry
    """A JSON object a line for each raw file: its unit, size, sha256 and counts; see `units.FileCounts`."""
    skips: FileEntry | None
    """A JSON object a line for all that was skipped: where and why; None where nothing was."""


@dataclass(frozen=True, kw_only=True)
class SourceEntry:
    """One source of documents."""

    identity: str
    """What raw data it was made from; see `formats.identity`."""
    format: str
    raw: RawEntry
    train: SplitEntry
    held_out: HeldOutEntry
    units: tuple[UnitEntry, ...]
    """Of the training split."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A prepared data set."""

    name: str
    digest: str
    """Of all that determines the tokens; its first eight digits are in the folder's name."""
    tokenizer: TokenizerEntry
    sources: dict[str, SourceEntry]
    """By name, in the config's order."""

    def save(self, folder: Path) -> None:
        """Writes `manifest.json` through to the disk."""
        write_through(folder / FILE, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Reads `manifest.json`. Raises ValueError where it is missing or is no manifest."""
        path = folder / FILE
        try:
            raw = json.loads(path.read_bytes())
            sources = {name: _source(entry) for name, entry in raw.pop("sources").items()}
            return cls(tokenizer=TokenizerEntry(**raw.pop("tokenizer")), sources=sources, **raw)
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing: {remedy(folder)}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no manifest ({error!r}): {remedy(folder)}") from error

    @property
    def is_small(self) -> bool:
        """Whether hashing it takes seconds; larger sets are hashed once, beside the training (`verify`)."""
        splits = (split for source in self.sources.values() for split in (source.train, source.held_out))
        return sum(split.tokens for split in splits) < SMALL

    def verify_small(self, folder: Path) -> None:
        """Hashes every file of a small set."""
        if self.is_small:
            self.verify(folder)

    def verify(self, folder: Path) -> None:
        """Hashes every file. Raises ValueError naming the one that is missing or has changed."""
        for file, sha256, size in self.files():
            check_file(folder / file, folder=folder, sha256=sha256, size=size)

    def files(self) -> Iterator[tuple[str, str, int | None]]:
        """Every file's path in the folder, sha256 and, of shards, size."""
        yield self.tokenizer.file, self.tokenizer.sha256, None
        width = int(self.tokenizer.dtype[-1])
        for source in self.sources.values():
            for shard in source.train.shards + source.held_out.shards:
                yield shard.file, shard.sha256, shard.tokens * width
            beside = [source.raw.ledger, source.raw.skips, *(unit.index for unit in source.units)]
            yield from ((entry.file, entry.sha256, None) for entry in beside if entry is not None)


def check_file(path: Path, *, folder: Path, sha256: str | None = None, size: int | None = None) -> None:
    """Raises ValueError where a file of a prepared data set is missing or has another size or hash than it should."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: {remedy(folder)}")
    actual_size = path.stat().st_size
    if size is not None and actual_size != size:
        raise ValueError(f"{path} has {actual_size:,} bytes, not {size:,}: {remedy(folder)}")
    if sha256 is not None:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256:
            raise ValueError(f"{path} has changed (sha256 {actual}, not {sha256}): {remedy(folder)}")


def remedy(folder: Path) -> str:
    """What to do about a damaged data set."""
    return f"delete {folder} and prepare it again"


def write_through(path: Path, content: bytes) -> str:
    """Writes a file through to the disk, whole or not at all, and gives its sha256."""
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")  # process ids repeat themselves among machines
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    return hashlib.sha256(content).hexdigest()


def _source(raw: dict[str, Any]) -> SourceEntry:
    """A source's entry from JSON."""
    splits = {"train": SplitEntry, "held_out": HeldOutEntry}
    for name, kind in splits.items():
        split = raw.pop(name)
        raw[name] = kind(shards=tuple(ShardEntry(**shard) for shard in split.pop("shards")), **split)
    read = raw.pop("raw")
    ledger, skips = FileEntry(**read.pop("ledger")), read.pop("skips")
    raw["raw"] = RawEntry(ledger=ledger, skips=skips and FileEntry(**skips), **read)
    units = raw.pop("units")
    raw["units"] = tuple(UnitEntry(index=FileEntry(**unit.pop("index")), **unit) for unit in units)
    return SourceEntry(**raw)
