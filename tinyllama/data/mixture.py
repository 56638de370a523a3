"""Which window of which source sample k of a mixture is: arithmetic over (weights, seed, k), with no state.

Weights are exact rationals, w_i of source i. Samples come in blocks of 1,024. After b blocks source i has had the
largest-remainder apportionment of the targets 1024 b w_i, which is within one sample of its target; inside a block the
sources take turns by earliest deadline (Pfair: Baruah et al. 1996), which adds less than one. So a source's count is
within one sample of its share at every block boundary and within two anywhere, however long the run.

The j-th sample of a source is window permutation(seed, source, j // windows)(j % windows): each window once an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

BLOCK = 1024
_ROUNDS = 8


class Samples(NamedTuple):
    """Where samples come from, as int64 arrays of one length."""

    source: np.ndarray
    """Position of the source in `Mixture.names`."""
    epoch: np.ndarray
    """Times that the source had been gone through whole before."""
    window: np.ndarray
    """Window of the source, from 0."""


class Mixture:
    """An endless, ordered sequence of samples; any part of it is found in time that does not depend on where it is."""

    def __init__(self, weights: Mapping[str, float], *, windows: Mapping[str, int], seed: int) -> None:
        """Takes relative weights in order and each source's windows.

        Raises ValueError where a source's share is below 1/1024: it could not have a place in every block.
        """
        self.names = tuple(weights)
        """The sources, in order."""
        exact = [Fraction(Decimal(repr(weight))) for weight in weights.values()]
        self.shares = tuple(weight / sum(exact) for weight in exact)
        """Each source's exact share of the samples."""
        for name, share in zip(self.names, self.shares, strict=True):
            if share < Fraction(1, BLOCK):
                raise ValueError(
                    f"source {name} has weight {weights[name]!r}, a share of {float(share):.3g}; the least is "
                    f"1/{BLOCK}, one sample a block: raise its weight or leave it out"
                )
            assert windows[name] >= 1
        self._windows = tuple(windows[name] for name in self.names)
        self._seed = seed

    def locate(self, k: np.ndarray | range) -> Samples:
        """Where the samples with these indices come from, in the order given."""
        indices = np.asarray(k, dtype=np.int64)
        source, rank = np.empty_like(indices), np.empty_like(indices)
        blocks = indices // BLOCK
        for block in np.unique(blocks).tolist():
            here = blocks == block
            before = self._counts_at(block)
            after = self._counts_at(block + 1)
            order, turn = _turns(tuple(b - a for a, b in zip(before, after, strict=True)))
            place = indices[here] - block * BLOCK
            source[here] = order[place]
            rank[here] = np.array(before, dtype=np.int64)[order[place]] + turn[place]
        size = np.array(self._windows, dtype=np.int64)[source]
        epoch, window = np.divmod(rank, size)
        for index, turn_of in np.unique(np.stack([source, epoch]), axis=1).T.tolist():
            here = (source == index) & (epoch == turn_of)
            key = f"{self._seed}/{self.names[index]}/{turn_of}"
            window[here] = permute(window[here], size=self._windows[index], key=key)
        return Samples(source, epoch, window)

    def counts(self, k: int) -> dict[str, int]:
        """How many of the first k samples each source gives."""
        block, place = divmod(k, BLOCK)
        before, after = self._counts_at(block), self._counts_at(block + 1)
        order, _ = _turns(tuple(b - a for a, b in zip(before, after, strict=True)))
        inside = np.bincount(order[:place], minlength=len(self.names)).tolist()
        return {name: a + b for name, a, b in zip(self.names, before, inside, strict=True)}

    def epochs(self, k: int) -> dict[str, float]:
        """How many times the first k samples go through each source."""
        return {name: count / size for (name, count), size in zip(self.counts(k).items(), self._windows, strict=True)}

    def _counts_at(self, block: int) -> list[int]:
        """Each source's samples in the first blocks: its target's floor, and one more for the largest remainders."""
        targets = [BLOCK * block * share for share in self.shares]
        counts = [int(target) for target in targets]
        by_remainder = sorted(range(len(counts)), key=lambda i: (counts[i] - targets[i], i))
        for i in by_remainder[: BLOCK * block - sum(counts)]:
            counts[i] += 1
        return counts


@lru_cache(maxsize=1024)
def _turns(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The order of the sources within a block, and for each place how often its source came before it; both [1024].

    Source i's n-th turn may come from slot floor(1024 n / c_i) and must by ceil(1024 (n + 1) / c_i). Of the turns that
    may come the one that must soonest does, which on one processor meets all deadlines: a source's count after t slots
    differs from t c_i / 1024 by less than one.
    """
    assert sum(counts) == BLOCK and min(counts) >= 0
    done = [0] * len(counts)
    order, turn = np.empty(BLOCK, dtype=np.int64), np.empty(BLOCK, dtype=np.int64)
    for slot in range(BLOCK):
        ready = (i for i, count in enumerate(counts) if done[i] < count and done[i] * BLOCK // count <= slot)
        chosen = min(ready, key=lambda i: -(-(done[i] + 1) * BLOCK // counts[i]))
        order[slot], turn[slot] = chosen, done[chosen]
        done[chosen] += 1
    return order, turn


def permute(index: np.ndarray, *, size: int, key: str) -> np.ndarray:
    """Where a pseudo-random bijection of 0 .. size - 1 takes each index; int64 in and out.

    A Feistel network over the next power of two, walked until it lands inside (Black and Rogaway 2002): no table, so
    the order of a billion windows costs nothing to set up. Not for cryptography.
    """
    assert size >= 1
    bits = max(2, (size - 1).bit_length())
    keys = np.frombuffer(blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), dtype="<u8").tolist()
    out = _feistel(index.astype(np.uint64), bits=bits, keys=keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], bits=bits, keys=keys)
    return out.astype(np.int64)


def _feistel(value: np.ndarray, *, bits: int, keys: Sequence[int]) -> np.ndarray:
    """A bijection of `bits`-bit numbers, uint64. The halves differ by a bit where bits is odd and swap each round."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = value >> np.uint64(right_bits), value & np.uint64((1 << right_bits) - 1)
    for key in keys:
        # The finaliser of SplitMix64 (Steele et al. 2014), which spreads every bit of the input over the output.
        mixed = right + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        left, right = right, left ^ (mixed & np.uint64((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right
