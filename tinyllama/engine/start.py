"""Where a run goes on or begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tinyllama.engine import checkpoint
from tinyllama.engine.zero import TrainState
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama


def starting_state(
    model: Llama, *, checkpoints: Path, origin: Path | None, seed: int, report: Callable[[str], None]
) -> TrainState:
    """The newest whole checkpoint; where there is none the newest weights under `origin`, or else random ones."""
    if resumed := checkpoint.newest(checkpoints, report=report):
        return resumed[0]
    if origin:
        return TrainState.fresh(checkpoint.latest_weights(origin))
    return TrainState.fresh(initial_weights(model, seed=seed))
