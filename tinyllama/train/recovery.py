"""What follows a refused step: its samples are left out, or the run goes back to a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

from tinyllama.data.skips import Skips
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
        """The step to go on with after one, counted from 0, was refused. Raises SpikeError and Damaged."""
        engine = self._engine
        self._saver.finish()
        # a checkpoint of so many steps comes before the sample that the step of that number takes first
        first = {taken: self.skips.sample(self._plan.sequences_of(taken).start) for taken in self._saver.steps()}
        decision = self.judge.refused(
            step, loss=record.loss, grad_norm=record.grad_norm, samples=samples, checkpoints=first
        )
        to = decision.to
        for later in reversed(first):
            # before the decision is written: a checkpoint and what led to it never contradict each other
            if to is not None and later > to:
                self._saver.discard(later)
        told = asdict(decision)
        self._tracker.tell(told.pop("kind"), **told)
        self.skips = self.skips.adding(decision.samples)
        if to is None:
            return step
        # the one decided on, or where that is damaged the one before it, from which the run comes to the same samples
        one = newest_whole(self._saver.folder, ranks=engine.ranks, device=engine.device, report=self._report)
        assert one is not None  # it was there a moment ago
        engine.seat(state_of(one))
        self.judge.go_back(one.meta["losses"])
        return one.step
