"""The judge of losses: how high one may be, and what follows where it is higher."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from tinyllama.config.resilience import Spikes
from tinyllama.data.skips import Skips
from tinyllama.tracking.journal import JOURNAL, read_kinds

GAUSSIAN = 1.4826
"""A Gaussian's standard deviation over its median absolute one."""
LEAST_DEVIATION = 0.01
"""Of the median: what a deviation is taken to be at least. Losses that happen to lie close together, or are all the
same, would otherwise make a spike of the next ordinary one. At a threshold of 10 no loss less than a tenth above the
median is refused: 0.25 nats at a loss of 2.5."""


class SpikeError(ArithmeticError):
    """A loss or a gradient was refused, and there is nothing left to try."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What is done about a step that was refused."""

    kind: Literal["skip", "rollback"]
    """Leave the samples out and take the step on the next; or go back to a checkpoint first, and leave out more."""
    step: int
    """The step that was refused, from 0: so many had been taken."""
    samples: tuple[tuple[int, int], ...]
    """What to leave out, [first, end) of sample numbers; some of it may be left out already."""
    to: int | None
    """Steps taken by the checkpoint to go back to; None for a skip. All later ones have to go."""
    loss: float
    """What was refused, in nats; may not be finite."""
    grad_norm: float
    """That of the gradient; may not be finite, nor known where the loss was enough."""
    median: float
    """Of the losses before; nan where there are none."""
    ceiling: float
    """What the loss was held to; inf where only what is not finite is refused."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Decision:
        """A decision as the journal has it: its fields among others, null and a reason for what is not finite."""
        known = {field.name: record[field.name] for field in fields(cls)}
        for name in ("loss", "grad_norm", "median", "ceiling"):
            if known[name] is None:
                known[name] = float(record["reason"][name])
        return cls(**known | {"samples": tuple((first, end) for first, end in record["samples"])})


def decisions(run_dir: Path) -> list[Decision]:
    """What a run has decided so far, in all its processes, by its journal."""
    path = run_dir / JOURNAL
    lines = read_kinds(path, ("skip", "rollback")) if path.exists() else []
    return [Decision.of(line) for line in lines]


def skips_of(spikes: Spikes, decided: Iterable[Decision], *, kept: Iterable[Sequence[int]] = ()) -> Skips:
    """What a run leaves out: what its configuration says, and what it has decided.

    kept is what the checkpoint that it goes on from was trained without. The journal has it, too; where the journal was
    lost, the checkpoint alone.
    """
    decided_on = [left_out for one in decided for left_out in one.samples]
    return Skips(spikes.skip).adding([*decided_on, *((first, end) for first, end in kept)])


class Judge:
    """Says how high the next loss may be, and what follows where a step was refused.

    A step is refused where its loss is above the ceiling, or its loss or gradient is not finite; its weights are then
    as they were.

    - Refused once: its samples are suspected, and left out. The same step is taken on the next ones.
    - Refused on those too: the weights are at fault. The run goes back to the newest checkpoint that is older than the
      step, and leaves out all samples from there to those just refused (PaLM: arXiv 2204.02311, section 5.1).

    A checkpoint is passed over for an older one where it is at fault itself: it has the very weights that failed, being
    of the same step, or the run has gone back to it before and has failed again.

    All this follows from the losses since the checkpoint and the decisions so far, so that a run that is killed and
    resumed decides the same.
    """

    def __init__(self, spikes: Spikes, *, recent: Sequence[float] = (), earlier: Sequence[Decision] = ()) -> None:
        """recent are the losses that the checkpoint keeps, earlier the run's decisions so far, in all its processes."""
        self._spikes = spikes
        self._recent = deque(recent, maxlen=spikes.window)
        self._decided = 0
        self._suspected: int | None = None  # the step whose samples were just left out
        self._tried: int | None = None  # the checkpoint that the run went back to last
        for decision in earlier:
            self._remember(decision)

    def ceiling(self) -> float:
        """The most that the next loss may be: the median of the last ones and `threshold` deviations more.

        inf without a threshold, and until there are as many losses as the window has.
        """
        if self._spikes.threshold is None or len(self._recent) < self._spikes.window:
            return math.inf
        middle = median(self._recent)
        deviation = GAUSSIAN * median([abs(loss - middle) for loss in self._recent])
        return middle + self._spikes.threshold * max(deviation, LEAST_DEVIATION * middle)

    def accepted(self, loss: float) -> None:
        """A step was taken, at this loss."""
        assert math.isfinite(loss)
        self._recent.append(loss)

    def refused(
        self, step: int, *, loss: float, grad_norm: float, samples: Sequence[range], checkpoints: Mapping[int, int]
    ) -> Decision:
        """What follows from the refusal of a step, counted from 0, on these samples.

        checkpoints are those that exist, by the steps they have taken, each with the first sample that comes after it.
        Raises SpikeError where the run has left samples out `max_skips` times, or has no checkpoint to go back to.
        """
        middle, ceiling = median(self._recent) if self._recent else math.nan, self.ceiling()
        above = f"a loss of {loss:.4f} is above {ceiling:.4f}, {self._spikes.threshold} deviations over {middle:.4f}"
        if not math.isfinite(loss):
            above = f"the loss is {loss}"
        elif not loss > ceiling:
            above = f"the gradient's norm is {grad_norm}"
        what = f"step {step}, samples {samples[0].start:,} to {samples[-1].stop - 1:,}: {above}"
        look = f"lower optimizer.lr, look at the samples with task=inspect inspect.at_step={step}"
        if self._decided >= self._spikes.max_skips:
            raise SpikeError(
                f"{what}; the run has left samples out {self._decided} times, and spikes.max_skips="
                f"{self._spikes.max_skips}: {look}, or raise spikes.max_skips"
            )
        to, left_out = None, tuple((piece.start, piece.stop) for piece in samples)
        if step == self._suspected:
            to = max((taken for taken in checkpoints if taken < step and taken != self._tried), default=None)
            if to is None:
                raise SpikeError(
                    f"{what}; others were refused too, so the weights are at fault, and there is no checkpoint left to "
                    f"go back to: {look}, or save more often and keep more (checkpoint.every, checkpoint.keep)"
                )
            left_out = ((checkpoints[to], samples[-1].stop),)
        decision = Decision(
            kind="skip" if to is None else "rollback",
            step=step,
            samples=left_out,
            to=to,
            loss=loss,
            grad_norm=grad_norm,
            median=middle,
            ceiling=ceiling,
        )
        self._remember(decision)
        return decision

    def further_back(self, decision: Decision, *, to: int) -> Decision:
        """The same decision where the checkpoint that it names is damaged: an older one leads to the same samples."""
        self._tried = to
        return replace(decision, to=to)

    def go_back(self, recent: Sequence[float]) -> None:
        """The run has gone back to a checkpoint with these losses. The decisions stay."""
        self._recent = deque(recent, maxlen=self._spikes.window)

    def reset(self) -> None:
        """Forget the losses: another mixture begins, and its own are not yet known."""
        self._recent.clear()

    def state(self) -> list[float]:
        """The last losses, oldest first, for a checkpoint to keep."""
        return list(self._recent)

    def _remember(self, decision: Decision) -> None:
        self._decided += 1
        if decision.to is None:
            self._suspected = decision.step
        else:
            self._suspected, self._tried = None, decision.to
