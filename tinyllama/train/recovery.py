"""What follows a refused step: its samples are left out, or the run goes back to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from tinyllama.data.skips import Skips
from tinyllama.engine.checkpoint import Checkpoint
from tinyllama.engine.saving import Saver
from tinyllama.engine.start import newest_whole, state_of
from tinyllama.engine.zero import Engine, StepRecord
from tinyllama.plan.plan import Plan
from tinyllama.tracking.tracker import Tracker
from tinyllama.train.spikes import Judge


class Recovery:
    """Carries out what the judge decides. Every rank has one and calls it alike."""

    def __init__(
        self,
        *,
        plan: Plan,
        judge: Judge,
        skips: Skips,
        engine: Engine,
        saver: Saver,
        tracker: Tracker,
        report: Callable[[str], None],
    ) -> None:
        """skips is what the run leaves out already."""
        self.judge = judge
        self.skips = skips
        self._plan, self._engine, self._saver = plan, engine, saver
        self._tracker, self._report = tracker, report

    def samples(self, step: int) -> list[range]:
        """The samples that a step takes."""
        return self.skips.samples(self._plan.sequences_of(step))

    def after_refusal(self, step: int, record: StepRecord, samples: Sequence[range]) -> int:
        """The step to go on with after one, counted from 0, was refused.

        Raises SpikeError, Damaged where it has to go back and no checkpoint is whole, OSError where one cannot be
        reached; nothing has then been removed or told.
        """
        self._saver.finish()
        # a checkpoint of so many steps comes before the sample that the step of that number takes first
        first = {taken: self.skips.sample(self._plan.sequences_of(taken).start) for taken in self._saver.steps()}
        decision = self.judge.refused(
            step, loss=record.loss, grad_norm=record.grad_norm, samples=samples, checkpoints=first
        )
        one: Checkpoint | None = None
        if (named := decision.to) is not None:
            # looked at before anything is removed or told
            one = self._newest_whole(at_most=named)
            if one.step != named:
                decision = self.judge.further_back(decision, to=one.step)
            # before the decision is written: a checkpoint and what led to it never contradict each other
            for later in (taken for taken in reversed(first) if taken > named):
                self._saver.discard(later)
        told = asdict(decision)
        self._tracker.tell(told.pop("kind"), **told)
        self.skips = self.skips.adding(decision.samples)
        if one is None:
            return step
        self._engine.seat(state_of(one))
        self.judge.go_back(one.meta["losses"])
        return one.step

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this: the last losses, and the samples that were left out on the way to it."""
        return {"losses": self.judge.state(), "skipped": self.skips.ranges}

    def _newest_whole(self, *, at_most: int) -> Checkpoint:
        engine, folder = self._engine, self._saver.folder
        one = newest_whole(
            folder,
            ranks=engine.ranks,
            device=engine.device,
            report=self._report,
            beat=engine.beat,
            at_most=at_most,
        )
        assert one is not None  # there is one, whole or not
        return one
