"""The loop itself, on steps that only pretend: when the judge forgets, when it saves."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.train.loops import Steps, pretend
from tinyllama.config.resilience import Spikes
from tinyllama.config.schema import RunConfig
from tinyllama.data.skips import Skips
from tinyllama.engine.distributed import Ranks
from tinyllama.plan.plan import make_plan
from tinyllama.tracking.tracker import Tracker
from tinyllama.train import loop
from tinyllama.train.recovery import Recovery
from tinyllama.train.spikes import Judge

ALONE = Ranks(rank=0, local_rank=0, world_size=1)
SHORT = ("budget.tokens=100K", "schedule.warmup_steps=1", "train.batch_tokens=8_192", "parallelism.micro_batch=8")
"""13 steps of 32 samples."""


class Forgetful(Judge):
    """A judge that counts what it has seen since it last forgot."""

    def __init__(self) -> None:
        super().__init__(Spikes(threshold=10.0, window=100, max_skips=20, skip=()))
        self.seen: list[int] = []

    def reset(self) -> None:
        super().reset()
        self.seen.append(0)

    def accepted(self, loss: float) -> None:
        super().accepted(loss)
        self.seen[-1] += 1


@pytest.mark.parametrize(
    ("skip", "seen"),
    [
        pytest.param((), [3, 10], id="nothing is left out"),
        pytest.param(((64, 160),), [2, 11], id="the stage begins within what is left out between two steps"),
        pytest.param(((64, 96),), [2, 11], id="the stage begins right after that"),
        pytest.param(((96, 128),), [3, 10], id="the stage begins with what is left out"),
        pytest.param(((50, 160),), [1, 12], id="within what is left out in the middle of a step"),
        pytest.param(((0, 10),), [2, 11], id="the first samples are left out"),
    ],
)
def test_the_judge_forgets_where_a_stage_begins(
    config: Callable[..., RunConfig], skip: tuple[tuple[int, int], ...], seen: list[int]
) -> None:
    settings, judge = config(*SHORT, "stages=[{tokens:20K},{}]"), Forgetful()
    plan = make_plan(settings)
    assert (plan.steps, plan.stages[1].first_sequence) == (13, 96)
    unused: Any = None
    recovery = Recovery(
        plan=plan, judge=judge, skips=Skips(skip), engine=unused, saver=unused, tracker=Tracker(), report=print
    )
    engine = Steps(ALONE)
    pretend(settings, plan=plan, engine=engine, recovery=recovery, save=lambda step: None)
    left_out = {k for first, end in skip for k in range(first, end)}
    assert [k for step in engine.taken for k in step] == [k for k in range(1000) if k not in left_out][: 13 * 32]
    assert judge.seen == seen


def test_it_saves_by_steps_and_by_minutes(
    config: Callable[..., RunConfig], clock_of: Callable[[ModuleType], Callable[[float], None]]
) -> None:
    settings = config(*SHORT, "checkpoint.every=5", "checkpoint.minutes=1")
    later, saved = clock_of(loop), list[int]()
    loop.time.perf_counter = iter(range(10**6)).__next__  # type: ignore[assignment]
    recovery = SimpleNamespace(judge=Forgetful(), samples=lambda step: [range(step * 32, step * 32 + 32)])

    class Slow(Steps):
        def step(self, *what: Any, **how: Any) -> Any:
            later(25)
            return super().step(*what, **how)

    pretend(settings, plan=make_plan(settings), engine=Slow(ALONE), recovery=recovery, save=saved.append)
    # it is asked before a step whether to save after it: three steps are 75 s, and the fourth is on the way
    assert saved == [4, 5, 9, 10, 13]


def test_an_automatic_rate_is_the_plans(config: Callable[..., RunConfig]) -> None:
    settings = config(*SHORT, "schedule=wsd", "schedule.warmup_steps=2", "optimizer.lr=auto")
    recovery = SimpleNamespace(judge=Forgetful(), samples=lambda step: [range(step * 32, step * 32 + 32)])
    engine, plan = Steps(ALONE), make_plan(settings)
    pretend(settings, plan=plan, engine=engine, recovery=recovery, save=lambda step: None)
    assert engine.rates[:3] == pytest.approx([0.00234378, 0.00468756, 0.00468756], rel=1e-5)
    assert max(engine.rates) == plan.learning_rate
