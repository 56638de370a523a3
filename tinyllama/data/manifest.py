"""What a prepared data set is: its tokenizer, and per source and split its shards, counts and hashes."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.model"


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
class SourceEntry:
    """One source of documents."""

    identity: str
    """What raw data it was made from; see `formats.identity`."""
    format: str
    train: SplitEntry
    held_out: HeldOutEntry


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
        with (folder / FILE).open("w", encoding="utf-8") as file:
            json.dump(asdict(self), file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())

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

    def verify_small(self, folder: Path) -> None:
        """The same where that takes seconds: sets past a billion tokens are verified once, when they are prepared."""
        if sum(split.tokens for source in self.sources.values() for split in (source.train, source.held_out)) < 10**9:
            self.verify(folder)

    def verify(self, folder: Path) -> None:
        """Hashes every shard and the tokenizer. Raises ValueError naming the file that is missing or has changed."""
        check_file(folder / self.tokenizer.file, folder=folder, sha256=self.tokenizer.sha256)
        width = int(self.tokenizer.dtype[-1])
        for source in self.sources.values():
            for shard in source.train.shards + source.held_out.shards:
                check_file(folder / shard.file, folder=folder, sha256=shard.sha256, size=shard.tokens * width)


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


def _source(raw: dict[str, Any]) -> SourceEntry:
    """A source's entry from JSON."""
    splits = {"train": SplitEntry, "held_out": HeldOutEntry}
    for name, kind in splits.items():
        split = raw.pop(name)
        raw[name] = kind(shards=tuple(ShardEntry(**shard) for shard in split.pop("shards")), **split)
    return SourceEntry(**raw)
