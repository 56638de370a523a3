"""Which samples a run takes when it leaves some out: arithmetic over the ranges left out, with no other state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Skips:
    """Samples that a run leaves out of the endless order of its mixture; all later ones move up.

    A plan counts places: steps take 0, 1, 2 and so on without a gap. Place p is taken by the p-th sample (from 0) that
    is not left out. Leaving out more from the sample at place v on changes nothing before v, so that what a run has
    learnt up to there stays what it was.
    """

    ranges: tuple[tuple[int, int], ...] = ()
    """The sample numbers left out as [first, end), in order; no two overlap or touch."""

    def __post_init__(self) -> None:
        assert all(0 <= first < end for first, end in self.ranges), self.ranges
        assert all(a[1] < b[0] for a, b in pairwise(self.ranges)), self.ranges

    def samples(self, places: range) -> list[range]:
        """The numbers of the samples at these places: in order, as few ranges as there can be."""
        assert places.step == 1 and places.start >= 0
        found, at, left = [], places.start, len(places)
        for first, end in self.ranges:
            if at < first:
                taken = min(left, first - at)
                if taken:
                    found.append(range(at, at + taken))
                left -= taken
                at = first
            at += end - first
        return [*found, range(at, at + left)] if left else found

    def sample(self, place: int) -> int:
        """The number of the sample at one place."""
        return self.samples(range(place, place + 1))[0].start

    def adding(self, ranges: Iterable[tuple[int, int]]) -> Skips:
        """These and more, given as [first, end) of sample numbers in any order, some of them left out already or not.

        What overlaps or touches is joined.
        """
        joined: list[tuple[int, int]] = []
        for first, end in sorted([*self.ranges, *ranges]):
            if joined and first <= joined[-1][1]:
                joined[-1] = (joined[-1][0], max(joined[-1][1], end))
            else:
                joined.append((first, end))
        return Skips(tuple(joined))
