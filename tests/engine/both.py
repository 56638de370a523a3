"""What stands in for an engine on two ranks, and a folder that both save in."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from tinyllama.config.resilience import Checkpoint as Kept
from tinyllama.engine import checkpoint
from tinyllama.engine.distributed import Ranks, sum_over_ranks
from tinyllama.engine.saving import Saver
from tinyllama.engine.zero import TrainState

CPU = torch.device("cpu")


@dataclass
class Both:
    """What a saver and a recovery ask of an engine; a share is taken by all ranks together, as the real one's."""

    ranks: Ranks
    beats: list[float] = field(default_factory=list)
    seated: list[int] = field(default_factory=list)
    device: ClassVar = CPU
    share_bytes: ClassVar = 132

    def shares(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        for part in checkpoint.PARTS:
            sum_over_ranks(torch.ones(1))
            yield part, {f"{self.ranks.rank}.weight": torch.full((9,), float(self.ranks.rank))}

    def beat(self) -> None:
        self.beats.append(time.monotonic())

    def seat(self, state: TrainState) -> None:
        self.seated.append(state.step)


def votes(*mine: bool) -> list[float]:
    return sum_over_ranks(torch.tensor([float(vote) for vote in mine])).tolist()  # type: ignore[no-any-return]


class Here:
    """A folder for each check, and the savers of both ranks in it."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks, self.engine = folder, ranks, Both(ranks)
        dist.barrier()
        if ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)
        dist.barrier()
        kept = Kept(every=1, minutes=None, keep=9, keep_every=None)
        engine: Any = self.engine
        self.saver = Saver(folder, engine=engine, kept=kept, ranks_here=2, named=lambda step: None)

    def save(self, *steps: int) -> None:
        for step in steps:
            self.saver.save(step, meta={"losses": [float(step)]})
        self.saver.finish()

    def listed(self) -> list[str]:
        """What is there now, once both have come here."""
        dist.barrier()
        names = sorted(path.name for path in self.folder.iterdir())
        dist.barrier()
        return names
