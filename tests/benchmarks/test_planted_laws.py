"""The study of coverage in small: intervals of 90% hold what was planted about nine times in ten."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import planted_laws
from benchmarks.planted_laws import CASES, FAR, Planted, covered, far, losses, wrong_law

SEEDS = range(40, 60)
LEAST = 14
"""Of 20: at 90% fewer come once in 420 times."""


@pytest.mark.parametrize("planted", [CASES[0], CASES[3]], ids=lambda planted: planted.form.key)
def test_intervals_hold_what_was_planted(planted: Planted) -> None:
    counts = covered(planted, SEEDS, replicates=60)
    assert set(counts) == {*planted.form.names, FAR}
    assert min(counts.values()) >= LEAST, counts


def test_intervals_are_not_just_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not hold exponents that are a tenth off."""
    true = CASES[0]
    monkeypatch.setattr(planted_laws, "losses", lambda _, seed: losses(true, seed))
    off = replace(true, truth=(*true.truth[:3], true.truth[3] * 1.1, true.truth[4] * 1.1))
    counts = covered(off, range(8), replicates=60)
    assert counts["alpha"] <= 3 and counts["beta"] <= 3


def test_the_run_to_foretell_is_ten_times_beyond() -> None:
    points = CASES[-1].points
    beyond = far(points)
    assert beyond.flops == pytest.approx(10 * max(point.flops for point in points))
    assert beyond.epochs == 64


def test_the_wrong_law_says_less_of_what_was_held_out() -> None:
    errors = wrong_law(3, replicates=5)
    assert 2 * errors["repeated"] < min(errors["hoffmann"], errors["overtrained"])
