"""The training loop on steps that only pretend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from tinyllama.config.schema import RunConfig
from tinyllama.engine.distributed import Ranks
from tinyllama.engine.zero import StepRecord
from tinyllama.plan.plan import Plan
from tinyllama.tracking.tracker import Tracker
from tinyllama.train.loop import train
from tinyllama.train.meter import Meter
from tinyllama.train.progress import TrainProgress

Sum = Callable[[list[float]], list[float]]


class Numbers:
    """A loader whose sequences are the samples' numbers."""

    def batch(self, samples: list[range], **_: object) -> np.ndarray:
        return np.array([k for piece in samples for k in piece])


class Nothing:
    """An evaluator of no held-out text, no tasks, and a saver that is never in the midst of a checkpoint."""

    written = failed = False

    def measure(self, **_: object) -> dict[str, Any]:
        return {}

    def is_due(self, step: int) -> bool:
        return False

    def ask(self, **_: object) -> None:
        pass

    def finish(self) -> None:
        pass


@dataclass
class Steps:
    """An engine that takes every step at a loss of 1, and keeps what it was on and at which rate."""

    ranks: Ranks
    summed: Sum = lambda votes: votes
    taken: list[list[int]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    def step(self, samples: Tensor, *, lr: float, votes: list[float], **_: object) -> StepRecord:
        self.taken.append(samples.tolist())
        self.rates.append(lr)
        return StepRecord(1.0, 1.0, tuple(self.summed(votes)))


def pretend(config: RunConfig, *, plan: Plan, engine: Steps, recovery: Any, save: Callable[[int], None]) -> None:
    """A whole run of the loop."""
    nothing: Any = Nothing()
    loader: Any = Numbers()
    steps: Any = engine
    train(
        config,
        plan=plan,
        start=0,
        engine=steps,
        loader=loader,
        evaluator=nothing,
        exam=nothing,
        recovery=recovery,
        saver=nothing,
        save=save,
        stop_asked=lambda: False,
        tracker=Tracker(),
        meter=Meter(flops_per_token=1, peak_flops=1.0),
        progress=TrainProgress(steps=plan.steps, start=0, shown=False),
    )
