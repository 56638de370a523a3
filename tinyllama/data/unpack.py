"""Bytes of one raw file to the lines or rows in it: bounded in memory, and whatever is damaged is said.

A cut or changed file is not always seen. A file that was cut right after a line, or after a whole gzip member or
Zstandard frame, is a shorter file like any other. Where nothing carries a checksum (plain lines, most parquet files,
Zstandard frames written without one) a changed byte that leaves valid UTF-8 and JSON behind is a different text. Keep
the sha256 of what was published to see these. A checksum stands at the end of what it covers, so that records before a
fault may already be wrong.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import zstandard

GROWTH = 1000
SPARE = 1 << 26
"""A file that unpacks to more than GROWTH times its size and SPARE bytes is taken for a bomb."""

MAX_GROUP_BYTES = 1 << 29
"""Largest parquet row group, all columns together: one page, which is unpacked whole, may be all of it."""

AGAIN = "fetch the file again"

_READ = 1 << 18
_BATCH_BYTES = 1 << 26
_BATCH_ROWS = 256


class Hasher(Protocol):
    """What hashlib gives."""

    def update(self, data: bytes, /) -> None:
        """Takes in more bytes."""


# Pieces of input are small enough to unpack to no more than 64 MiB: the formats grow by up to 1,032 and 32,768.
_UNPACKERS: dict[str, tuple[str, int, Callable[[], Any], type[Exception]]] = {
    "jsonl.gz": ("gzip member", 1 << 16, lambda: zlib.decompressobj(31), zlib.error),
    "jsonl.zst": (
        "Zstandard frame",
        1 << 11,
        lambda: zstandard.ZstdDecompressor().decompressobj(),
        zstandard.ZstdError,
    ),
}


class DamageError(Exception):
    """Why a record, or what is left of a file, cannot be read, and the remedy."""

    def __init__(self, says: str, *, offset: int | None = None) -> None:
        super().__init__(says)
        self.says = says
        self.offset = offset


class Raw:
    """An open raw file that counts, and hashes, each byte once. OSError as from a file."""

    def __init__(self, path: Path, *, size: int, hasher: Hasher | None = None) -> None:
        self.path = path
        self.size = size
        """Bytes it is to have."""
        self.position = 0
        """Bytes that were read."""
        self._hasher = hasher
        self._file = path.open("rb", buffering=0)
        self._was = self._is(os.fstat(self._file.fileno()))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read(self) -> bytes:
        """The next bytes; none at the end. Damage where there are more than the file had when it was listed."""
        if self.position > self.size:  # a file that is being written might never end
            self.check()
        return self._next()

    def rest(self) -> None:
        """Reads, and so hashes, what was not read yet."""
        while self._next():
            pass

    def _next(self) -> bytes:
        chunk = self._file.read(_READ)
        self.position += len(chunk)
        if self._hasher is not None:
            self._hasher.update(chunk)
        return chunk

    def check(self) -> None:
        """Damage where the file is not, or no longer, the one that was listed."""
        remedy = "let what writes it finish, then start again"
        try:
            now = self._is(self.path.stat())
        except FileNotFoundError:
            raise DamageError(f"vanished while it was read: {remedy}") from None
        if now[2] != self.size or self._was[2] != self.size:
            raise DamageError(f"had {self.size:,} bytes when it was listed and now has {now[2]:,}: {remedy}")
        if now != self._was:
            raise DamageError(f"was written to while it was read: {remedy}")

    @staticmethod
    def _is(stat: os.stat_result) -> tuple[int, int, int, int]:
        """What tells one file from another, and from itself before a change."""
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def check_growth(size: int, *, packed: int) -> None:
    """Damage where a file unpacks to more than any text does."""
    if size > GROWTH * packed + SPARE:
        raise DamageError(
            f"unpacks to more than {GROWTH:,} times its {packed:,} bytes and {SPARE:,}, as no text does: "
            f"{AGAIN} or leave it out by exclude"
        )


def whole(raw: Raw, *, limit: int) -> str:
    """A file that is one text."""
    if raw.size > limit:
        raise DamageError(f"is larger than {limit:,} bytes, the most a document may be: split it")
    try:
        return b"".join(iter(raw.read, b"")).decode()
    except UnicodeDecodeError as error:
        raise DamageError(
            f"is not UTF-8 ({error}): convert it or leave it out by exclude", offset=error.start
        ) from error


def json_rows(raw: Raw, *, form: str, limit: int) -> Iterator[tuple[int, int | None, Any]]:
    """Number, offset and content of each line, or what is wrong with it. Damage where the file cannot be unpacked."""
    content = _unpacked(raw, *_UNPACKERS[form]) if form in _UNPACKERS else iter(raw.read, b"")
    for row, (offset, line) in enumerate(_lines(content, limit=limit), start=1):
        record: Any
        place = offset if form == "jsonl" else None  # packed bytes have no such place
        try:
            if line is None:
                record = DamageError(f"is longer than {limit:,} bytes, the most a record may be: split it")
            else:
                record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            place = None if place is None else place + error.start
            record = DamageError(f"is not UTF-8 ({error}): repair the file")
        except (ValueError, RecursionError) as error:
            record = DamageError(f"is not JSON ({error}): repair the line or correct include")
        yield row, place, record


def _unpacked(raw: Raw, kind: str, size: int, start: Callable[[], Any], errors: type[Exception]) -> Iterator[bytes]:
    """The content of a packed file, frame by frame.

    The libraries' own file readers take a file that was cut short for a shorter file, so the frames are walked here.
    """
    frame: Any = None
    begin = total = 0
    while block := raw.read():
        for at in range(0, len(block), size):
            piece = block[at : at + size]
            end = raw.position - len(block) + at + len(piece)
            while piece:
                if frame is None:
                    frame, begin = start(), end - len(piece)
                try:
                    chunk = frame.decompress(piece)
                except errors as error:
                    raise DamageError(
                        f"is damaged in, or is no {kind} from, byte {begin:,} on ({error}): {AGAIN}",
                        offset=end - len(piece),
                    ) from error
                piece = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
                total += len(chunk)
                check_growth(total, packed=raw.size)
                if chunk:
                    yield chunk
    if frame is not None:
        raise DamageError(
            f"ends in the middle of the {kind} that begins at byte {begin:,}: {AGAIN}", offset=raw.position
        )
    if not total:
        raise DamageError(f"unpacks to nothing: {AGAIN} or leave it out by exclude")


def _lines(content: Iterable[bytes], *, limit: int) -> Iterator[tuple[int, bytes | bytearray | None]]:
    """Lines with their offsets; None for one of more than `limit` bytes. A newline at the very end starts no line."""
    begin = size = 0
    held = bytearray()
    for chunk in content:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            size += end - start
            if size > limit:
                yield begin, None
            elif held:
                yield begin, held + chunk[start:end]
            else:
                yield begin, chunk[start:end]
            begin += size + 1
            size = 0
            held = bytearray()
            start = end + 1
        size += len(chunk) - start
        if size <= limit:
            held += chunk[start:]
        else:
            held = bytearray()
    if size:
        yield begin, held if size <= limit else None


def parquet_rows(raw: Raw, *, text: str, rule: str | None) -> Iterator[tuple[int, int | None, Any]]:
    """Number, no offset, and a dict of the two fields of each row. Damage where the file cannot be opened.

    A row group that cannot be read is one Damage at the number of its first row that is lost. Pages are unpacked one by
    one, and few enough rows at once that a dictionary's longest text cannot be repeated beyond bounds.
    """
    import pyarrow.parquet  # a third of a second, which a plan has no use for

    raw.rest()  # what follows does not read from front to back
    fields = [text, rule] if rule is not None and rule != text else [text]
    try:
        with pyarrow.parquet.ParquetFile(
            raw.path, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 20
        ) as file:
            _check_columns(file, text=text, fields=fields)
            groups = [file.metadata.row_group(group) for group in range(file.num_row_groups)]
            if file.metadata.num_rows != sum(group.num_rows for group in groups):
                raise DamageError(f"says it has {file.metadata.num_rows:,} rows, but its row groups do not: {AGAIN}")
            first = 1
            for number, group in enumerate(groups):
                yield from _group(file, number, first=first, rows=group.num_rows, fields=fields)
                first += group.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DamageError(f"cannot be read as parquet ({error}): {AGAIN} or correct include") from error


def _group(
    file: Any, number: int, *, first: int, rows: int, fields: list[str]
) -> Iterator[tuple[int, int | None, Any]]:
    """The rows of one row group."""
    import pyarrow

    name = f"row group {number} (rows {first:,} to {first + rows - 1:,})"
    # a column's own size would be nearer, but pyarrow ends the process where the footer of a column is damaged
    largest = file.metadata.row_group(number).total_byte_size
    if largest > MAX_GROUP_BYTES:
        yield (
            first,
            None,
            DamageError(f"{name} has {largest:,} bytes, more than {MAX_GROUP_BYTES:,}: write smaller ones"),
        )
        return
    row = first
    size = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, largest)))
    try:
        for batch in file.iter_batches(batch_size=size, row_groups=[number], columns=fields, use_threads=False):
            columns = list(zip(batch.schema.names, batch.columns, strict=True))
            for index in range(batch.num_rows):
                record: Any
                try:
                    record = {name: column[index].as_py() for name, column in columns}
                except UnicodeDecodeError as error:
                    record = DamageError(f"is not UTF-8 ({error}): repair it")
                yield row, None, record
                row += 1
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        yield row, None, DamageError(f"{name} cannot be read from here on ({error}): {AGAIN}")
        return
    if row != first + rows:
        yield row, None, DamageError(f"{name} ends after {row - first:,} rows: {AGAIN}")


def _check_columns(file: Any, *, text: str, fields: list[str]) -> None:
    """Damage where a column is missing, or a list, or not text."""
    leaves = [file.schema.column(number) for number in range(len(file.schema))]
    for field in fields:
        remedy = f"correct {'text_field' if field == text else 'filter.field'}"
        found = [leaf for leaf in leaves if leaf.path == field]
        if len(found) != 1 or found[0].max_repetition_level:
            there = shown(leaf.path for leaf in leaves)
            raise DamageError(
                f"has {'two columns' if len(found) > 1 else 'no column'} {field!r} (there is: {there}): {remedy}"
            )
        kind = found[0].logical_type.type
        if field == text and kind != "STRING":
            has = found[0].physical_type if kind == "NONE" else kind
            raise DamageError(f"has a column {field!r} of {has}, not text: {remedy}")


def shown(names: Iterable[object]) -> str:
    """Names in a row, cut where there are too many for a message."""
    text = ", ".join(name if name.isprintable() else ascii(name) for name in map(str, names))
    return text if len(text) <= 200 else f"{text[:200]}…"
