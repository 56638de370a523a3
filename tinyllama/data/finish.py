"""Units that are all done, put together into a source of a data set."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tinyllama.config.data import Source
from tinyllama.data.formats import identity
from tinyllama.data.manifest import (
    FileEntry,
    HeldOutEntry,
    RawEntry,
    ShardEntry,
    SourceEntry,
    SplitEntry,
    TokenizerEntry,
    UnitEntry,
    write_through,
)
from tinyllama.data.shards import ShardWriter
from tinyllama.data.units import Record, Unit

_CHUNK = 1 << 20


def finish(source: Source, *, name: str, units: Sequence[Unit], tokenizer: TokenizerEntry, folder: Path) -> SourceEntry:
    """A source's entry, with its held-out stream and its ledger written.

    Raises ValueError where no document is held out, or where fewer than two training tokens are left; OSError where a
    raw file is another one since its unit was done.
    """
    loaded = (Record.load(folder, unit, tokenizer=tokenizer, strict=False) for unit in units)
    records = [record for record in loaded if record is not None]
    if len(records) < len(units):
        raise OSError(f"raw files of {name} changed while they were encoded: the same command does those again")
    counts = {key: sum(record.total(key) for record in records) for key in _COUNTS}
    shards = tuple(shard for record in records for shard in record.shards)
    tokens = sum(record.tokens for record in records)
    if tokens < 2:
        raise ValueError(
            f"{counts['train_documents']} documents are left for training, too few: give it more documents"
        )
    if not counts["held_out_bytes"]:
        raise ValueError(
            f"none of its {counts['documents']:,} documents is held out with any text (held_out {source.held_out:g}), "
            "and loss is measured on at least one: raise held_out or give it more documents"
        )
    held_out = _held_out(name, units, tokenizer, folder)
    compressed = _gzipped([folder / f"{unit.path('held_out')}.text" for unit in units])
    return SourceEntry(
        identity=identity(source),
        format=source.format,
        raw=RawEntry(
            files=sum(len(record.files) for record in records),
            **{key: counts[key] for key in ("size", "documents", "bytes", "filtered_documents", "filtered_bytes")},
            skipped=counts["skipped"],
            ledger=_lines(folder, f"{name}/files.jsonl", [asdict(file) for one in records for file in one.files]),
            skips=_lines(folder, f"{name}/skipped.jsonl", [skip for one in records for skip in one.skipped])
            if counts["skipped"]
            else None,
        ),
        train=SplitEntry(
            tokens=tokens, documents=counts["train_documents"], bytes=counts["train_bytes"], shards=shards
        ),
        held_out=HeldOutEntry(
            tokens=sum(record.held_out_tokens for record in records),
            documents=counts["held_out_documents"],
            bytes=counts["held_out_bytes"],
            shards=held_out,
            gzip_bits_per_byte=8 * compressed / counts["held_out_bytes"],
        ),
        units=tuple(
            UnitEntry(tokens=record.tokens, documents=record.total("train_documents"), index=record.index)
            for record in records
        ),
    )


_COUNTS = (
    "size", "documents", "bytes", "filtered_documents", "filtered_bytes", "train_documents", "train_bytes",
    "held_out_documents", "held_out_bytes", "skipped",
)  # fmt: skip


def _held_out(name: str, units: Sequence[Unit], tokenizer: TokenizerEntry, folder: Path) -> tuple[ShardEntry, ...]:
    """The units' held-out tokens as one stream of shards."""
    for path in (folder / name).glob("held_out-*.bin"):
        path.unlink()  # of a finish that was killed
    with ShardWriter(folder, prefix=f"{name}/held_out", tokenizer=tokenizer) as writer:
        for unit in units:
            with (folder / f"{unit.path('held_out')}.tokens").open("rb") as file:
                while content := file.read(_CHUNK):
                    writer.write(content)
        return writer.close()


def _gzipped(paths: Sequence[Path]) -> int:
    """Bytes that gzip -9 makes of files one after the other."""
    gzip, size = zlib.compressobj(9, zlib.DEFLATED, 31), 0
    for path in paths:
        with path.open("rb") as file:
            while content := file.read(_CHUNK):
                size += len(gzip.compress(content))
    return size + len(gzip.flush())


def _lines(folder: Path, file: str, objects: Sequence[object]) -> FileEntry:
    """A file of JSON objects, one a line."""
    content = "".join(json.dumps(one) + "\n" for one in objects).encode()
    return FileEntry(file=file, sha256=write_through(folder / file, content))
