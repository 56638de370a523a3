"""The arithmetic against a slow twin that walks the samples one by one, and the promises that it makes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b
from itertools import pairwise
from math import floor, isqrt, lcm
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pytest

from tinyllama.data.mixture import BLOCK, MOST_SOURCES, Mixture, Stage, least_samples
from tinyllama.data.permutation import permute

HALF = Fraction(1, 2)
ABC = {"a": 7, "b": 3.0, "c": 1.0}
TWENTY = {f"s{i}": 0.5 + i for i in range(20)}

MIXTURES: dict[str, list[Stage]] = {
    "one source": [Stage(None, {"only": 1.0})],
    "two": [Stage(None, {"web": 0.693584, "code": 0.306416})],
    "three": [Stage(None, ABC)],
    "rare": [Stage(None, {"rare": 0.0001, "b": 0.0099, "c": 0.09, "d": 0.3, "e": 0.6})],
    "equal": [Stage(None, {"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.2, "e": 0.2})],
    "odd": [Stage(None, {"a": 0.25, "b": 1 / 3, "c": 3e-1, "d": 123.456, "e": 77.7})],
    "steps": [Stage(1500, ABC), Stage(1, {"b": 1}), Stage(700, {"a": 1.0, "c": 0.1}), Stage(None, ABC)],
    "anneal": [Stage(3000, {"web": 0.9, "code": 0.1}), Stage(None, {"web": 0.25, "code": 0.75}, ramp=3333)],
    "swap": [Stage(100, {"a": 1, "b": 0}), Stage(5000, {"b": 1}, ramp=5000), Stage(None, {"a": 1}, ramp=1001)],
    "fade": [Stage(901, ABC), Stage(2401, {"c": 1, "d": 0.3}, ramp=1200), Stage(None, {"b": 2, "d": 5}, ramp=1025)],
    "shortest": [Stage(1, {"a": 1}), Stage(4, {"b": 1}, ramp=4), Stage(7, ABC, ramp=5), Stage(None, {"c": 1}, ramp=4)],
    "twenty": [Stage(171, TWENTY), Stage(900, {"s3": 1, "s4": 2}, ramp=684), Stage(None, TWENTY, ramp=1999)],
}


def names_of(stages: Sequence[Stage]) -> list[str]:
    return list(dict.fromkeys(name for stage in stages for name in stage.weights))


def mixture(stages: Sequence[Stage], *, seed: int = 0, windows: int = 37) -> Mixture:
    return Mixture(stages, windows={name: windows + 11 * i for i, name in enumerate(names_of(stages))}, seed=seed)


def rows(mixed: Mixture, k: range | np.ndarray) -> list[tuple[int, int, int]]:
    return list(zip(*(array.tolist() for array in mixed.locate(k)), strict=True))


class Segment(NamedTuple):
    start: int
    length: int
    first: list[Fraction]
    last: list[Fraction]
    slope: list[Fraction]
    step: int
    blocks: int

    def filler(self) -> int:
        return max(range(len(self.first)), key=lambda i: (min(self.first[i], self.last[i]), -i))

    def end(self, block: int) -> int:
        return self.length if block == self.blocks - 1 else self.step * (block + 1)

    def target(self, i: int, x: int) -> Fraction:
        return self.first[i] * x + self.slope[i] * x * x / 2

    def counts(self, x: int) -> list[int]:
        out = [floor(self.target(i, x) + HALF) for i in range(len(self.first))]
        out[self.filler()] += x - sum(out)
        return out

    def end_bound(self, i: int) -> Fraction:
        return Fraction(len(self.first) - 1, 2) if i == self.filler() else HALF

    def curve_bound(self, i: int, block: int) -> Fraction:
        size = self.end(block) - (self.end(block - 1) if block else 0)
        return abs(self.slope[i]) * size**2 / 8


def segments(stages: Sequence[Stage], *, samples: int, cut: int = 0) -> list[Segment]:
    """The segments as the docstring tells them, the last in whole blocks; `cut` moves where ramps are cut in two."""
    names, out, start = names_of(stages), list[Segment](), 0
    before: list[Fraction] = []
    for stage in stages:
        exact = [Fraction(Decimal(repr(stage.weights.get(name, 0)))) for name in names]
        after = [weight / sum(exact) for weight in exact]
        whole = stage.samples if stage.samples is not None else max(0, samples - start) + stage.ramp + 2 * BLOCK
        corners = [0, stage.ramp // 2 + cut, stage.ramp, whole] if stage.ramp else [0, whole]
        for begin, end in pairwise(corners):
            if begin == end:
                continue
            first, last = (
                [a + (b - a) * min(Fraction(at, stage.ramp), 1) for a, b in zip(before, after, strict=True)]
                if stage.ramp
                else after
                for at in (begin, end)
            )
            length, step = end - begin, BLOCK
            if first != last:
                step = min(BLOCK, max(2 * isqrt(length), 2 * len(names) * (len(names) - 1)))
            slope = [(b - a) / length for a, b in zip(first, last, strict=True)]
            blocks = max(1, length // step)
            if stage.samples is None and end == whole:
                length = blocks * step
            out.append(Segment(start + begin, length, first, last, slope, step, blocks))
        start, before = start + whole, after
    return out


def slow_turns(sizes: Sequence[int]) -> list[int]:
    """The sources of a block in order, by looking at each slot for the one that must soonest."""
    total, done, out = sum(sizes), [0] * len(sizes), []
    for slot in range(total):
        deadlines = []
        for i, count in enumerate(sizes):
            if done[i] < count and Fraction(done[i] * total, count) < slot + 1:
                deadlines.append((-(Fraction(-(done[i] + 1) * total, count).__floor__()), i))
        _, i = min(deadlines)
        done[i] += 1
        out.append(i)
    return out


def slow_permutation(index: int, *, size: int, key: str) -> int:
    """`permute`, one index at a time, in Python integers."""
    bits = max(2, (size - 1).bit_length())
    digest = blake2b(key.encode(), digest_size=64).digest()
    while True:
        widths = [bits // 2, bits - bits // 2]
        left, right = index >> widths[1], index % 2 ** widths[1]
        for turn in range(8):
            mixed = (right + int.from_bytes(digest[8 * turn : 8 * turn + 8], "little")) % 2**64
            mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
            left, right = right, (left ^ mixed ^ mixed >> 31) % 2 ** widths[0]
            widths.reverse()
        index = left << widths[1] | right
        if index < size:
            return index


def slow_mixture(
    stages: Sequence[Stage],
    *,
    samples: int,
    seed: int,
    windows: int = 37,
    cut: int = 0,
    rounding: Fraction = HALF,
) -> list[tuple[int, int, int]]:
    """The mixture by walking from sample 0 with a counter a source, adding up shares sample by sample."""
    names, out = names_of(stages), list[tuple[int, int, int]]()
    given = [0] * len(names)
    for segment in segments(stages, samples=samples, cut=cut):
        base, targets, x = given[:], [Fraction(0)] * len(names), 0
        for block in range(segment.blocks):
            start, end = x, segment.end(block)
            while x < end:
                for i, (share, slope) in enumerate(zip(segment.first, segment.slope, strict=True)):
                    targets[i] += share + slope * (x + HALF)
                x += 1
            ends = [count + floor(target + rounding) for count, target in zip(base, targets, strict=True)]
            ends[segment.filler()] += sum(base) + end - sum(ends)
            assert sum(ends) - sum(given) == end - start
            for i in slow_turns([b - a for a, b in zip(given, ends, strict=True)]):
                epoch, place = divmod(given[i], windows + 11 * i)
                window = slow_permutation(place, size=windows + 11 * i, key=f"{seed}/{names[i]}/{epoch}")
                out.append((i, epoch, window))
                given[i] += 1
            if len(out) >= samples:
                return out[:samples]
    raise AssertionError("the segments are too short")


@pytest.mark.parametrize("name", MIXTURES)
def test_arithmetic_is_enumeration(name: str) -> None:
    stages = MIXTURES[name]
    slow = slow_mixture(stages, samples=7 * BLOCK + 5, seed=3)
    assert rows(mixture(stages, seed=3), range(len(slow))) == slow
    mixed = mixture(stages, seed=3)
    for start, stop in ((0, 0), (0, 1), (1000, 1100), (BLOCK - 1, 4 * BLOCK + 1), (7 * BLOCK, 7 * BLOCK + 5)):
        assert rows(mixed, range(start, stop)) == slow[start:stop]
    assert rows(mixed, np.arange(len(slow))[::-7]) == slow[::-7]
    order = np.random.default_rng(0).permutation(len(slow))
    for part in np.split(order, [1, 3, 50, 2000]):
        assert rows(mixed, part) == [slow[k] for k in part.tolist()]
    assert all(rows(mixed, range(k, k + 1)) == slow[k : k + 1] for k in order[:300].tolist())


def test_a_wrong_ramp_is_another_mixture() -> None:
    stages = MIXTURES["anneal"]
    right = rows(mixture(stages), range(7 * BLOCK))

    def wrong(stages: Sequence[Stage] = stages, *, cut: int = 0, rounding: Fraction = HALF) -> bool:
        return slow_mixture(stages, samples=len(right), seed=0, cut=cut, rounding=rounding) != right

    assert not wrong()
    assert wrong(cut=1) and wrong(cut=-100)
    assert wrong(rounding=Fraction(0)) and wrong(rounding=Fraction(1))
    assert wrong([stages[0], Stage(None, {"web": 0.25, "code": 0.75}, ramp=3332)])
    assert wrong([stages[0], Stage(None, {"web": 0.25, "code": 0.75})])


@pytest.mark.parametrize("name", MIXTURES)
def test_counts_are_within_their_bounds(name: str) -> None:
    stages, samples = MIXTURES[name], 14 * BLOCK
    mixed = mixture(stages)
    source = mixed.locate(range(samples)).source
    counts = [np.concatenate([[0], np.cumsum(source == i)]).tolist() for i in range(len(mixed.names))]
    for segment in segments(stages, samples=samples):
        for i, count in enumerate(counts):
            # In units of 1 / scale, and so in integers.
            scale = lcm(segment.first[i].denominator, segment.slope[i].denominator * 2)
            first, half_slope, end_bound = segment.first[i] * scale, segment.slope[i] * scale / 2, segment.end_bound(i)
            assert first.denominator == half_slope.denominator == 1
            x = 0
            for block in range(segment.blocks):
                bound = (end_bound + 1 + segment.curve_bound(i, block)) * scale
                while x <= min(segment.end(block), samples - segment.start):
                    given = count[segment.start + x] - count[segment.start]
                    off = abs(given * scale - first.numerator * x - half_slope.numerator * x * x)
                    assert off < bound
                    assert x not in (0, segment.end(block)) or off <= end_bound * scale
                    x += 1
    for k in (0, 1, 101, 777, BLOCK, 5 * BLOCK + 3, samples):
        assert mixed.counts(k) == {name: count[k] for name, count in zip(mixed.names, counts, strict=True)}
        assert mixed.epochs(k) == {
            name: count[k] / (37 + 11 * i) for i, (name, count) in enumerate(zip(mixed.names, counts, strict=True))
        }


@pytest.mark.parametrize("sources", [2, 3, 5, 10, 20])
def test_the_curve_of_a_ramp_that_is_long_enough_adds_less_than_one(sources: int) -> None:
    enough = 2 * (sources * (sources - 1)) ** 2
    for ramp in (enough, enough + 1, 10**6 + 1):
        stages = [Stage(999, {"a": 1}), Stage(None, {"b": 1, **dict.fromkeys(map(str, range(sources - 2)), 0)}, ramp)]
        for segment in segments(stages, samples=0)[1:3]:
            for block in {*range(min(3, segment.blocks)), segment.blocks - 1}:
                assert max(segment.curve_bound(i, block) for i in range(sources)) < 1


def test_shares_follow_the_line_of_a_long_ramp() -> None:
    before, after = {"web": 0.9, "code": 0.1, "maths": 0}, {"web": 0.25, "code": 0, "maths": 0.75}
    start, ramp = 123_456, 3_000_001
    mixed = mixture([Stage(start, before), Stage(None, after, ramp=ramp)])
    for k in (0, start - 1):
        assert mixed.shares(k) == {name: Fraction(str(share)) for name, share in before.items()}
    for k in (start + ramp, 10**13):
        assert mixed.shares(k) == {name: Fraction(str(share)) for name, share in after.items()}
    assert mixed.shares(start + 1000)["maths"] == Fraction(3, 4) * 1000 / ramp
    draw = random.Random(0)
    for _ in range(100):
        a, b = sorted(draw.sample(range(start, start + ramp + 1), 2))
        counts = [mixed.counts(k) for k in (a, b)]
        for name in mixed.names:
            # The line's integral. a and b are off by less than 1 at a block's end, 1 inside it and 1 for the curve; if
            # they are in different halves of the ramp, the second starts off by 1.
            exact = (mixed.shares(a)[name] + mixed.shares(b)[name]) / 2 * (b - a)
            assert abs(counts[1][name] - counts[0][name] - exact) < 3 + 3 + 1


@pytest.mark.parametrize("k", [1_430_512 * BLOCK, 10**13 // 2048, 10**13, 10**13 + 321])
def test_arithmetic_holds_far_out(k: int) -> None:
    stages = [*MIXTURES["fade"][:2], Stage(10**9 + 7, ABC), Stage(None, {"b": 2, "d": 5.000001}, ramp=10**9 + 1)]
    names, windows = names_of(stages), [10**6, 2**32 + 5, 3, 2**41 - 1]
    mixed = Mixture(stages, windows=dict(zip(names, windows, strict=True)), seed=1)
    began = perf_counter()
    located = rows(mixed, range(k, k + 3000))
    assert perf_counter() - began < 1
    for at in (k, k + 3000):
        assert sum(mixed.counts(at).values()) == at
    # The same in Python's integers: segment by segment, then slot by slot.
    base = [0] * len(names)
    for segment in segments(stages, samples=k + 6000):
        if segment.start + segment.length > k:
            break
        base = [a + b for a, b in zip(base, segment.counts(segment.length), strict=True)]
    block = (k - segment.start) // segment.step
    slow = []
    for begin in range(segment.step * block, k - segment.start + 3000, segment.step):
        given, after = segment.counts(begin), segment.counts(begin + segment.step)
        for i in slow_turns([b - a for a, b in zip(given, after, strict=True)]):
            epoch, place = divmod(base[i] + given[i], windows[i])
            slow.append((i, epoch, slow_permutation(place, size=windows[i], key=f"1/{names[i]}/{epoch}")))
            given[i] += 1
    skip = k - segment.start - segment.step * block
    assert located == slow[skip : skip + 3000]


def test_counts_and_samples_agree_far_out() -> None:
    mixed = mixture(MIXTURES["rare"], windows=10**6)
    for k in (1_500_000_000, 1_500_000_000 - 1, 5 * 10**12 + 321):
        counts, after = mixed.counts(k), mixed.counts(k + 3000)
        assert all(abs(counts[name] - k * share) < 3 for name, share in mixed.shares(k).items())
        here = mixed.locate(range(k, k + 3000))
        for index, name in enumerate(mixed.names):
            assert (here.source == index).sum() == after[name] - counts[name]
            assert (here.epoch[here.source == index] >= counts[name] // (10**6 + 11 * index)).all()


@pytest.mark.parametrize("name", MIXTURES)
def test_every_window_comes_once_an_epoch(name: str) -> None:
    mixed, samples = mixture(MIXTURES[name]), 16 * BLOCK
    seen = Counter(rows(mixed, range(samples)))
    assert max(seen.values()) == 1
    windows = {(i, e): set[int]() for i, e, _ in seen}
    for i, e, window in seen:
        windows[i, e].add(window)
    for index, count in enumerate(mixed.counts(samples).values()):
        size = 37 + 11 * index
        for epoch in range(count // size):
            assert windows[index, epoch] == set(range(size))


def test_a_source_without_weight_never_comes() -> None:
    mixed = mixture(MIXTURES["fade"])
    absent = {"a": (901 + 1200, 20_000), "b": (901 + 1200, 901 + 2401), "c": (901 + 2401 + 1025, 20_000), "d": (0, 901)}
    source = mixed.locate(range(20_000)).source
    for index, name in enumerate(mixed.names):
        start, stop = absent[name]
        assert (source[start:stop] != index).all() and (source == index).any()


def shapes(sources: int) -> list[dict[str, float]]:
    """Weights that are hard on a filler: all alike, all but one alike, one alone, and at random with zeros."""
    draw, names = random.Random(sources), [str(i) for i in range(sources)]
    return [
        dict.fromkeys(names, 1.0),
        {name: float(i < sources - 1 or sources == 1) for i, name in enumerate(names)},
        {name: float(i == sources - 1) for i, name in enumerate(names)},
        {name: max(1e-9, draw.random() ** 4 - 0.1) for name in names},
    ]


@pytest.mark.parametrize("sources", range(1, MOST_SOURCES + 1))
def test_no_count_falls_from_the_least_lengths_on(sources: int) -> None:
    least = least_samples(sources)
    for first in shapes(sources):
        for length in {*range(least, least + 12), BLOCK - 1, 2 * BLOCK - 1, 2 * BLOCK + 1}:
            stages = [Stage(length, first)]
            # Blocks check that no source's turns are fewer than 0.
            counts = [
                mixture([*stages, Stage(None, first)]).counts(k) for k in range(0, length + 1, max(1, length // 5))
            ]
            assert all(a[name] <= b[name] for a, b in pairwise(counts) for name in a)
        for last in shapes(sources):
            for ramp in {*range(4 * least, 4 * least + 4), 1600, 5001}:
                mixed = mixture([Stage(least, first), Stage(None, last, ramp=ramp)])
                counts = [mixed.counts(k) for k in range(0, least + ramp + 1, max(1, min(90, ramp // 30)))]
                assert all(a[name] <= b[name] for a, b in pairwise(counts) for name in a)


def test_the_least_length_is_the_least() -> None:
    for sources in range(4, MOST_SOURCES + 1, 2):
        length = least_samples(sources) - 1
        # All but the filler rounded: more than there is.
        assert (sources - 1) * floor(Fraction(length, sources) + HALF) == length + 1


def test_epochs_sources_and_seeds_have_their_own_order() -> None:
    def order(seed: int, name: str, epoch: int) -> list[int]:
        mixed = Mixture([Stage(None, {name: 1.0})], windows={name: 500}, seed=seed)
        return mixed.locate(range(500 * epoch, 500 * (epoch + 1))).window.tolist()

    orders = [
        order(0, "a", 0),
        order(0, "a", 1),
        order(0, "a", 2),
        order(1, "a", 0),
        order(0, "b", 0),
        list(range(500)),
    ]
    assert all(sorted(one) == orders[-1] for one in orders)
    for i, one in enumerate(orders):
        for other in orders[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 12  # one is expected of unrelated orders


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 1000, 100_003])
def test_permutation_is_a_bijection(size: int) -> None:
    image = permute(np.arange(size), size=size, key=f"k{size}")
    assert (np.sort(image) == np.arange(size)).all()
    for index in (0, size // 2, size - 1):
        assert image[index] == slow_permutation(index, size=size, key=f"k{size}")


@pytest.mark.parametrize("size", [2**32, 2**32 + 1, 2**33 - 7, 10**13, 2**62 + 1])
def test_permutation_of_many_windows_is_exact(size: int) -> None:
    indices = sorted({0, 1, 2**31, 2**32 - 1, size // 3, size - 2, size - 1})
    image = permute(np.array(indices), size=size, key="far").tolist()
    assert image == [slow_permutation(index, size=size, key="far") for index in indices]
    assert len(set(image)) == len(indices)


def test_permutation_takes_any_size_and_favours_nothing() -> None:
    large = permute(np.arange(1000), size=2**40 + 1, key="x")
    assert len(set(large.tolist())) == 1000 and large.min() >= 0 and 2**39 < large.max() <= 2**40
    seen = Counter(tuple(permute(np.arange(4), size=4, key=str(i)).tolist()) for i in range(2400))
    # 24 orders, 100 each; six standard deviations of a binomial count.
    assert len(seen) == 24 and all(abs(count - 100) < 60 for count in seen.values())


FOUR = dict.fromkeys("abcd", 1)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (
            [Stage(None, {str(i): 1 for i in range(21)})],
            "the mixture has 21 sources; the most is 20: merge some or leave some out",
        ),
        (
            [Stage(9, ABC), Stage(None, {"a": 1, "b": -0.5})],
            "stage 2 gives source b weight -0.5; the least is 0, which leaves it out: raise it",
        ),
        ([Stage(None, {"a": 0, "b": 0.0})], "stage 1 gives every source weight 0: raise at least one"),
        (
            [Stage(100, ABC, ramp=10), Stage(None, ABC)],
            "stage 1 has a ramp of 10 samples and no stage before it to start from: make it 0",
        ),
        (
            [Stage(9, ABC), Stage(99, ABC, ramp=100), Stage(None, ABC)],
            "stage 2 has a ramp of 100 samples, which is longer than the stage's 99: shorten the ramp or lengthen the "
            "stage",
        ),
        (
            [Stage(9, FOUR), Stage(None, FOUR, ramp=11)],
            "stage 2 has a ramp of 11 samples; the least for 4 sources is 12: make it longer, or 0",
        ),
        (
            [Stage(2, FOUR), Stage(None, FOUR)],
            "stage 1 has 2 samples; the least for 4 sources is 3: make the stage longer",
        ),
        (
            [Stage(0, {"a": 1}), Stage(None, {"a": 1})],
            "stage 1 has 0 samples; the least for 1 sources is 1: make the stage longer",
        ),
        (
            [Stage(3, FOUR), Stage(14, FOUR, ramp=12), Stage(None, FOUR)],
            "stage 2 has 2 samples after its ramp; the least for 4 sources is 3: make the stage longer, or its ramp as "
            "long as the stage",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_mixed_is_refused(stages: list[Stage], message: str) -> None:
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        mixture(stages)
    assert str(refused.value) == message
