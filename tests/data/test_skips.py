"""What a run leaves out: against enumeration, and that what was learnt before a skip stays as it was."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count, islice, pairwise
from random import Random

import pytest

from tinyllama.data.skips import Skips

PLACES = 120


def enumerated(left_out: set[int], places: range) -> list[int]:
    """The slow twin: go through all samples and drop those that are left out."""
    return list(islice((k for k in count() if k not in left_out), places.start, places.stop))


def numbers(pieces: list[range]) -> list[int]:
    return list(chain.from_iterable(pieces))


def drawn(random: Random, *, most: int = 6, start: int = 0) -> list[tuple[int, int]]:
    """Ranges in any order, some of which overlap, touch or come twice."""
    firsts = [start + random.randrange(100) for _ in range(random.randint(0, most))]
    found = [(first, first + random.randint(1, 12)) for first in firsts]
    return found + found[: random.randint(0, 1)]


def cases() -> Iterator[tuple[Random, list[tuple[int, int]], Skips]]:
    for seed in range(400):
        random = Random(seed)
        ranges = drawn(random)
        yield random, ranges, Skips().adding(ranges)


def samples_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {k for first, end in ranges for k in range(first, end)}


def test_places_are_the_samples_that_are_not_left_out() -> None:
    for random, ranges, skips in cases():
        first = random.randrange(PLACES)
        places = range(first, random.randint(first, PLACES))
        pieces = skips.samples(places)
        assert numbers(pieces) == enumerated(samples_of(ranges), places)
        assert all(pieces) and all(a.stop < b.start for a, b in pairwise(pieces)), "as few pieces as there can be"
        if places:
            assert skips.sample(first) == pieces[0].start


def test_each_set_has_one_form_however_it_was_made() -> None:
    for random, ranges, skips in cases():
        assert samples_of(list(skips.ranges)) == samples_of(ranges)
        assert all(a[1] < b[0] for a, b in pairwise(skips.ranges))
        one_by_one = Skips()
        for one in random.sample(ranges, len(ranges)):
            one_by_one = one_by_one.adding([one])
        assert one_by_one == skips == Skips(skips.ranges).adding(ranges)


def test_what_is_left_out_from_a_place_on_changes_nothing_before_it() -> None:
    changed = 0
    for random, _, skips in cases():
        place = random.randrange(60)
        start = skips.sample(place)
        more = skips.adding([(start, start + 1), *drawn(random, start=start)])
        assert numbers(more.samples(range(place))) == numbers(skips.samples(range(place)))
        assert more.sample(place) > start
        if place:  # one sample sooner and the last place before it is another
            changed += 1
            sooner = skips.adding([(skips.sample(place - 1), start + 1)])
            assert numbers(sooner.samples(range(place))) != numbers(skips.samples(range(place)))
    assert changed > 300


def test_steps_take_every_sample_once_and_none_that_is_left_out() -> None:
    skips = Skips(((0, 5), (30, 33), (64, 128)))
    steps = [numbers(skips.samples(range(step * 32, (step + 1) * 32))) for step in range(5)]
    assert [len(step) for step in steps] == [32] * 5
    assert numbers([range(5, 30), range(33, 64), range(128, 232)]) == list(chain.from_iterable(steps))


def test_far_places_are_found_at_once() -> None:
    skips = Skips(((7, 10**12), (10**12 + 5, 10**12 + 6)))
    assert skips.samples(range(5, 15)) == [range(5, 7), range(10**12, 10**12 + 5), range(10**12 + 6, 10**12 + 9)]
    assert skips.samples(range(3, 3)) == []
    assert Skips().samples(range(10**15, 10**15 + 4)) == [range(10**15, 10**15 + 4)]


@pytest.mark.parametrize("ranges", [((5, 5),), ((-1, 2),), ((3, 4), (1, 2)), ((1, 3), (3, 4)), ((1, 4), (2, 6))])
def test_another_form_is_no_form(ranges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(AssertionError):
        Skips(ranges)
