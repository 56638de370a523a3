"""Writing checkpoints beside the training: each rank its share, the name given when all shares are on disk."""

from __future__ import annotations

import errno
import json
import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from tinyllama.config.resilience import Checkpoint as Kept
from tinyllama.engine import checkpoint
from tinyllama.engine.distributed import Beat, anywhere, from_first, wait_for_all
from tinyllama.engine.room import check_room, sync
from tinyllama.engine.zero import Engine, Weights

Part = tuple[str, Weights]


class Saver:
    """A run's checkpoints, one at a time. Every rank has one and calls it alike."""

    def __init__(
        self,
        folder: Path,
        *,
        engine: Engine,
        kept: Kept,
        ranks_here: int,
        named: Callable[[int], None],
        branch: int | None = None,
    ) -> None:
        """What an earlier process left half-written goes. The checkpoint of the step `branch` stays for good.

        ranks_here share this machine's memory; named is called with the step of each checkpoint that is done.
        """
        self.folder, self._engine, self._kept, self._ranks_here, self._named = folder, engine, kept, ranks_here, named
        self._branch = branch
        self._ranks, self._device = engine.ranks, engine.device
        self._step: int | None = None
        self._meta: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._hashes: dict[str, str] = {}
        self._sealed = False
        self._error: Exception | None = None
        if self._ranks.is_first:
            for stale in folder.glob(".step-*.partial"):
                shutil.rmtree(stale)

    def save(self, step: int, *, meta: dict[str, Any]) -> None:
        """Begin the checkpoint of a step, which `commit` or `finish` ends.

        Where every machine's memory has room for all shares they are taken at once and written beside the training,
        otherwise each part is written before the next is taken. Raises on all ranks, on one of them what went wrong
        there and OSError on the others, and what was written of it goes.
        """
        n_bytes = self._engine.share_bytes
        self.finish()
        self._step, self._meta, self._hashes, self._sealed = step, meta, {}, False
        if self._ranks.is_first:
            self._guarded(self._make_room, n_bytes * self._ranks.world_size)
        self._raise_together()
        # all ranks the same: to take a share they wait for each other, and would for the disk of one that writes
        if not anywhere(n_bytes * self._ranks_here >= _memory_left() // 2, device=self._device):
            taken = list(self._engine.shares())
            self._thread = threading.Thread(target=self._guarded, args=(self._write_all, taken), daemon=True)
            self._thread.start()
            return
        beat = self._engine.beat
        for part in self._engine.shares():
            # all parts are taken even when the disk fails, since the other ranks take them too
            if self._error is None:
                self._guarded(self._write, part, beat)
            anywhere(False, device=self._device, beat=beat)  # the slower disks are waited for here, with signs of life
        if self._error is None:
            self._guarded(self._seal)

    @property
    def written(self) -> bool:
        """Whether this rank's share of a begun checkpoint is on disk. Where it is on all ranks: `commit`."""
        return self._step is not None and self._sealed and not self._error

    @property
    def failed(self) -> bool:
        """Whether this rank could not write. Where it is so on any rank: `finish`, which raises on all."""
        return self._error is not None

    def commit(self) -> None:
        """Name the checkpoint that all ranks have written, and remove the older ones that are not to be kept."""
        if self._step is not None:
            if self._ranks.is_first:
                self._guarded(self._name, self._step)
            if self._error is None:
                self._named(self._step)
            else:
                shutil.rmtree(self._partial, ignore_errors=True)
        self._step = self._thread = None

    def finish(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and name it. Raises as `save` does."""
        while self._thread is not None and self._thread.is_alive():
            self._thread.join(1.0)
            self._engine.beat()
        self._raise_together()
        self.commit()
        self._raise_together()
        wait_for_all()  # a checkpoint that one rank knows of is there for all

    def steps(self) -> list[int]:
        """The steps of the checkpoints that there are, oldest first, as the first rank sees them."""
        here = [checkpoint.step_of(place) for place in checkpoint.found(self.folder)] if self._ranks.is_first else []
        count = from_first(len(here), self._ranks, device=self._device)
        return [from_first(here[i] if here else 0, self._ranks, device=self._device) for i in range(count)]

    def place_of(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / checkpoint.name_of(step)

    def discard(self, step: int) -> None:
        """Remove the checkpoint of a step."""
        self.finish()
        if self._ranks.is_first:
            _remove(self.place_of(step))
            self._point_at_newest()
        wait_for_all()

    @property
    def _partial(self) -> Path:
        assert self._step is not None
        return self.folder / f".{checkpoint.name_of(self._step)}.partial"

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        """What goes wrong on one rank is kept until all can know of it, so that none goes on without it."""
        try:
            work(*arguments)
        except Exception as error:
            self._error = error

    def _raise_together(self) -> None:
        if not anywhere(self._error is not None, device=self._device, beat=self._engine.beat):
            return
        if self._ranks.is_first and self._step is not None:
            shutil.rmtree(self._partial, ignore_errors=True)
        self._step = self._thread = None
        error, self._error = self._error, None
        raise error or OSError(errno.EIO, "another rank could not write its share of a checkpoint, and says why")

    def _make_room(self, n_bytes: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        check_room(self.folder, n_bytes)
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()

    def _write_all(self, parts: list[Part]) -> None:
        # no sign of life comes from the thread that does this: it would hide that the training hangs
        for part in parts:
            self._write(part)
        self._seal()

    def _write(self, part: Part, beat: Beat = lambda: None) -> None:
        """Write this rank's share of a part, if it has one."""
        name, tensors = part
        if not tensors:
            return
        path = self._partial / f"{name}-{self._ranks.rank:05d}.safetensors"
        try:
            save_file(tensors, path)
        except SafetensorError as error:
            # which says in words only that a disk is full
            number = errno.ENOSPC if "os error 28" in str(error) else errno.EIO
            raise OSError(number, f"{path}: {error}") from error
        beat()
        self._hashes[path.name] = checkpoint.sha256_of(path, beat=beat)
        sync(path)
        beat()

    def _seal(self) -> None:
        """Write, last of all, what this rank's files hash to."""
        share = self._partial / f"share-{self._ranks.rank:05d}.json"
        share.write_text(json.dumps(self._hashes))
        sync(share)
        self._sealed = True

    def _name(self, step: int) -> None:
        shares = [self._partial / f"share-{rank:05d}.json" for rank in range(self._ranks.world_size)]
        files: dict[str, str] = {}
        for share in shares:
            files |= json.loads(share.read_text())
            share.unlink()
        checkpoint.write_state(self._partial, step=step, meta=self._meta, files=files)
        sync(self._partial / checkpoint.STATE)
        sync(self._partial)
        place = self.place_of(step)
        _remove(place)
        self._partial.rename(place)
        self._point_at_newest()
        sync(self.folder)
        every = self._kept.keep_every
        for old in checkpoint.found(self.folder)[: -self._kept.keep]:
            step = checkpoint.step_of(old)
            if step != self._branch and not (every and step % every == 0):
                _remove(old)
                self._engine.beat()

    def _point_at_newest(self) -> None:
        """`latest`, for people and scripts; the program goes by the steps in the names."""
        newest = checkpoint.found(self.folder)[-1:]
        link, fresh = self.folder / "latest", self.folder / ".latest"
        with suppress(OSError):  # some filesystems have no links
            fresh.unlink(missing_ok=True)
            if newest:
                fresh.symlink_to(newest[0].name)
                fresh.replace(link)
            else:
                link.unlink(missing_ok=True)


def _remove(place: Path) -> None:
    """Remove a checkpoint, if it is there. A folder of a checkpoint's name is whole, also where this is cut short."""
    doomed = place.with_name(f".{place.name}.old.partial")
    if place.exists():
        place.rename(doomed)
        shutil.rmtree(doomed)


def _memory_left() -> int:
    """Bytes that this machine's processes could still take."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
