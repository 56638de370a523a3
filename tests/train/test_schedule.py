"""The learning rate: its corners by hand, and that the plateau does not know how long the run is."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from tinyllama.config.schema import Schedule
from tinyllama.train.schedule import learning_rate

COSINE = Schedule(name="cosine", warmup_steps=20, min_ratio=0.1, decay_fraction=None)
WSD = Schedule(name="wsd", warmup_steps=20, min_ratio=0.1, decay_fraction=0.2)
PEAK = 4e-4
BOTH = pytest.mark.parametrize("schedule", [COSINE, WSD], ids=lambda schedule: schedule.name)


def rates(schedule: Schedule, steps: int, *, upto: int | None = None) -> list[float]:
    """The rates of the run's steps, and of the one after the last, which is not taken."""
    return [learning_rate(step, steps=steps, peak=PEAK, schedule=schedule) for step in range(upto or steps + 1)]


@BOTH
def test_warmup_rises_by_equal_parts_to_the_peak_itself(schedule: Schedule) -> None:
    rising = rates(schedule, 220, upto=20)
    assert rising == pytest.approx([PEAK * i / 20 for i in range(1, 21)], rel=1e-15)
    assert rising[0] > 0
    assert rising[-1] == PEAK == learning_rate(20, steps=220, peak=PEAK, schedule=schedule)


@pytest.mark.parametrize("warmup_steps", [1, 7, 13, 100, 2000])
@pytest.mark.parametrize("peak", [1e-4, 4e-4, 0.1])
def test_no_rate_is_above_the_peak(warmup_steps: int, peak: float) -> None:
    schedule = Schedule(name="cosine", warmup_steps=warmup_steps, min_ratio=0.1, decay_fraction=None)
    every = [learning_rate(step, steps=2500, peak=peak, schedule=schedule) for step in range(2500)]
    # to the bit: 1e-4 * 13 / 13 is one ulp above 1e-4
    assert max(every) == peak == every[warmup_steps - 1]


@BOTH
def test_without_a_warmup_it_starts_at_the_peak(schedule: Schedule) -> None:
    bare = Schedule(
        name=schedule.name, warmup_steps=0, min_ratio=schedule.min_ratio, decay_fraction=schedule.decay_fraction
    )
    assert rates(bare, 100)[0] == PEAK


def test_cosine_by_hand() -> None:
    falling = rates(COSINE, 220)[20:]
    assert falling[0] == PEAK
    # a quarter, half, three quarters and all of the way from 1 to 0.1
    quarter = 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2
    expected = [quarter * PEAK, 0.55 * PEAK, (1.1 - quarter) * PEAK, 0.1 * PEAK]
    assert [falling[i] for i in (50, 100, 150, 200)] == pytest.approx(expected, rel=1e-12)
    with pytest.raises(AssertionError):
        assert falling[101] == pytest.approx(0.55 * PEAK, rel=1e-12)


def test_wsd_by_hand() -> None:
    every = rates(WSD, 200)
    assert set(every[19:161]) == {PEAK}, "the fall of the last 40 steps begins at step 160, at the peak"
    assert every[160:] == pytest.approx([PEAK * (1 - 0.9 * i / 40) for i in range(41)], rel=1e-12)
    assert every[161] < PEAK


def test_wsd_shares_its_trunk_whatever_the_steps() -> None:
    short, long = rates(WSD, 200), rates(WSD, 1_000_000, upto=200)
    assert short[:161] == long[:161]
    assert short[161] != long[161]
    assert rates(COSINE, 200)[21] != rates(COSINE, 400)[21], "cosine has none to share"


@BOTH
@pytest.mark.parametrize("min_ratio", [0.0, 0.1, 1.0])
def test_it_never_rises_again_and_ends_at_its_floor(schedule: Schedule, min_ratio: float) -> None:
    floored = Schedule(name=schedule.name, warmup_steps=20, min_ratio=min_ratio, decay_fraction=schedule.decay_fraction)
    for steps in (30, 200, 1999):
        every = rates(floored, steps)
        assert all(later <= earlier for earlier, later in pairwise(every[19:]))
        assert every[-1] == pytest.approx(min_ratio * PEAK, rel=1e-12, abs=1e-18)
        assert min(every[19:-1]) >= min_ratio * PEAK * (1 - 1e-12)
        if min_ratio < 1:
            assert every[-2] > every[-1], "the last step that is taken still learns"


@BOTH
def test_a_rate_depends_on_its_step_alone(schedule: Schedule) -> None:
    forward = rates(schedule, 100)
    backward = [learning_rate(step, steps=100, peak=PEAK, schedule=schedule) for step in reversed(range(101))]
    assert forward == backward[::-1]
    doubled = [learning_rate(step, steps=100, peak=2 * PEAK, schedule=schedule) for step in range(101)]
    assert doubled == [2 * rate for rate in forward]
