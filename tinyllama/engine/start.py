"""Where a run goes on or begins."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tinyllama.engine import checkpoint
from tinyllama.engine.checkpoint import Checkpoint, Damaged
from tinyllama.engine.distributed import Ranks, anywhere, from_first, wait_for_all
from tinyllama.engine.zero import TrainState
from tinyllama.model.init import initial_weights
from tinyllama.model.llama import Llama

Report = Callable[[str], None]


def starting_state(
    model: Llama,
    *,
    checkpoints: Path,
    origin: Path | None,
    seed: int,
    ranks: Ranks,
    device: torch.device,
    report: Report,
) -> tuple[TrainState, Checkpoint | None]:
    """The newest whole checkpoint; where there is none the newest weights under `origin`, or else random ones.

    Every rank has to call it. Raises Damaged where there are checkpoints and none is whole.
    """
    if resumed := newest_whole(checkpoints, ranks=ranks, device=device, report=report):
        return state_of(resumed), resumed
    weights = checkpoint.latest_weights(origin) if origin else initial_weights(model, seed=seed)
    return TrainState.fresh(weights), None


def state_of(one: Checkpoint) -> TrainState:
    """A checkpoint's state, whose tensors are read when they are asked for."""
    return TrainState(one.step, *(one.tensors(part) for part in checkpoint.PARTS))


def newest_whole(folder: Path, *, ranks: Ranks, device: torch.device, report: Report) -> Checkpoint | None:
    """The newest checkpoint whose files are what was written; each rank hashes a share of them.

    Damaged ones are set aside and reported. Every rank has to call it. Raises Damaged where all of them are damaged: a
    run that has got somewhere must not begin anew without a word.
    """
    left = checkpoint.found(folder) if ranks.is_first else []
    fault = None
    while True:
        newest = checkpoint.step_of(left.pop()) if left else -1
        step = from_first(newest, ranks, device=device)
        if step < 0:
            break
        place = folder / checkpoint.name_of(step)
        one, fault = _look_at(place, share=(ranks.rank, ranks.world_size))
        if not anywhere(fault is not None, device=device):
            return one
        if ranks.is_first:
            aside = place.with_name(f"damaged-{place.name}")
            shutil.rmtree(aside, ignore_errors=True)
            place.rename(aside)
            report(f"warning: {fault or f'{place} is damaged'}; it is now {aside.name}, and the one before it is taken")
        wait_for_all()
        fault = fault or f"{place} is damaged"
    # those that an earlier start has set aside count too
    if anywhere(ranks.is_first and any(folder.glob("damaged-step-*")), device=device):
        raise Damaged(
            f"{fault or 'all were damaged'}, and no checkpoint in {folder} is whole: restore one, or set resume=never "
            "to start over"
        )
    return None


def _look_at(place: Path, *, share: tuple[int, int]) -> tuple[Checkpoint | None, str | None]:
    try:
        one = Checkpoint.at(place)
        one.verify(share=share)
    except Damaged as error:
        return None, str(error)
    return one, None
