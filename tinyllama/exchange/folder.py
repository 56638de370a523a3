"""Folders of weights that are whole or absent: written beside their place, hashed, renamed."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from tinyllama.data.progress import PLAIN_EVERY, duration
from tinyllama.engine.checkpoint import sha256_of
from tinyllama.engine.room import sync
from tinyllama.tracking.folder import NO_LOCKS
from tinyllama.tracking.record import refuse_what_is_there

SUMS = "SHA256SUMS"
"""Every other file's sha256, as `sha256sum --check` reads it."""


@contextmanager
def new_folder(out: Path, *, key: str) -> Iterator[Path]:
    """A folder to fill, which becomes `out` once it is full and on the disk; where that fails it goes.

    Raises ValueError, naming the key that says where, where something is at `out`, where nothing can be, and where
    another process is writing it.
    """
    with _beside(out, key=key) as partial:
        yield partial
        mode = partial.stat().st_mode & 0o666
        for path in sorted(partial.rglob("*")):
            if path.is_file():
                path.chmod(mode)  # safetensors keeps its files from everybody else
            sync(path)
        _move(partial, out, key=key)


@contextmanager
def new_file(out: Path, *, key: str) -> Iterator[Path]:
    """The same for a file."""
    with _beside(out, key=key) as partial:
        path = partial / out.name
        yield path
        sync(path)
        _move(path, out, key=key)


@contextmanager
def _beside(out: Path, *, key: str) -> Iterator[Path]:
    """An empty folder beside a place, kept from other processes; what one that was killed left in it goes."""
    refuse_what_is_there(out, key=key)
    partial = out.with_name(f".{out.name}.partial")
    try:
        partial.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError) as error:
        raise ValueError(f"{key}: {out} cannot be made ({error}): name another place") from error
    handle = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = partial.exists() and os.path.samestat(os.fstat(handle), partial.stat())
        except BlockingIOError:
            mine = False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            mine = True
        if not mine:
            raise ValueError(f"{key}: another process is writing {out}: let it end, or name another place")
        for stale in partial.iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        os.close(handle)


def _move(partial: Path, out: Path, *, key: str) -> None:
    sync(partial)
    refuse_what_is_there(out, key=key)
    partial.rename(out)
    sync(out.parent)


def write_sums(folder: Path) -> None:
    """Write down what each file of a folder hashes to."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    (folder / SUMS).write_text("".join(f"{sha256_of(path)}  {path.name}\n" for path in files))


def check_sums(folder: Path) -> None:
    """Raise ValueError where a folder says what its files hash to and one of them does not, or is not there."""
    if not (folder / SUMS).is_file():
        return
    for line in (folder / SUMS).read_text(errors="replace").splitlines():
        said = re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?([^/]+)", line)
        if said and not ((folder / said[2]).is_file() and sha256_of(folder / said[2]) == said[1]):
            raise ValueError(
                f"{folder / said[2]} is not what {SUMS} says: copy the folder again, or remove {SUMS} if you changed it"
            )


def shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups whose sizes add up to at most the limit; what is larger has a group of its own."""
    groups: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > room and groups[-1]:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


@contextmanager
def moving(label: str, n_bytes: int, console: Console) -> Iterator[Callable[[int], None]]:
    """Shows how many of the bytes have moved, at what rate and for how long still: a bar, or plain lines elsewhere.

    Gives what is to be told of each piece's bytes.
    """
    if console.is_terminal:
        columns = (TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("", total=n_bytes)
            yield lambda piece: bar.advance(task, piece)
        return
    began = told = time.monotonic()
    moved = 0

    def tell(piece: int) -> None:
        nonlocal moved, told
        moved += piece
        now = time.monotonic()
        if now - told >= PLAIN_EVERY:
            told, rate = now, moved / (now - began)
            left = duration((n_bytes - moved) / rate)
            console.print(f"{label}: {moved / n_bytes:.0%}, {rate / 1e6:,.0f} MB/s, {left} left")

    yield tell
