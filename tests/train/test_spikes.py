"""The judge of losses: a planted jump is caught, ordinary noise is not, and a run killed anywhere goes on alike.

False alarms in 1e5 steps at the default threshold of 10 and window of 100, measured over two seeds: none for Gaussian
noise of 0.1% and 3% of the loss, for falling and for rising curves. Noise of Student's t with 4 degrees has them where
it has its tail: a loss is 10 robust deviations above the median with probability 1.9e-4, so 18 to 24 where the noise's
scale is at least 1% of the loss, 1 to 2 at 0.5% and none at 0.2%, as a deviation is at least 1%. Never two in a row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from hashlib import sha256

import numpy as np
import pytest

from tinyllama.config.resilience import Spikes
from tinyllama.data.skips import Skips
from tinyllama.tracking.journal import finite
from tinyllama.train.spikes import Decision, Judge, SpikeError

STEPS = 100_000
DEFAULT = Spikes(threshold=10.0, window=100, max_skips=20, skip=())


def spikes(**changes: object) -> Spikes:
    return Spikes(**asdict(DEFAULT) | {"window": 8} | changes)  # type: ignore[arg-type]


def false_alarms(losses: np.ndarray, *, how: Spikes = DEFAULT) -> tuple[int, int]:
    """Losses above the ceiling, and those of them right after another."""
    judge, alarms, in_a_row, before = Judge(how), 0, 0, False
    for loss in losses.tolist():
        refused = loss > judge.ceiling()
        alarms, in_a_row = alarms + refused, in_a_row + (refused and before)
        before = refused
        if not refused:
            judge.accepted(loss)
    return alarms, in_a_row


NOISE = np.random.default_rng(3).standard_normal(STEPS)
AT = np.arange(STEPS)


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param(3 + 0.09 * NOISE, id="noise of 3%"),
        pytest.param(3 + 0.003 * NOISE, id="noise of 0.1%"),
        pytest.param(np.maximum(3, 9 - AT * 6 / 2000) + 0.06 * NOISE, id="a fall from 9 to 3 in 2,000 steps"),
        pytest.param(3 + AT * 3e-5 + 0.03 * NOISE, id="a rise from 3 to 6"),
    ],
)
def test_ordinary_losses_are_no_spikes(losses: np.ndarray) -> None:
    assert false_alarms(losses) == (0, 0)
    assert false_alarms(losses[:5000], how=spikes(threshold=0.05, window=100))[0] > 0, "the count can count"


@pytest.mark.parametrize(("scale", "least", "most"), [(0.09, 5, 40), (0.006, 0, 1)])
def test_heavy_tails_are_refused_as_often_as_they_should_be(scale: float, least: int, most: int) -> None:
    tails = np.random.default_rng(4).standard_t(4, STEPS)
    alarms, in_a_row = false_alarms(3 + scale * tails)
    assert least <= alarms <= most and in_a_row == 0
    assert np.sum(tails > 10 * 1.0982) == pytest.approx(19.5, abs=3 * math.sqrt(19.5)), "where t's tail is known"


@pytest.mark.parametrize("slope", [1e-3, 0.02, 1.0])
def test_a_steady_rise_passes_however_steep(slope: float) -> None:
    # the median lags by half a window's rise, a deviation is 1.48 quarters of it
    assert false_alarms(3 + slope * AT[:2000]) == (0, 0)


def test_a_planted_jump_is_caught_wherever_it_is() -> None:
    losses = 3 + 0.05 * NOISE[:1000]
    judge = Judge(DEFAULT)
    for number, loss in enumerate(losses.tolist()):
        if number >= DEFAULT.window:
            assert loss < judge.ceiling() < loss + 1
        judge.accepted(loss)


def test_the_ceiling_by_hand() -> None:
    judge = Judge(spikes(threshold=2.0), recent=[3.0, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0])
    assert judge.ceiling() == math.inf, "a loss is missing"
    judge.accepted(8.0)
    assert judge.ceiling() == pytest.approx(4.5 + 2 * 1.4826 * 2.0, rel=1e-15)
    judge.accepted(9.0)  # the 3.0 leaves
    assert judge.state() == [1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert judge.ceiling() == pytest.approx(5.5 + 2 * 1.4826 * 2.0, rel=1e-15)
    assert Judge(spikes(threshold=None), recent=judge.state()).ceiling() == math.inf
    assert Judge(spikes(), recent=[2.0] * 8).ceiling() == pytest.approx(2.0 * 1.1, rel=1e-15), "a deviation of 1%"
    assert Judge(spikes(), recent=[9.9, *[2.0] * 8]).ceiling() == pytest.approx(2.2), "the last of more"
    assert Judge(spikes(), recent=[*[2.0] * 5, 1e9, 1e9, 1e9]).ceiling() == pytest.approx(2.2), "three of 8"
    judge.reset()
    assert (judge.state(), judge.ceiling()) == ([], math.inf)
    with pytest.raises(AssertionError):
        judge.accepted(math.nan)


STEADY = [2.0] * 8
CHECKPOINTS = {10: 40, 20: 81, 30: 122}
"""Steps, and the first sample after each."""


def refuse(judge: Judge, step: int, *samples: range, loss: float = 9.0, grad_norm: float = 1.0) -> Decision:
    return judge.refused(step, loss=loss, grad_norm=grad_norm, samples=samples, checkpoints=CHECKPOINTS)


def test_first_the_samples_then_the_weights_then_the_checkpoint() -> None:
    judge = Judge(spikes(), recent=STEADY)
    first = refuse(judge, 33, range(140, 142), range(145, 147))
    assert (first.kind, first.samples, first.to) == ("skip", ((140, 142), (145, 147)), None)
    assert (first.step, first.loss, first.median) == (33, 9.0, 2.0) and first.ceiling == pytest.approx(2.2)
    second = refuse(judge, 33, range(147, 151))
    assert (second.kind, second.samples, second.to) == ("rollback", ((122, 151),), 30)
    judge.go_back([2.0, 1.9])
    assert judge.state() == [2.0, 1.9]
    # after the checkpoint is before the next one, but not on other weights than its own
    assert refuse(judge, 30, range(151, 155)).kind == "skip"
    again = refuse(judge, 30, range(155, 159))
    assert (again.kind, again.samples, again.to) == ("rollback", ((81, 159),), 20)
    assert refuse(judge, 20, range(159, 163)).kind == "skip", "another step is another suspicion"
    assert refuse(judge, 21, range(163, 167)).kind == "skip"


def test_a_checkpoint_that_fails_again_later_is_passed_over() -> None:
    judge = Judge(spikes(), recent=STEADY)
    assert [refuse(judge, 33, range(k, k + 4)).to for k in (140, 144)] == [None, 30]
    assert [refuse(judge, 35, range(k, k + 4)).to for k in (160, 164)] == [None, 20]
    assert [refuse(judge, 45, range(k, k + 4)).to for k in (200, 204)] == [None, 30], "a new one of step 30"


def test_weights_that_a_checkpoint_of_the_same_step_keeps_are_at_fault() -> None:
    judge = Judge(spikes(), recent=STEADY)
    assert [refuse(judge, 30, range(k, k + 4)).to for k in (122, 126)] == [None, 20]


def test_where_there_is_nothing_to_go_to_it_fails() -> None:
    judge = Judge(spikes(), recent=STEADY)
    refuse(judge, 10, range(40, 44))
    with pytest.raises(SpikeError) as failure:
        refuse(judge, 10, range(44, 48))
    assert str(failure.value) == (
        "step 10, samples 44 to 47: a loss of 9.0000 is above 2.2000, 10.0 deviations over 2.0000; others were refused "
        "too, so the weights are at fault, and there is no checkpoint left to go back to: lower optimizer.lr, look at "
        "the samples with task=inspect inspect.at_step=10, or save more often and keep more (checkpoint.every, "
        "checkpoint.keep)"
    )


@pytest.mark.parametrize(
    ("loss", "grad_norm", "said"),
    [(math.nan, math.nan, "the loss is nan;"), (math.inf, 1.0, "the loss is inf;"), (2.0, math.inf, "norm is inf;")],
)
def test_past_the_bound_it_fails(loss: float, grad_norm: float, said: str) -> None:
    judge = Judge(spikes(max_skips=3), recent=STEADY)
    for step in (31, 33, 33):
        refuse(judge, step, range(140, 144), loss=loss, grad_norm=grad_norm)
    rule = "the run has left samples out 3 times, and spikes.max_skips=3: lower .*, or raise spikes.max_skips"
    with pytest.raises(SpikeError, match=f"step 36, samples 1,140 to 1,143: .*{said} {rule}"):
        refuse(judge, 36, range(1140, 1144), loss=loss, grad_norm=grad_norm)
    with pytest.raises(SpikeError, match="left samples out 0 times"):
        refuse(Judge(spikes(max_skips=0)), 0, range(4))


def test_what_is_not_finite_is_treated_as_a_spike_before_there_is_a_ceiling() -> None:
    judge = Judge(spikes(threshold=None))
    first = refuse(judge, 12, range(48, 52), loss=math.nan, grad_norm=math.nan)
    assert (first.kind, first.ceiling) == ("skip", math.inf) and math.isnan(first.median)
    assert refuse(judge, 12, range(52, 56), loss=math.nan).to == 10
    for decision in (first, refuse(judge, 13, range(60, 64), loss=2.0, grad_norm=math.inf)):
        line = json.loads(json.dumps(finite({"time": 0.0, **asdict(decision)}), allow_nan=False))
        assert repr(Decision.of(line)) == repr(decision), "nan is not nan, but its repr is"


class Killed(BaseException):
    """The process is gone."""


@dataclass
class Disk:
    """What a killed process leaves behind."""

    checkpoints: dict[int, tuple[str, int | None, list[float]]] = field(default_factory=dict)
    """By step: the weights, at which step they were poisoned, the last losses."""
    journal: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class World:
    """Samples whose loss is high, and samples that spoil the weights: after so many steps all losses are high."""

    bad: frozenset[int] = frozenset()
    poison: frozenset[int] = frozenset()
    delay: int = 1


BATCH, EVERY, LAST = 4, 10, 60
NO_SKIPS = Skips()


def run(
    disk: Disk, world: World, *, tick: Callable[[], None] = lambda: None, skip: Skips = NO_SKIPS
) -> tuple[str, list[Decision], list[str]]:
    """A training loop as it should be, on weights that are a hash of what they learnt from, in order.

    tick is called wherever the process may die. Returns the weights, the decisions and what each engine step saw.
    """

    def numbers(pieces: Iterable[range]) -> set[int]:
        return {k for piece in pieces for k in piece}

    earlier = [Decision.of(json.loads(line)) for line in disk.journal]
    skips, seen = skip.adding(samples for decision in earlier for samples in decision.samples), []
    step = max(disk.checkpoints, default=0)
    weights, poisoned, recent = disk.checkpoints.get(step, ("", None, []))
    judge = Judge(spikes(), recent=recent, earlier=earlier)
    while step < LAST:
        if step == 40:
            judge.reset()
        pieces = skips.samples(range(step * BATCH, (step + 1) * BATCH))
        spoilt = poisoned is not None and step >= poisoned + world.delay
        loss = 3 + (7 if spoilt or numbers(pieces) & world.bad else 0) + (hash(tuple(pieces)) % 1000) * 1e-4
        seen.append(f"{step} {pieces}")
        tick()
        if not loss > judge.ceiling():
            judge.accepted(loss)
            weights = sha256(f"{weights} {pieces} {loss}".encode()).hexdigest()
            if poisoned is None and numbers(pieces) & world.poison:
                poisoned = step
            step += 1
            if step % EVERY == 0:
                disk.checkpoints[step] = weights, poisoned, judge.state()
                tick()
            continue
        places = {taken: skips.sample(taken * BATCH) for taken in disk.checkpoints}
        decision = judge.refused(step, loss=loss, grad_norm=1.0, samples=pieces, checkpoints=places)
        if decision.to is not None:
            # later ones go first: under the new skips they would be of other samples than they were trained on
            for later in sorted((taken for taken in disk.checkpoints if taken > decision.to), reverse=True):
                del disk.checkpoints[later]
                tick()
            step = decision.to
            weights, poisoned, recent = disk.checkpoints[step]
            judge.go_back(recent)
        disk.journal.append(json.dumps(finite(asdict(decision))))
        tick()
        skips = skips.adding(decision.samples)
    return weights, [Decision.of(json.loads(line)) for line in disk.journal], seen


WORLDS = {
    "nothing": (World(), []),
    "one batch": (World(bad=frozenset({50})), ["skip"]),
    "two batches apart": (World(bad=frozenset({50, 130})), ["skip", "skip"]),
    "the weights": (World(poison=frozenset({93})), ["skip", 20]),
    "a checkpoint": (World(poison=frozenset({119})), ["skip", 20]),
    "a checkpoint, seen later": (World(poison=frozenset({119}), delay=4), ["skip", 30, "skip", 20]),
    "all of it": (World(bad=frozenset({50, 233}), poison=frozenset({119}), delay=4), ["skip"] * 2 + [30, "skip", 20]),
}


@pytest.mark.parametrize("name", WORLDS)
def test_a_run_killed_anywhere_decides_and_learns_the_same(name: str) -> None:
    world, expected = WORLDS[name]
    ticks = 0

    def count() -> None:
        nonlocal ticks
        ticks += 1

    whole = run(Disk(), world, tick=count)
    decided = [decision.to or decision.kind for decision in whole[1]]
    assert decided[: len(expected)] == expected and len(decided) <= len(expected) + 1
    for death in range(ticks):
        disk, left = Disk(), death

        def die() -> None:
            nonlocal left
            if not left:
                raise Killed
            left -= 1

        with pytest.raises(Killed):
            run(disk, world, tick=die)
        assert run(disk, world)[:2] == whole[:2], f"killed at {death}"


@pytest.mark.parametrize("name", WORLDS)
def test_what_was_left_out_replays_the_run(name: str) -> None:
    weights, decisions, _ = run(Disk(), WORLDS[name][0])
    skip = Skips().adding(samples for decision in decisions for samples in decision.samples)
    replayed = run(Disk(), WORLDS[name][0], skip=skip)
    assert replayed[:2] == (weights, [])
    assert len(replayed[2]) == LAST
