"""Raw files to documents: one reader a format, and no bad record dropped in silence."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import zstandard

from tinyllama.config.data import Filter, Source
from tinyllama.data import stdlib

"""Formats that need no raw files."""

MAX_BYTES = 1 << 28
"""Largest text file or record line: a small .zst can unpack to terabytes, and a document must fit in memory."""


@dataclass(frozen=True)
class Document:
    """One text and where it is from."""

    key: str
    """`relative/path` for a file, `relative/path:line` for a record, counted from 1; unique within a source."""
    text: str
    """Any text that UTF-8 can hold."""


def read_documents(source: Source) -> Iterator[Document]:
    """Every document of a source, in the same order each time.

    Raises ValueError naming the file and line of whatever cannot be read: nothing is left out but what the filter says.
    """
    if source.format == "stdlib_code":
        yield from (Document(key, text) for key, text in stdlib.code().items())
    elif source.format == "stdlib_text":
        yield from (Document(key, text) for key, text in stdlib.prose().items())
    else:
        for path, name in raw_files(source):
            yield from _read_file(path, name=name, source=source)


def identity(source: Source) -> str:
    """What raw data a prepared set was made from, as far as can be told without reading it.

    The interpreter for the stdlib formats, such as `cpython-3.11.7`; else the format.
    """
    if source.is_embedded:
        return f"{sys.implementation.name}-{platform.python_version()}"
    return source.format


def raw_files(source: Source) -> list[tuple[Path, str]]:
    """The raw files with their posix paths relative to `raw`, sorted by these. ValueError where there are none."""
    if source.raw is None:
        raise ValueError(f"raw is null: format {source.format} reads files; set raw to the folder that holds them")
    root = Path(source.raw)
    if not root.is_dir():
        raise ValueError(
            f"raw folder {root} does not exist: set raw to the folder that holds the {source.format} files"
        )
    try:
        found = [(path, path.relative_to(root).as_posix()) for path in root.glob(source.include) if path.is_file()]
    except (NotImplementedError, ValueError) as error:
        raise ValueError(
            f"include {source.include!r} is no glob below raw ({error}): write one such as **/*"
        ) from error
    if not found:
        raise ValueError(f"no file in {root} matches include {source.include!r}: correct raw or include")
    return sorted(found, key=lambda item: item[1])


def _read_file(path: Path, *, name: str, source: Source) -> Iterator[Document]:
    """The documents of one raw file."""
    if source.format == "text":
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{path} is larger than {MAX_BYTES:,} bytes, the most a document may be: split it")
        try:
            yield Document(name, path.read_bytes().decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 ({error}): convert it or leave it out by include") from error
        return
    records = _parquet_rows(path, source) if source.format == "parquet" else _json_rows(path, source.format)
    for number, record in enumerate(records, start=1):
        where = f"{path}, {'row' if source.format == 'parquet' else 'line'} {number}"
        text = _field(record, source.text_field, where=where)
        if not isinstance(text, str):
            raise ValueError(
                f"{where}: field {source.text_field!r} is {type(text).__name__}, not text: correct text_field"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where}: field {source.text_field!r} holds a lone surrogate ({error}): repair it"
            ) from error
        if _keep(record, source.filter, where=where):
            yield Document(f"{name}:{number}", text)


def _keep(record: Any, rule: Filter | None, *, where: str) -> bool:
    """Whether a record passes the source's filter."""
    return rule is None or _field(record, rule.field, where=where) not in rule.not_in


def _field(record: Any, dotted: str, *, where: str) -> Any:
    """The value at a dotted path within a record."""
    value = record
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            has = ", ".join(sorted(map(str, value))) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{where}: no field {dotted!r} (there is: {has}): correct text_field or filter.field")
        value = value[part]
    return value


def _json_rows(path: Path, form: str) -> Iterator[Any]:
    """The parsed lines of a JSON-lines file."""
    chunks = _unpacked(path) if form == "jsonl.zst" else _plain(path)
    for number, line in enumerate(_lines(chunks, path=path), start=1):
        try:
            yield json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number}: not UTF-8 ({error}): repair the file") from error
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {number}: not JSON ({error}): repair the line or correct include"
            ) from error


def _plain(path: Path) -> Iterator[bytes]:
    """A file's bytes in chunks."""
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def _unpacked(path: Path) -> Iterator[bytes]:
    """A Zstandard file's content in chunks. Raises ValueError where its last frame does not end.

    The library's file readers take a file that was cut short for a shorter file, so the frames are walked here. Input
    goes in by 4 KiB because it may grow by a factor of 32,768.
    """
    damaged = "fetch the file again"
    with path.open("rb") as file:
        frame = None
        while chunk := file.read(4096):
            while chunk:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                try:
                    yield frame.decompress(chunk)
                except zstandard.ZstdError as error:
                    raise ValueError(f"{path} is damaged ({error}): {damaged}") from error
                chunk = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
        if frame is not None or file.tell() == 0:
            raise ValueError(f"{path} ends in the middle of a Zstandard frame after {file.tell():,} bytes: {damaged}")


def _lines(chunks: Iterator[bytes], *, path: Path) -> Iterator[bytes]:
    """Chunks cut at newlines; a newline at the very end starts no line."""
    parts: list[bytes] = []
    size = count = 0
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        size += len(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            count += len(rest)
            parts, size = [rest[-1]], len(rest[-1])
        if size > MAX_BYTES:
            raise ValueError(
                f"{path}, line {count + 1} is longer than {MAX_BYTES:,} bytes, the most a record may be: split it"
            )
    if size:
        yield b"".join(parts)


def _parquet_rows(path: Path, source: Source) -> Iterator[Any]:
    """The rows of a parquet file as dicts, with only the columns that are needed."""
    fields = [source.text_field] + ([source.filter.field] if source.filter else [])
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for field in fields:
                if field.split(".")[0] not in names:
                    raise ValueError(
                        f"no column {field!r} (there is: {', '.join(names)}): correct text_field or filter.field"
                    )
            for batch in file.iter_batches(batch_size=1024, columns=fields):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
