"""`torchrun ... nan_on_rank_1.py RUN_DIR STEP`: the ranks of a run, of which rank 1 has one gradient that is no number.

At this step of the run, counted from 0, and at its first try.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

import main
from tinyllama.engine.zero import Engine
from tinyllama.launch.lifeline import Lifeline

take = Engine.step
calls = 0


def step(self: Engine, *what: Any, **how: Any) -> Any:
    global calls
    norm = dict(self._engine.module.named_parameters())["norm.weight"]
    hook = None
    if calls == int(sys.argv[2]) and os.environ["RANK"] == "1":
        hook = norm.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
    calls += 1
    record = take(self, *what, **how)
    if hook:
        hook.remove()
    return record


Engine.step = step  # type: ignore[method-assign]
main.train_rank(Path(sys.argv[1]), Lifeline())
