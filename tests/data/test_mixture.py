"""The arithmetic against a slow twin that walks the samples one by one, and the promises that it makes."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from fractions import Fraction
from hashlib import blake2b

import numpy as np
import pytest

from tinyllama.data.mixture import BLOCK, Mixture, permute

WEIGHTS = [
    {"only": 1.0},
    {"web": 0.693584, "code": 0.306416},
    {"text": 7.0, "code": 3.0, "maths": 1.0},
    {"rare": 0.001, "b": 0.009, "c": 0.09, "d": 0.3, "e": 0.6},
    {"a": 0.2, "b": 0.2, "c": 0.2, "d": 0.2, "e": 0.2},
    {"a": 0.25, "b": 1 / 3, "c": 3e-1, "d": 123.456, "e": 77.7},
]


def mixture(weights: dict[str, float], *, seed: int = 0, windows: int = 37) -> Mixture:
    return Mixture(weights, windows={name: windows + 11 * i for i, name in enumerate(weights)}, seed=seed)


def rows(mixed: Mixture, k: range) -> list[tuple[int, int, int]]:
    return list(zip(*(array.tolist() for array in mixed.locate(k)), strict=True))


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
    weights: dict[str, float], *, samples: int, seed: int, windows: int = 37
) -> list[tuple[int, int, int]]:
    """The mixture as its docstring tells it, by walking from sample 0 with a counter a source."""
    exact = [Fraction(Decimal(repr(weight))) for weight in weights.values()]
    shares = [weight / sum(exact) for weight in exact]
    given, out = [0] * len(shares), []
    for block in range(-(-samples // BLOCK)):
        targets = [share * BLOCK * (block + 1) for share in shares]
        ends = [target.numerator // target.denominator for target in targets]
        while sum(ends) < BLOCK * (block + 1):
            ends[max(range(len(ends)), key=lambda i: (targets[i] - ends[i], -i))] += 1
        start, size = given[:], [end - begin for end, begin in zip(ends, given, strict=True)]
        for slot in range(BLOCK):
            deadlines = []
            for i, count in enumerate(size):
                turn = given[i] - start[i]
                if turn < count and Fraction(turn * BLOCK, count) < slot + 1:
                    deadlines.append((-(Fraction(-(turn + 1) * BLOCK, count).__floor__()), i))
            _, i = min(deadlines)
            epoch, place = divmod(given[i], windows + 11 * i)
            key = f"{seed}/{list(weights)[i]}/{epoch}"
            out.append((i, epoch, slow_permutation(place, size=windows + 11 * i, key=key)))
            given[i] += 1
    return out[:samples]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_arithmetic_is_enumeration(weights: dict[str, float]) -> None:
    slow = slow_mixture(weights, samples=3 * BLOCK + 5, seed=3)
    mixed = mixture(weights, seed=3)
    assert rows(mixed, range(len(slow))) == slow
    for start, stop in ((0, 1), (1000, 1100), (BLOCK - 1, 2 * BLOCK + 1), (3 * BLOCK, 3 * BLOCK + 5)):
        assert rows(mixed, range(start, stop)) == slow[start:stop]
    backwards = mixed.locate(np.arange(len(slow))[::-7])
    assert list(zip(*(array.tolist() for array in backwards), strict=True)) == slow[::-7]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_shares_are_within_one_at_blocks_and_two_anywhere(weights: dict[str, float]) -> None:
    mixed, samples = mixture(weights), 20 * BLOCK
    source = mixed.locate(range(samples)).source
    for index, share in enumerate(mixed.shares):
        counts = np.concatenate([[0], np.cumsum(source == index)])
        # Exact: |count - k share| in units of 1 / denominator, in integers of any size.
        off = [abs(int(count) * share.denominator - k * share.numerator) for k, count in enumerate(counts)]
        assert max(off) < 2 * share.denominator
        assert max(off[::BLOCK]) < share.denominator
        name = mixed.names[index]
        for k in (0, 1, 777, BLOCK, 5 * BLOCK + 3, samples):
            assert mixed.counts(k)[name] == counts[k]
            assert mixed.epochs(k)[name] == counts[k] / (37 + 11 * index)


def test_shares_hold_where_the_run_ends_and_far_beyond() -> None:
    mixed = mixture(WEIGHTS[3], windows=10**6)
    for k in (1_500_000_000, 1_500_000_000 - 1, 5 * 10**12 + 321):
        counts = mixed.counts(k)
        assert sum(counts.values()) == k
        assert all(abs(counts[name] - k * share) < 2 for name, share in zip(mixed.names, mixed.shares, strict=True))
        here = mixed.locate(range(k, k + 3000))
        after = mixed.counts(k + 3000)
        for index, name in enumerate(mixed.names):
            assert (here.source == index).sum() == after[name] - counts[name]
            assert here.epoch[here.source == index].min() == counts[name] // (10**6 + 11 * index)


@pytest.mark.parametrize("weights", WEIGHTS[:4], ids=str)
def test_every_window_comes_once_an_epoch(weights: dict[str, float]) -> None:
    mixed = mixture(weights)
    seen = Counter(rows(mixed, range(16 * BLOCK)))
    assert max(seen.values()) == 1
    for index, name in enumerate(weights):
        whole, size = mixed.counts(16 * BLOCK)[name] // (37 + 11 * index), 37 + 11 * index
        for epoch in range(whole):
            assert {window for i, e, window in seen if (i, e) == (index, epoch)} == set(range(size))


def test_epochs_sources_and_seeds_have_their_own_order() -> None:
    def order(seed: int, name: str, epoch: int) -> list[int]:
        mixed = Mixture({name: 1.0}, windows={name: 500}, seed=seed)
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


def test_permutation_takes_any_size_and_favours_nothing() -> None:
    large = permute(np.arange(1000), size=2**40 + 1, key="x")
    assert len(set(large.tolist())) == 1000 and large.min() >= 0 and 2**39 < large.max() <= 2**40
    seen = Counter(tuple(permute(np.arange(4), size=4, key=str(i)).tolist()) for i in range(2400))
    # 24 orders, 100 each; six standard deviations of a binomial count.
    assert len(seen) == 24 and all(abs(count - 100) < 60 for count in seen.values())


def test_too_small_a_share_is_refused() -> None:
    mixture({"a": 1023.0, "b": 1.0})
    with pytest.raises(
        ValueError, match=r"source b has weight 1\.0, a share of 0\.000976; the least is 1/1024, .* raise"
    ):
        mixture({"a": 1023.1, "b": 1.0})
