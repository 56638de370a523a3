"""Which window of which source sample k of a mixture is: arithmetic over (stages, seed, k), with no state.

The samples are cut into segments: a stage's constant stretch, or one half of its ramp. In a segment of n sources the
shares go in a line from a_i to b_i over L samples, and x samples in, source i's target is a_i x + (b_i - a_i) x^2 / 2L,
an exact rational. One source, the filler, is chosen for a share that is large at both ends. Every other source's count
is its target rounded, the filler's is the rest. Counts are worked out at the ends of blocks; inside a block of S
samples the sources take turns by earliest deadline (Pfair: Baruah et al. 1996). So, wherever in the segment and however
long it is, a count is off its target by

- at most 1/2 at the ends of blocks, the filler's at most (n - 1) / 2,
- less than one more inside a block for the turns, and
- in a ramp at most |b_i - a_i| S^2 / 8L more inside a block, where the target curves and the turns do not. This is less
  than one in ramps of 2 (n (n - 1))^2 samples and longer, as short ramps have short blocks.

The next segment's targets start from the whole counts that this one ends with. The j-th sample of a source is window
permutation(seed, source, j // windows)(j % windows): each window once an epoch, whatever the stages. Of a source that
is not taken whole, the windows are the first of one permutation more, of all it has, that no seed changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from heapq import heappop, heappush
from math import floor, isqrt
from typing import NamedTuple

import numpy as np

from tinyllama.data.permutation import permute

BLOCK = 1024
MOST_SOURCES = 20


class Samples(NamedTuple):
    """Where samples come from, as int64 arrays of one length."""

    source: np.ndarray
    """Position of the source in `Mixture.names`."""
    epoch: np.ndarray
    """Times that the source had been gone through whole before."""
    window: np.ndarray
    """Window of the source, from 0."""


class Stage(NamedTuple):
    """A stretch of samples with weights of its own."""

    samples: int | None
    """Its length, its ramp included; None for the last, which is endless."""
    weights: Mapping[str, float | int]
    """Relative; a source that is not named has weight 0."""
    ramp: int = 0
    """Samples at its start over which the shares go in a line from the stage before's to its own."""


def least_samples(sources: int) -> int:
    """The least length of a stretch of constant weights with this many sources; a ramp takes four times as many."""
    # The filler's count must never fall. Its end shares: the smaller end shares of n sources add up to 1 in a constant
    # segment. In half a ramp of R samples each is at least R // 2 / R (about 1/2) of the share at the ramp's outer end,
    # so they add up to that much. The filler's is the largest, and so at least 1 / n, or R // 2 / R / n.
    # - A segment's first block: each other source is rounded up by at most 1/2, so the filler's count is at least its
    #   target less (n - 1) / 2. Being whole, it is not below 0 if the target is above (n - 3) / 2. In L constant
    #   samples the target is at least L / n, enough from L > n (n - 3) / 2 on; in half a ramp it is at least
    #   R // 2 / 2n, enough from R // 2 > n (n - 3) on. For n equal weights, n even, L = n (n - 3) / 2 would give -1.
    # - A later block: each other count gains less than its target does and one more, so the filler's gains more than
    #   its target does less (n - 1). Being whole, that is not below 0 if its target gains n - 2, and it gains at least
    #   BLOCK / n, or (n - 1) (1 - 1 / R) as a ramp's blocks have at least 2n (n - 1) samples.
    return max(1, sources * (sources - 3) // 2 + 1)


class Mixture:
    """An endless, ordered sequence of samples; any part of it is found in time that does not depend on where it is."""

    def __init__(
        self, stages: Sequence[Stage], *, windows: Mapping[str, int], seed: int, taken: Mapping[str, int] | None = None
    ) -> None:
        """Takes the stages in order, each source's windows, and how many are taken where that is not all of them.

        Raises ValueError for weights that give no shares, for stages and ramps that are too short, for a ramp that is
        longer than its stage or has no stage before it, and for more than `MOST_SOURCES` sources.
        """
        self.names = tuple(windows)
        """The sources, in order."""
        if len(self.names) > MOST_SOURCES:
            says = f"the mixture has {len(self.names)} sources; the most is {MOST_SOURCES}"
            raise ValueError(f"{says}: merge some or leave some out")
        assert stages and all((stage.samples is None) == (stage is stages[-1]) for stage in stages)
        self._all = tuple(windows.values())
        self._windows = tuple((taken or {}).get(name, count) for name, count in windows.items())
        assert all(1 <= here <= most for here, most in zip(self._windows, self._all, strict=True))
        self._seed = seed
        self._segments: list[_Segment] = []
        shares: tuple[Fraction, ...] = ()
        for number, stage in enumerate(stages, 1):
            _check_lengths(stage, number=number, sources=len(self.names))
            before, shares = shares, self._shares_of(stage, number=number)
            if stage.ramp:
                half = stage.ramp // 2
                middle = tuple(a + (b - a) * Fraction(half, stage.ramp) for a, b in zip(before, shares, strict=True))
                self._append(half, first=before, last=middle)
                self._append(stage.ramp - half, first=middle, last=shares)
            if stage.samples is None:
                self._append(None, first=shares, last=shares)
            elif stage.samples > stage.ramp:
                self._append(stage.samples - stage.ramp, first=shares, last=shares)
        self._starts = [segment.start for segment in self._segments]
        # One step's samples lie in few blocks, and the next step's beside them.
        self._block = lru_cache(maxsize=64)(self._work_out)

    def locate(self, k: np.ndarray | range) -> Samples:
        """Where the samples with these indices come from, in the order given."""
        if isinstance(k, range) and k.step == 1 and k:
            return self._run(k.start, k.stop)
        indices = np.asarray(k, dtype=np.int64)
        out = np.empty((3, indices.size), dtype=np.int64)
        pending = indices
        while pending.size:
            block = self._block(*self._place(int(pending.min())))
            here = (indices >= block.start) & (indices < block.stop)
            out[:, here] = block.samples[:, indices[here] - block.start]
            pending = pending[pending >= block.stop]
        return Samples(*out)

    def _run(self, first: int, stop: int) -> Samples:
        """Where the samples of a range come from: slices of blocks, as a micro-batch is read in less than the rest."""
        parts = []
        while first < stop:
            block = self._block(*self._place(first))
            parts.append(block.samples[:, first - block.start : stop - block.start])
            first = block.stop
        return Samples(*(parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)))

    def shares(self, k: int) -> dict[str, Fraction]:
        """Each source's exact share of the samples at sample k."""
        segment = self._segments[self._place(k)[0]]
        return dict(zip(self.names, segment.shares_at(k - segment.start), strict=True))

    def counts(self, k: int) -> dict[str, int]:
        """How many of the first k samples each source gives."""
        block = self._block(*self._place(k))
        inside = np.bincount(block.samples[0, : k - block.start], minlength=len(self.names)).tolist()
        return {name: a + b for name, a, b in zip(self.names, block.before, inside, strict=True)}

    def epochs(self, k: int) -> dict[str, float]:
        """How many times the first k samples go through each source."""
        return {name: count / size for (name, count), size in zip(self.counts(k).items(), self._windows, strict=True)}

    def _shares_of(self, stage: Stage, *, number: int) -> tuple[Fraction, ...]:
        """A stage's exact shares."""
        assert set(stage.weights) <= set(self.names)
        for name, weight in stage.weights.items():
            if not weight >= 0:
                says = f"stage {number} gives source {name} weight {weight!r}; the least is 0, which leaves it out"
                raise ValueError(f"{says}: raise it")
        exact = [Fraction(Decimal(repr(stage.weights.get(name, 0)))) for name in self.names]
        if not any(exact):
            raise ValueError(f"stage {number} gives every source weight 0: raise at least one")
        return tuple(weight / sum(exact) for weight in exact)

    def _append(self, length: int | None, *, first: tuple[Fraction, ...], last: tuple[Fraction, ...]) -> None:
        """Adds the segment that begins where the last one ends."""
        start, before = 0, (0,) * len(self.names)
        if self._segments:
            previous = self._segments[-1]
            assert previous.length is not None
            start, before = previous.start + previous.length, previous.counts_at(previous.length)
        slope = tuple((b - a) / length if length is not None else Fraction(0) for a, b in zip(first, last, strict=True))
        filler = max(range(len(first)), key=lambda i: min(first[i], last[i]))
        self._segments.append(_Segment(start, length, before, first, slope, filler))

    def _place(self, k: int) -> tuple[int, int]:
        """The segment of sample k, and the block within it."""
        index = bisect_right(self._starts, k) - 1
        segment = self._segments[index]
        return index, segment.block_of(k - segment.start)

    def _work_out(self, index: int, block: int) -> _Block:
        """A segment's block, sample by sample."""
        segment = self._segments[index]
        begin, end = segment.bounds(block)
        before, after = segment.counts_at(begin), segment.counts_at(end)
        source, number = _turns(tuple(b - a for a, b in zip(before, after, strict=True)))
        rank = np.array(before, dtype=np.int64)[source] + number
        epoch, window = np.divmod(rank, np.array(self._windows, dtype=np.int64)[source])
        for index in np.unique(source).tolist():
            mine = np.flatnonzero(source == index)
            epochs = epoch[mine]
            for turn in np.unique(epochs).tolist():
                here = mine[epochs == turn]
                key = f"{self._seed}/{self.names[index]}/{turn}"
                window[here] = permute(window[here], size=self._windows[index], key=key)
            if self._windows[index] < self._all[index]:
                window[mine] = permute(window[mine], size=self._all[index], key=f"{self.names[index]}/taken")
        return _Block(segment.start + begin, segment.start + end, before, np.stack((source, epoch, window)))


class _Block(NamedTuple):
    """Samples `start` to `stop`."""

    start: int
    stop: int
    before: tuple[int, ...]
    """Each source's samples before it."""
    samples: np.ndarray
    """The source, epoch and window of each, int64 [3, samples]; a thousand permuted at once take as long as a few."""


class _Segment(NamedTuple):
    """Samples over which the shares go in a line, or stay."""

    start: int
    length: int | None
    """None if endless."""
    before: tuple[int, ...]
    """Each source's samples before it."""
    first: tuple[Fraction, ...]
    """Each source's share at its start."""
    slope: tuple[Fraction, ...]
    """What the share changes by from one sample to the next."""
    filler: int
    """The source that takes what the others leave."""

    @property
    def step(self) -> int:
        """The length of its blocks; the last has the remainder as well."""
        if self.length is None or not any(self.slope):
            return BLOCK
        n = len(self.first)
        return min(BLOCK, max(2 * isqrt(self.length), 2 * n * (n - 1)))

    def block_of(self, x: int) -> int:
        """The block of sample x of the segment."""
        block = x // self.step
        return block if self.length is None else min(block, max(1, self.length // self.step) - 1)

    def bounds(self, block: int) -> tuple[int, int]:
        """Where a block begins and ends, from the segment's start."""
        begin, end = block * self.step, (block + 1) * self.step
        return begin, end if self.length is None or end + self.step <= self.length else self.length

    def shares_at(self, x: int) -> tuple[Fraction, ...]:
        """Each source's share at sample x of the segment."""
        return tuple(a + slope * x for a, slope in zip(self.first, self.slope, strict=True))

    def counts_at(self, x: int) -> tuple[int, ...]:
        """Each source's samples before sample x of the segment, which is the end of a block."""
        inside = [
            floor(a * x + slope * x * x / 2 + Fraction(1, 2)) for a, slope in zip(self.first, self.slope, strict=True)
        ]
        inside[self.filler] += x - sum(inside)
        return tuple(a + b for a, b in zip(self.before, inside, strict=True))


def _check_lengths(stage: Stage, *, number: int, sources: int) -> None:
    """Raises ValueError where a stage or its ramp is too short, or its ramp can not be."""
    least, rest = least_samples(sources), (stage.samples or 0) - stage.ramp
    if stage.ramp and number == 1:
        raise ValueError(f"stage 1 has a ramp of {stage.ramp} samples and no stage before it to start from: make it 0")
    if stage.ramp and stage.ramp < 4 * least:
        says = f"stage {number} has a ramp of {stage.ramp} samples; the least for {sources} sources is {4 * least}"
        raise ValueError(f"{says}: make it longer, or 0")
    if stage.samples is None:
        return
    if stage.ramp > stage.samples:
        raise ValueError(
            f"stage {number} has a ramp of {stage.ramp} samples, which is longer than the stage's {stage.samples}: "
            "shorten the ramp or lengthen the stage"
        )
    if rest < least and (rest or not stage.ramp):
        after, way_out = (" after its ramp", ", or its ramp as long as the stage") if stage.ramp else ("", "")
        says = f"stage {number} has {rest} samples{after}; the least for {sources} sources is {least}"
        raise ValueError(f"{says}: make the stage longer{way_out}")


@lru_cache(maxsize=1024)
def _turns(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The order of the sources within a block, and for each place how often its source came before it.

    Of S samples, source i's n-th turn may come from slot floor(S n / c_i) and must by ceil(S (n + 1) / c_i). Of the
    turns that may come the one that must soonest does, which on one processor meets all deadlines: a source's count
    after t slots differs from t c_i / S by less than one.
    """
    assert min(counts) >= 0
    size = sum(counts)
    turns = sorted((n * size // c, -(-(n + 1) * size // c), i, n) for i, c in enumerate(counts) for n in range(c))
    order, turn = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    ready: list[tuple[int, int, int]] = []
    coming = 0
    for slot in range(size):
        while coming < size and turns[coming][0] <= slot:
            heappush(ready, turns[coming][1:])
            coming += 1
        _, order[slot], turn[slot] = heappop(ready)
    return order, turn
