"""An order of any number of things that takes no memory: where each goes is worked out when it is asked for."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

_ROUNDS = 8
# Made once: to make a numpy scalar takes as long as to mix a small array.
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_SPREAD_1, _SPREAD_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def permute(index: np.ndarray, *, size: int, key: str) -> np.ndarray:
    """Where a pseudo-random bijection of 0 .. size - 1 takes each index; int64 in and out.

    A Feistel network over the next power of two, walked until it lands inside (Black and Rogaway 2002): no table, so
    the order of a billion windows costs nothing to set up. Not for cryptography.
    """
    assert size >= 1
    bits = max(2, (size - 1).bit_length())
    keys = np.frombuffer(blake2b(key.encode(), digest_size=8 * _ROUNDS).digest(), dtype="<u8")
    out = _feistel(index.astype(np.uint64), bits=bits, keys=keys)
    while (outside := out >= size).any():
        out[outside] = _feistel(out[outside], bits=bits, keys=keys)
    return out.astype(np.int64)


def _feistel(value: np.ndarray, *, bits: int, keys: np.ndarray) -> np.ndarray:
    """A bijection of `bits`-bit numbers, uint64. The halves differ by a bit where bits is odd and swap each round."""
    right_bits = np.uint64(bits - bits // 2)
    left_mask, right_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << bits - bits // 2) - 1)
    left, right = value >> right_bits, value & right_mask
    for key in keys:
        # The finaliser of SplitMix64 (Steele et al. 2014), which spreads every bit of the input over the output.
        mixed = right + key
        mixed = (mixed ^ (mixed >> _SHIFT_1)) * _SPREAD_1
        mixed = (mixed ^ (mixed >> _SHIFT_2)) * _SPREAD_2
        mixed ^= mixed >> _SHIFT_3
        left, right = right, left ^ (mixed & left_mask)
        left_mask, right_mask = right_mask, left_mask
    assert len(keys) % 2 == 0  # the halves are as wide as at first
    return (left << right_bits) | right
