"""From raw files to a folder of shards: whole or not at all, and found again by what determines its tokens."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

from tinyllama.config.data import Data
from tinyllama.data.encode import Progress, encode_source, survey
from tinyllama.data.formats import identity, raw_files
from tinyllama.data.manifest import FILE, TOKENIZER_FILE, Manifest, TokenizerEntry
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer

_LAYOUT = 1
"""Raised when a change of this package changes the tokens or the files, so that older folders are not taken for new."""


def dataset_dir(data: Data, *, data_dir: Path) -> Path:
    """The folder of a prepared data set, whether or not it exists: `NAME-DIGEST`.

    The digest covers what determines the tokens: formats and their raw data's identity, include, text field, filter,
    held-out fraction and tokenizer; not weights, token counts, epochs, or where the raw files are. Raises ValueError
    where a given tokenizer can neither be read nor has a hash.
    """
    return data_dir / f"{data.name}-{_digest(data)[:8]}"


def find(data: Data, *, data_dir: Path) -> Manifest | None:
    """The prepared data set's manifest, or None. Raises ValueError where the manifest is damaged."""
    folder = dataset_dir(data, data_dir=data_dir)
    return Manifest.load(folder) if folder.is_dir() else None


def missing(data: Data, *, data_dir: Path, line: Sequence[str] = ()) -> str | None:
    """None where the data set is prepared; else which shards are missing, where they belong, and what prepares them.

    `line` holds the overrides that were given: what prepares the set repeats them, since any of them may change it.
    """
    folder = dataset_dir(data, data_dir=data_dir)
    if (folder / FILE).is_file():
        return None
    command = ["python", "main.py", "task=prepare", *(word for word in line if not word.startswith("task="))]
    if not line:
        command.append(f"data={data.name}")
    for name, source in data.sources.items():
        raw = f"data.sources.{name}.raw="
        if not source.is_embedded and not any(word.startswith(raw) for word in line):
            command.append(raw + (source.raw or f"/path/to/{name}"))
    return (
        f"data set {data.name} is not prepared: no shards of {', '.join(data.sources)} in {folder}. "
        f"Prepare them with: {shlex.join(command)}"
    )


def is_embedded(data: Data) -> bool:
    """Whether every source is the standard library, so that the set can be prepared on the spot."""
    return all(source.is_embedded for source in data.sources.values())


def prepare(data: Data, *, data_dir: Path, report: Callable[[str], None]) -> Manifest:
    """Prepares a data set, or finds it prepared, and verifies every hash.

    It is written in a folder of its own beside the final one and renamed when whole; an error or an interrupt leaves
    nothing behind, and where another process was faster its result is taken. `report` gets a line about every two
    seconds. Raises ValueError where raw data, tokenizer or splits cannot be used.
    """
    final = dataset_dir(data, data_dir=data_dir)
    if (found := find(data, data_dir=data_dir)) is None:
        data_dir.mkdir(parents=True, exist_ok=True)
        _remove_dead(data_dir)
        temporary = data_dir / f".{final.name}.{socket.gethostname()}.{os.getpid()}.tmp"
        temporary.mkdir()
        try:
            _fill(temporary, data=data, report=report)
            try:
                temporary.rename(final)
            except OSError as error:
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        found = Manifest.load(final)
    found.verify(final)
    return found


def _fill(folder: Path, *, data: Data, report: Callable[[str], None]) -> None:
    """Writes the whole data set into an empty folder."""
    for name, source in data.sources.items():
        if not source.is_embedded:
            _of_source(name, raw_files, source)  # a wrong path is told before hours of work on the first source
    totals = _make_tokenizer(folder / TOKENIZER_FILE, data=data, report=report)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    entry = TokenizerEntry(
        file=TOKENIZER_FILE, sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos
    )
    sources = {}
    for name, source in data.sources.items():
        progress = Progress(f"encoding {name}", report, total=totals.get(name))
        sources[name] = _of_source(
            name, encode_source, source, name=name, tokenizer=tokenizer, entry=entry, folder=folder, progress=progress
        )
        report(f"{name}: {sources[name].train.tokens:,} training and {sources[name].held_out.tokens:,} held-out tokens")
    Manifest(name=data.name, digest=_digest(data), tokenizer=entry, sources=sources).save(folder)


def _make_tokenizer(path: Path, *, data: Data, report: Callable[[str], None]) -> dict[str, int]:
    """Copies or trains the tokenizer; gives the documents per source that training it counted."""
    spec = data.tokenizer
    if spec.model is not None:
        given = Tokenizer.load(Path(spec.model), expected_sha256=spec.sha256)
        if given.vocab_size != spec.vocab_size:
            raise ValueError(
                f"tokenizer {spec.model} has {given.vocab_size} pieces, but data.tokenizer.vocab_size is "
                f"{spec.vocab_size}: set it to {given.vocab_size}"
            )
        shutil.copyfile(spec.model, path)
        return {}
    share = spec.sample_bytes // len(data.sources)
    surveys = {
        name: _of_source(name, survey, source, sample_bytes=share, progress=Progress(f"reading {name}", report))
        for name, source in data.sources.items()
    }
    report(f"training a tokenizer of {spec.vocab_size:,} pieces")
    train_tokenizer(
        chain.from_iterable(found.sample for found in surveys.values()), vocab_size=spec.vocab_size, path=path
    )
    return {name: found.documents for name, found in surveys.items()}


def _of_source(source_name: str, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """Calls a function, so that its ValueErrors name the source."""
    try:
        return function(*arguments, **options)
    except ValueError as error:
        raise ValueError(f"data.sources.{source_name}: {error}") from error


def _digest(data: Data) -> str:
    """Hash of what determines the tokens."""
    spec = data.tokenizer
    if spec.model is None:
        tokenizer: dict[str, Any] = {"vocab_size": spec.vocab_size, "sample_bytes": spec.sample_bytes}
    else:
        tokenizer = {"sha256": spec.sha256 or Tokenizer.load(Path(spec.model)).sha256}
    sources = {
        name: {
            "format": source.format,
            "identity": identity(source),
            "include": source.include,
            "text_field": source.text_field,
            "filter": asdict(source.filter) if source.filter else None,
            "held_out": source.held_out,
        }
        for name, source in data.sources.items()
    }
    content = {"layout": _LAYOUT, "tokenizer": tokenizer, "sources": sources}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_dead(data_dir: Path) -> None:
    """Removes what processes of this machine left behind when they were killed."""
    for path in data_dir.glob(f".*.{socket.gethostname()}.*.tmp"):
        if (match := re.search(r"\.(\d+)\.tmp$", path.name)) and not _lives(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _lives(pid: int) -> bool:
    """Whether another process has this id; our own is an earlier one's that had the same."""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
