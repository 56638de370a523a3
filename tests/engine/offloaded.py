"""An engine whose optimizer is offloaded beside one that keeps it: `torchrun ... offloaded.py OUT`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch import Tensor

from tests.engine.ranks import SHAPE, batches, captured, engine, equal, mine, poisoned, rate, run, worst
from tinyllama import kernels
from tinyllama.engine.distributed import Ranks, leave, meet, use_device
from tinyllama.engine.zero import TrainState
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

STEPS, MIDDLE = 6, 3
"""The batch grows at the last of these steps."""


def compared(ranks: Ranks, weights: dict[str, Tensor], *, stage: int, precision: str) -> dict[str, object]:
    """What both come to, refused steps in between, and states handed from each to the other."""
    kept = engine(ranks, TrainState.fresh(weights), stage=stage, precision=precision)
    losses = run(kept, range(STEPS))
    end = captured(kept, STEPS)
    moved = engine(ranks, TrainState.fresh(weights), stage=stage, precision=precision, offload="optimizer")
    ours = run(moved, range(MIDDLE))
    middle = captured(moved, MIDDLE)
    sequences = mine(batches(range(2, 3))[0], ranks)
    refused = [moved.step(sequences, lr=rate(2), ceiling=1e-3).refused]
    with poisoned(moved, ranks):
        refused.append(moved.step(sequences, lr=rate(2)).refused)
    untouched = equal(middle, captured(moved, MIDDLE))
    ours += run(moved, range(MIDDLE, STEPS))
    last = captured(moved, STEPS)
    resumed = engine(ranks, middle, stage=stage, precision=precision, offload="optimizer")
    again = run(resumed, range(MIDDLE, STEPS))
    other = 5 - stage if stage > 1 else 2
    back = engine(ranks, middle, stage=other, precision=precision)
    there = run(back, range(MIDDLE, STEPS))
    return {
        "losses": [losses, ours],
        "states": max(worst(getattr(last, part), getattr(end, part)) for part in ("weights", "exp_avg", "exp_avg_sq")),
        "refused": refused,
        "untouched": untouched,
        "resumed": again == ours[MIDDLE:] and equal(last, captured(resumed, STEPS)),
        "taken over": [losses[MIDDLE:], there],
    }


def main() -> None:
    ranks = Ranks.from_environment()
    meet(use_device("cpu", ranks, threads=1, ranks_here=1), patience=60)
    weights = initial_weights(Llama(SHAPE, ops=kernels.TORCH), seed=1)
    found = {
        f"{precision} stage {stage}": compared(ranks, weights, stage=stage, precision=precision)
        for precision in ("fp32", "bf16")
        for stage in (1, 2, 3)
    }
    if ranks.is_first:
        Path(sys.argv[1]).write_text(json.dumps(found, indent=2))
    leave()


if __name__ == "__main__":
    main()
