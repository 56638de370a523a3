"""Raw files to documents: which files a source has, and what is in each. Nothing is left out in silence.

Whatever cannot be read is a Fault between the documents, and reading goes on behind it where it can.
"""

from __future__ import annotations

import platform
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllama.config.data import Source
from tinyllama.data import stdlib
from tinyllama.data.globs import name_pattern, walk
from tinyllama.data.unpack import AGAIN, DamageError, Hasher, Raw, check_growth, json_rows, parquet_rows, shown, whole

MAX_BYTES = 1 << 26
"""Largest text file, record line or parquet text: a document must fit in memory several times over."""

MAX_FAULTS = 1000
"""After so many a file is given up."""


@dataclass(frozen=True)
class RawFile:
    """One file of a source's raw data."""

    name: str
    """Posix path below `raw`; for the stdlib formats the key of `stdlib.code()` or `stdlib.prose()`."""
    path: Path | None
    """Where it is; None for the stdlib formats."""
    size: int
    """Bytes on disk; for the stdlib formats those of its text as UTF-8."""
    held_out: bool
    """Whether it is one of the data set's own held-out files."""


@dataclass(frozen=True)
class Document:
    """One text and where it is from."""

    name: str
    """Its file."""
    row: int
    """Its line or row, from 1; 0 where the file is one document."""
    text: str
    """Any text that UTF-8 can hold."""
    kept: bool
    """Whether the source's filter lets it pass."""

    @property
    def key(self) -> str:
        """`relative/path` for a file, `relative/path:row` for a record; unique within a source."""
        return f"{self.name}:{self.row}" if self.row else self.name


@dataclass(frozen=True)
class Fault:
    """Something in a raw file that cannot be read."""

    name: str
    """The file."""
    row: int
    """The line or row; 0 for the whole file, or for what is left of it."""
    offset: int | None
    """Byte of the raw file where it was found, as near as is known."""
    says: str
    """What is wrong, and the remedy."""
    unit: str = "line"
    """What `row` counts: line or row."""

    @property
    def message(self) -> str:
        """Where and what: `a/b.jsonl, line 3, byte 1,024: is not JSON …`."""
        row = f", {self.unit} {self.row}" if self.row else ""
        offset = "" if self.offset is None else f", byte {self.offset:,}"
        return f"{self.name}{row}{offset}: {self.says}"


def identity(source: Source) -> str:
    """What raw data a prepared set was made from, as far as can be told without reading it.

    The interpreter for the stdlib formats, such as `cpython-3.11.7`; else the format.
    """
    if source.is_embedded:
        return f"{sys.implementation.name}-{platform.python_version()}"
    return source.format


def raw_files(source: Source) -> list[RawFile]:
    """The raw files, sorted by name: those to train on and the data set's own held-out files.

    A glob counts from `raw`: `*`, `?` and `[...]` match within a name, one that begins with a dot too; `**` matches any
    folders, and at the end whatever is below. Links to files and folders are followed. ValueError where a folder or a
    link cannot be followed, a glob finds nothing, or one file is found under two names.
    """
    if source.is_embedded:
        return [RawFile(name, None, len(text.encode()), held_out=False) for name, text in _library(source).items()]
    if source.raw is None:
        raise ValueError(f"raw is null: format {source.format} reads files; set raw to the folder that holds them")
    root = Path(source.raw)
    if not root.is_dir():
        raise ValueError(f"raw folder {root} does not exist: set raw to the one that holds the {source.format} files")
    globs = {
        (knob, glob): name_pattern(glob, knob=knob)
        for knob in ("include", "held_out_include", "exclude")
        for glob in getattr(source, knob)
    }
    unused = {key for key in globs if key[0] != "exclude"}
    names: dict[tuple[int, int], str] = {}
    files: list[RawFile] = []
    for name, path in walk(root):
        used = {key for key, rule in globs.items() if rule.fullmatch(name)}
        knobs = {knob for knob, _ in used}
        if not knobs or "exclude" in knobs:
            continue
        try:
            name.encode()
            found = path.stat()
        except UnicodeEncodeError as error:
            raise ValueError(f"file name {name!r} in {root} is not UTF-8: rename the file") from error
        except OSError as error:
            raise ValueError(f"{path} leads nowhere ({error.strerror}): fetch it or add it to exclude") from error
        if not stat.S_ISREG(found.st_mode):
            continue
        unused -= used
        if (other := names.setdefault((found.st_dev, found.st_ino), name)) != name:
            raise ValueError(
                f"{other!r} and {name!r} in {root} are one and the same file, so that its documents would be counted "
                f"twice: leave one out by exclude"
            )
        files.append(RawFile(name, path, found.st_size, held_out="held_out_include" in knobs))
    if unused:
        knob, glob = min(unused)
        raise ValueError(f"no file in {root} matches {knob} {glob!r}: correct raw or {knob}")
    if all(file.held_out for file in files):
        raise ValueError(f"every file in {root} that matches include matches held_out_include too: correct one of them")
    return sorted(files, key=lambda file: file.name)


def read_file(file: RawFile, *, source: Source, hasher: Hasher | None = None) -> Iterator[Document | Fault]:
    """The documents of one raw file in order, and a Fault for whatever in it is not one.

    Bad content never raises. Reading goes on behind a bad record, and ends with a fault of row 0. A fault that a
    checksum found makes the documents before it doubtful. At the end the hasher has taken in each byte of the file
    once, whatever was wrong, unless the disk could not read it.
    """
    if file.path is None:
        text = _library(source)[file.name]
        if hasher is not None:
            hasher.update(text.encode())
        yield Document(file.name, 0, text, kept=True)
        return
    unit = "row" if source.format == "parquet" else "line"
    faults = 0
    position: int | None = None
    try:
        with closing(Raw(file.path, size=file.size, hasher=hasher)) as raw:
            try:
                for row, offset, item in _items(raw, source):
                    position = raw.position
                    if not isinstance(item, DamageError):
                        yield Document(file.name, row, *item)
                        continue
                    yield Fault(file.name, row, offset if item.offset is None else item.offset, item.says, unit)
                    faults += 1
                    if faults == MAX_FAULTS:
                        raise DamageError(
                            f"has {faults:,} faults, and what follows {unit} {row} is not read: correct the source"
                        )
                raw.check()
            except DamageError as damage:
                yield Fault(file.name, 0, damage.offset, damage.says, unit)
            position = raw.position
            raw.rest()
    except OSError as error:
        yield Fault(file.name, 0, position, f"cannot be read ({error.strerror}): repair it or leave it out", unit)


def _library(source: Source) -> dict[str, str]:
    """The texts of a stdlib format."""
    return stdlib.code() if source.format == "stdlib_code" else stdlib.prose()


def _items(raw: Raw, source: Source) -> Iterator[tuple[int, int | None, tuple[str, bool] | DamageError]]:
    """Row, offset, and the text and whether it is kept, or what is wrong. Damage where nothing can follow."""
    if raw.size == 0 and source.format != "text":
        raise DamageError(f"is empty: {AGAIN} or leave it out by exclude")
    raw.check()
    if source.format == "text":
        yield 0, None, (whole(raw, limit=MAX_BYTES), True)
        return
    total = 0
    if source.format == "parquet":
        records = parquet_rows(raw, text=source.text_field, rule=source.filter.field if source.filter else None)
    else:
        records = json_rows(raw, form=source.format, limit=MAX_BYTES)
    for row, offset, record in records:
        try:
            item = record if isinstance(record, DamageError) else _document(record, source)
        except DamageError as damage:
            item = damage
        yield row, offset, item
        if isinstance(item, tuple):
            # a parquet file can say in a bit that a long text is meant again
            total += len(item[0])
            check_growth(total, packed=raw.size)


def _document(record: Any, source: Source) -> tuple[str, bool]:
    """A record's text, and whether it passes the source's filter. Damage where it has none."""
    text = _field(record, source.text_field, knob="text_field")
    if not isinstance(text, str):
        has = "null" if text is None else type(text).__name__
        raise DamageError(f"field {source.text_field!r} is {has}, not text: correct text_field or repair it")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise DamageError(f"field {source.text_field!r} holds a lone surrogate ({error}): repair it") from error
    if size > MAX_BYTES:
        raise DamageError(f"is longer than {MAX_BYTES:,} bytes, the most a record may be: split it")
    rule = source.filter
    if rule is None:
        return text, True
    value = _field(record, rule.field, knob="filter.field")
    return text, value in rule.keep if rule.keep is not None else value not in (rule.not_in or ())


def _field(record: Any, dotted: str, *, knob: str) -> Any:
    """The value at a dotted path within a record."""
    value = record
    for part in dotted.split("."):
        if not isinstance(value, dict) or part not in value:
            has = shown(sorted(map(str, value))) if isinstance(value, dict) else type(value).__name__
            raise DamageError(f"no field {dotted!r} (there is: {has}): correct {knob}")
        value = value[part]
    return value
