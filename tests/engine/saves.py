"""Checkpoints to test with, saved as a run of one rank does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tinyllama.config.resilience import Checkpoint as Kept
from tinyllama.engine import checkpoint
from tinyllama.engine.distributed import Ranks
from tinyllama.engine.saving import Saver


def share(part: str, step: int) -> dict[str, Tensor]:
    """Tensors that say which part and step they are of."""
    value = 10 * step + checkpoint.PARTS.index(part)
    return {"a.weight": torch.full((3, 2), float(value)), "b.weight": torch.arange(5.0) + value}


def shares(step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    for part in checkpoint.PARTS:
        yield part, share(part, step)


@dataclass(frozen=True)
class OneRank:
    """What a saver asks of an engine."""

    parts: Callable[[], Iterator[tuple[str, dict[str, Tensor]]]]
    share_bytes: int = 132
    ranks: ClassVar = Ranks(rank=0, local_rank=0, world_size=1)
    device: ClassVar = torch.device("cpu")

    def shares(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        return self.parts()

    def beat(self) -> None:
        pass


def saver(folder: Path, engine: OneRank, *, keep: int = 9, keep_every: int | None = None) -> Saver:
    """One rank's."""
    kept = Kept(every=1, minutes=None, keep=keep, keep_every=keep_every)
    return Saver(folder, engine=engine, kept=kept, ranks_here=1, named=lambda step: None)  # type: ignore[arg-type]


def save(folder: Path, step: int) -> Path:
    """One checkpoint, whole."""
    one = saver(folder, OneRank(lambda: shares(step)))
    one.save(step, meta={"tokens": step * 10})
    one.finish()
    return folder / checkpoint.name_of(step)
