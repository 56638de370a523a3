"""The knobs of what a run survives by: when its state is saved, what is done about a loss that jumps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tinyllama.config.kinds import NonNegativeInt, PositiveFloat, PositiveInt, Section


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Section):
    """When the state is saved, and which saves stay. The last step is always saved."""

    every: PositiveInt
    """Steps between two checkpoints."""
    minutes: PositiveFloat | None
    """Save as well when so long has passed since the last; null goes by steps alone."""
    keep: PositiveInt
    """Newest checkpoints to keep."""
    keep_every: PositiveInt | None
    """Checkpoints of a step that this divides stay for good; null keeps none but the newest."""


@dataclass(frozen=True, kw_only=True)
class Spikes(Section):
    """What to do about a loss that jumps or is not finite: refuse the step, and leave its samples out.

    Where the loss stays high on other samples, the weights are at fault: the run goes back to the newest checkpoint and
    leaves out all samples since (arXiv 2204.02311, section 5.1).
    """

    threshold: PositiveFloat | None
    """Deviations above the median that make a spike; null refuses only what is not finite. A deviation is 1.4826 times
    the median absolute one, a Gaussian's standard deviation."""
    window: Annotated[int, Field(ge=8)]
    """Steps of whose losses the median is taken; until there are as many, only what is not finite is refused."""
    max_skips: NonNegativeInt
    """Times a run may leave samples out; after that it fails."""
    skip: tuple[tuple[NonNegativeInt, PositiveInt], ...]
    """Samples to leave out from the start, as [first, end) of their numbers: result.json's `skipped` replays a run."""
