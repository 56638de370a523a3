"""From raw files to a folder of shards: whole or not at all, and found again by what determines its tokens.

The work lies in a hidden folder beside the final one, unit by unit (`units`), so that a preparation that was killed
goes on, and several machines can share it. What comes out is the same bytes whoever did what.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console

from tinyllama.config.data import Data, Prepare
from tinyllama.data.find import dataset_dir, digest, find
from tinyllama.data.finish import finish
from tinyllama.data.formats import raw_files
from tinyllama.data.manifest import FILE, TOKENIZER_FILE, Manifest, TokenizerEntry, write_through
from tinyllama.data.pool import Job, encode_all
from tinyllama.data.progress import Tally
from tinyllama.data.survey import survey
from tinyllama.data.tokenizer import Tokenizer, train_tokenizer
from tinyllama.data.units import Record, Unit, units_of

_LOCK = ".lock"


def prepare(data: Data, *, data_dir: Path, how: Prepare, console: Console) -> Manifest | None:
    """Prepares a data set or this machine's part of it, goes on where an earlier try stopped, or finds it prepared.

    None where other parts are still to be done. An interrupt or an error leaves whole units behind, which are not done
    again. Raises ValueError where raw data, tokenizer or splits cannot be used, and where a set of that name was made
    of other files or with some left out; OSError where the disk is full.
    """
    final = dataset_dir(data, data_dir=data_dir)
    if (found := find(data, data_dir=data_dir)) is None:
        partial = data_dir / f".{final.name}.partial"
        partial.mkdir(parents=True, exist_ok=True)
        _remove_dead(partial)
        try:
            units = _fill(partial, data=data, how=how, console=console)
            if units is None:
                return None
            with _one_at_a_time(partial):
                if not final.exists():
                    if not (partial / FILE).exists():  # a finish that was killed after that has little left to do
                        _finish(partial, data=data, units=units, console=console)
                    _sweep(partial)
                    partial.rename(final)
                    (final / _LOCK).unlink()
        except FileNotFoundError:
            if not final.exists():  # else another part was the last and finished it
                raise
        finally:
            with suppress(OSError):  # where anything is in it, it may be another process's
                partial.rmdir()
        found = Manifest.load(final)
    else:
        _check_raw_files(found, final, data=data)
    if how.on_error == "stop":
        _check_skips(found, final)
    found.verify_small(final)
    return found


def _fill(folder: Path, *, data: Data, how: Prepare, console: Console) -> dict[str, list[Unit]] | None:
    """Encodes what this process is to encode. Each source's units, or None where others have some left to do."""
    strict = how.on_error == "stop"
    # a wrong path is told before hours of work on the first source
    units = {name: units_of(name, _of_source(name, raw_files, source)) for name, source in data.sources.items()}
    if (folder / FILE).exists():
        return units
    _make_tokenizer(folder, data=data, units=units, strict=strict, console=console)
    entry = _entry(folder)
    for name in units:
        (folder / name).mkdir(exist_ok=True)
    everything = list(chain.from_iterable(units.values()))
    mine = everything if how.part is None else everything[how.part :: how.parts]
    left = [unit for unit in mine if Record.load(folder, unit, tokenizer=entry, strict=strict) is None]
    if len(left) < len(mine):
        console.print(f"{len(mine) - len(left):,} of {len(mine):,} units are done already")
    jobs = [Job(unit, data.sources[unit.source], entry, folder, strict=strict) for unit in left]
    encode_all(jobs, workers=how.workers or len(os.sched_getaffinity(0)), console=console)
    if how.part is None:
        return units
    others = sum(Record.load(folder, unit, tokenizer=entry, strict=False) is None for unit in everything)
    if others:
        console.print(
            f"part {how.part} of {how.parts} is done; {others:,} of {len(everything):,} units are left to others"
        )
    return None if others else units


def _finish(folder: Path, *, data: Data, units: Mapping[str, list[Unit]], console: Console) -> None:
    """Turns units that are all done into the data set."""
    entry, sources = _entry(folder), {}
    for name, source in data.sources.items():
        sources[name] = _of_source(name, finish, source, name=name, units=units[name], tokenizer=entry, folder=folder)
        train, held_out, raw = sources[name].train, sources[name].held_out, sources[name].raw
        console.print(
            f"{name}: {raw.documents:,} documents read, {raw.filtered_documents:,} filtered out; "
            f"{train.tokens:,} tokens to train on, {held_out.tokens:,} held out"
        )
        if raw.skips is not None:
            console.print(f"warning: {name}: {raw.skipped:,} could not be read, listed in {raw.skips.file}")
    Manifest(name=data.name, digest=digest(data), tokenizer=entry, sources=sources).save(folder)


def _sweep(folder: Path) -> None:
    """Removes whatever is not the data set's: units' records, and what was left half done."""
    kept = {FILE, _LOCK, *(file for file, _, _ in Manifest.load(folder).files())}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            with suppress(OSError):
                path.rmdir()
        elif path.relative_to(folder).as_posix() not in kept:
            path.unlink()


def _check_skips(manifest: Manifest, folder: Path) -> None:
    """Raise ValueError where something was left out of a set."""
    for name, source in manifest.sources.items():
        if source.raw.skips is not None:
            raise ValueError(
                f"data.sources.{name}: {source.raw.skipped:,} of it could not be read when {folder} was prepared, "
                f"listed in {source.raw.skips.file}: repair them, delete the folder and prepare it again, or set "
                "prepare.on_error=skip"
            )


def _check_raw_files(manifest: Manifest, folder: Path, *, data: Data) -> None:
    """Raise ValueError where a set was made of other raw files than there are now."""
    for name, source in data.sources.items():
        if source.is_embedded or not Path(source.raw or "").is_dir():
            continue
        with (folder / manifest.sources[name].raw.ledger.file).open() as ledger:
            then = [(line["file"], line["size"]) for line in map(json.loads, ledger)]
        if then != [(file.name, file.size) for file in _of_source(name, raw_files, source)]:
            raise ValueError(
                f"data.sources.{name}: {folder} was made of other files than are in {source.raw} now: give the new set "
                "another data.name, or delete the folder and prepare it again"
            )


def _make_tokenizer(
    folder: Path, *, data: Data, units: Mapping[str, list[Unit]], strict: bool, console: Console
) -> None:
    """Copies or trains the tokenizer, where that is not done yet. Of processes that do it together the first wins."""
    spec, path, sampled = data.tokenizer, folder / TOKENIZER_FILE, folder / "tokenizer.sample"
    if spec.model is not None:
        given = Tokenizer.load(Path(spec.model), expected_sha256=spec.sha256)
        if given.vocab_size != spec.vocab_size:
            raise ValueError(
                f"tokenizer {spec.model} has {given.vocab_size} pieces, but data.tokenizer.vocab_size is "
                f"{spec.vocab_size}: set it to {given.vocab_size}"
            )
        if not path.exists():
            write_through(path, Path(spec.model).read_bytes())
        return
    # one that was trained on other files would make other tokens of these
    of = json.dumps([strict, [unit.raw() for unit in chain.from_iterable(units.values())]]).encode()
    if path.exists() and sampled.exists() and sampled.read_bytes() == of:
        return
    share, sample = spec.sample_bytes // len(data.sources), []
    for name, source in data.sources.items():
        with Tally(f"sampling {name}", total=None, console=console) as tally:
            sample += _of_source(name, survey, source, sample_bytes=share, strict=strict, progress=tally)
    console.print(f"training a tokenizer of {spec.vocab_size:,} pieces")
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    train_tokenizer(sample, vocab_size=spec.vocab_size, path=temporary)
    if sampled.exists() and sampled.read_bytes() == of and path.exists():
        temporary.unlink()  # another process was faster
        return
    temporary.rename(path)
    write_through(sampled, of)


def _entry(folder: Path) -> TokenizerEntry:
    tokenizer = Tokenizer.load(folder / TOKENIZER_FILE)
    return TokenizerEntry(
        file=TOKENIZER_FILE, sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size, eos=tokenizer.eos
    )


def _of_source(source_name: str, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    """Calls a function, so that its ValueErrors name the source."""
    try:
        return function(*arguments, **options)
    except ValueError as error:
        raise ValueError(f"data.sources.{source_name}: {error}") from error


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Within, no other process is here with the same folder, on a network's file system neither."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _remove_dead(folder: Path) -> None:
    """Removes what processes of this machine left half done when they were killed."""
    for path in folder.glob(f"*/.unit-*.{socket.gethostname()}.*.tmp"):
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
