"""Where a run goes on or begins."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from tinyllama.engine import checkpoint
from tinyllama.engine.checkpoint import Checkpoint, Damaged
from tinyllama.engine.distributed import Beat, Ranks, anywhere, from_first, wait_for_all
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
    beat: Beat = lambda: None,
) -> tuple[TrainState, Checkpoint | None]:
    """The newest whole checkpoint; where there is none the newest weights under `origin`, or else random ones.

    Every rank has to call it; beat is called while files are hashed. Raises Damaged where there are checkpoints and
    none is whole, and OSError where one cannot be reached.
    """
    if resumed := newest_whole(checkpoints, ranks=ranks, device=device, report=report, beat=beat):
        return state_of(resumed), resumed
    weights = checkpoint.latest_weights(origin) if origin else initial_weights(model, seed=seed)
    return TrainState.fresh(weights), None


def state_of(one: Checkpoint) -> TrainState:
    """A checkpoint's state, whose tensors are read when they are asked for."""
    return TrainState(one.step, *(one.tensors(part) for part in checkpoint.PARTS))


def newest_whole(
    folder: Path,
    *,
    ranks: Ranks,
    device: torch.device,
    report: Report,
    beat: Beat = lambda: None,
    at_most: int | None = None,
) -> Checkpoint | None:
    """The newest checkpoint, or the newest of at most so many steps, whose files are what was written.

    Damaged ones are set aside and reported. Every rank has to call it. Raises Damaged where all of them are damaged: a
    run that has got somewhere must not begin anew without a word. Raises OSError where one cannot be reached.
    """
    left = [
        place
        for place in (checkpoint.found(folder) if ranks.is_first else ())
        if at_most is None or checkpoint.step_of(place) <= at_most
    ]
    fault = "all were damaged"
    while (step := from_first(checkpoint.step_of(left.pop()) if left else -1, ranks, device=device)) >= 0:
        place = folder / checkpoint.name_of(step)
        one, fault = _look_at(place, ranks=ranks, device=device, report=report, beat=beat)
        if one is not None:
            return one
    # those that an earlier start has set aside count too
    if anywhere(ranks.is_first and any(folder.glob("damaged-step-*")), device=device):
        raise Damaged(
            f"{fault}, and no checkpoint in {folder} is whole: restore one, or set resume=never to start over"
        )
    return None


def _look_at(
    place: Path, *, ranks: Ranks, device: torch.device, report: Report, beat: Beat
) -> tuple[Checkpoint | None, str]:
    """A checkpoint whose files are what was written; each rank hashes a share of them.

    One that any rank finds damaged is set aside, and all learn why, or that it is so. Every rank has to call it. Raises
    OSError, on all ranks alike, and sets nothing aside, where any of them cannot reach it.
    """
    one, fault, unreached = None, "", None
    try:
        one = Checkpoint.at(place)
        one.verify(share=(ranks.rank, ranks.world_size), beat=beat)
    except Damaged as error:
        fault = str(error)
    except OSError as error:
        unreached = error
    if anywhere(unreached is not None, device=device, beat=beat):
        why = repr(unreached) if unreached else "another rank says why"
        raise OSError(
            unreached.errno if unreached else errno.EIO,
            f"{place} cannot be reached ({why}): see that every machine has its disk, and run the same line again; "
            "nothing was changed",
        )
    if not anywhere(bool(fault), device=device):
        return one, ""
    fault = fault or f"{place} is damaged"
    if ranks.is_first:
        aside = place.with_name(f"damaged-{place.name}")
        shutil.rmtree(aside, ignore_errors=True)
        place.rename(aside)
        report(f"warning: {fault}; it is now {aside.name}, and the one before it is taken")
    wait_for_all()
    return None, fault
