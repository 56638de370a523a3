"""Units encoded side by side, one process for each."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from rich.console import Console

from tinyllama.config.data import Source
from tinyllama.data.manifest import TokenizerEntry
from tinyllama.data.progress import Tally
from tinyllama.data.tokenizer import Tokenizer
from tinyllama.data.units import Tick, Unit, encode_unit
from tinyllama.data.words import Encoder

_TICK = 1 << 20
"""Raw bytes or bytes of text after which a worker tells how far it is."""


@dataclass(frozen=True)
class Job:
    """A unit to encode, and what that takes."""

    unit: Unit
    source: Source
    tokenizer: TokenizerEntry
    folder: Path
    strict: bool

    def run(self, tick: Tick) -> None:
        """Does it. Raises ValueError naming the source, and OSError naming the remedy where the disk is full."""
        encoder = _encoder(self.folder / self.tokenizer.file, self.tokenizer.sha256, self.tokenizer.dtype)
        try:
            encode_unit(
                self.unit,
                source=self.source,
                encoder=encoder,
                tokenizer=self.tokenizer,
                folder=self.folder,
                strict=self.strict,
                tick=tick,
            )
        except ValueError as error:
            raise ValueError(f"data.sources.{self.unit.source}: {error}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                error.errno,
                f"the disk of {self.folder.parent} is full: free some of it, or set data_dir to a larger one and start "
                "over; the same command goes on after the last unit that was done",
            ) from error


@lru_cache(maxsize=1)
def _encoder(model: Path, sha256: str, dtype: str) -> Encoder:
    return Encoder(Tokenizer.load(model, expected_sha256=sha256), dtype=dtype)


def encode_all(jobs: Sequence[Job], *, workers: int, console: Console) -> None:
    """Does all jobs, in so many processes; in this one where there is but one job or worker.

    What is done stays done where one of them fails; its error is raised as soon as the others have stopped. The
    embedded sources are read in this process, which has read them before.
    """
    alone = workers == 1 or len(jobs) == 1
    here = [job for job in jobs if alone or job.source.is_embedded]
    away = [job for job in jobs if not alone and not job.source.is_embedded]
    total = sum(file.size for job in jobs for file in job.unit.files)
    with Tally("encoding", total=total, console=console) as tally:
        for job in here:
            job.run(tally.add)
        if away:
            _in_processes(away, workers=min(workers, len(away)), tally=tally, before=tally.done)


def _in_processes(jobs: Sequence[Job], *, workers: int, tally: Tally, before: Sequence[int]) -> None:
    context = multiprocessing.get_context("spawn")
    shared = context.Array("q", 5)  # raw bytes, documents, bytes of text, tokens; then whether to stop
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(shared,)) as pool:
        left: set[Future[None]] = set()
        try:
            left.update(_submitted(pool, jobs))
            while left:
                done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                tally.show([a + b for a, b in zip(before, shared[:4], strict=True)])
        except BrokenProcessPool as error:
            # the pool ends those that it had when it broke, and would wait for ever for one that was just being started
            for process in multiprocessing.active_children():
                process.terminate()
            raise OSError(
                "a worker was killed, perhaps for want of memory: take fewer, as in prepare.workers=1; the same "
                "command goes on after the last unit that was done"
            ) from error
        finally:
            shared[4] = 1
            pool.shutdown(cancel_futures=True)


def _submitted(pool: ProcessPoolExecutor, jobs: Sequence[Job]) -> set[Future[None]]:
    try:
        return {pool.submit(_run, job) for job in jobs}
    except (OSError, ValueError):
        # a pool that breaks closes its queues, also under a worker that is just being started
        pool.submit(int)  # raises BrokenProcessPool if that is why
        raise


class _StoppedError(Exception):
    """Another worker failed, or the user has seen enough."""


_shared: Any = None


def _begin(shared: Any) -> None:
    """Makes a process a worker: it leaves to its parent what asks to stop, and does not outlive it."""
    global _shared
    _shared = shared
    for number in (signal.SIGINT, signal.SIGUSR2, signal.SIGHUP):  # by SIGTERM the pool ends them itself
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(job: Job) -> None:
    """A job in a worker."""
    done = [0, 0, 0, 0]

    def tell() -> None:
        with _shared.get_lock():
            for i, more in enumerate(done):
                _shared[i] += more
            stopped = _shared[4]
        done[:] = [0, 0, 0, 0]
        if stopped:
            raise _StoppedError

    def tick(raw: int, documents: int, text: int, tokens: int) -> None:
        done[:] = done[0] + raw, done[1] + documents, done[2] + text, done[3] + tokens
        if done[0] + done[2] > _TICK:
            tell()

    job.run(tick)
    tell()
