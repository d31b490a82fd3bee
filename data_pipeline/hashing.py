"""Counter-based random numbers: every draw is a function of a key and a counter, never of a stream's history.

The mixer is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014, figure 16). NumPy's own generators are not used because their streams may change
between NumPy versions, and an order that changes with a library is no order.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

UInt64Array = npt.NDArray[np.uint64]
UInt32Array = npt.NDArray[np.uint32]
Int64Array = npt.NDArray[np.int64]

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_HALF_BITS, _LOW_BITS = np.uint64(32), np.uint64(0xFFFFFFFF)
_SHIFT_30, _SHIFT_27, _SHIFT_31 = np.uint64(30), np.uint64(27), np.uint64(31)


def derive_key(*parts: int | str) -> int:
    """A 64-bit key from a purpose and its parameters; unlike parts give unrelated keys."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash64(key: int | UInt64Array, counters: Int64Array) -> UInt64Array:
    """64 random bits for each counter under `key` (a number, or an array that broadcasts against the counters)."""
    base = np.uint64(key) if isinstance(key, int) else key
    state = (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN_GAMMA
    mixed: UInt64Array = state + base
    mixed ^= mixed >> _SHIFT_30
    mixed *= _MULTIPLIER_1
    mixed ^= mixed >> _SHIFT_27
    mixed *= _MULTIPLIER_2
    mixed ^= mixed >> _SHIFT_31
    return mixed


def high_half(draws: UInt64Array) -> UInt64Array:
    """The upper 32 of each draw's 64 bits, which are independent of the lower."""
    halves: UInt64Array = draws >> _HALF_BITS
    return halves


def low_half(draws: UInt64Array) -> UInt64Array:
    """The lower 32 of each draw's 64 bits."""
    halves: UInt64Array = draws & _LOW_BITS
    return halves


def scaled(draws32: UInt64Array, bound: Int64Array | int) -> Int64Array:
    """32-bit draws as numbers from 0 to bound - 1."""
    numbers: Int64Array = ((draws32 * np.asarray(bound).astype(np.uint64)) >> _HALF_BITS).astype(np.int64)
    return numbers


def limit32(rate: float) -> np.uint64:
    """The number of 32-bit draws, of 2**32, that fall under a rate."""
    count: np.uint64 = np.uint64(round(rate * 2.0**32))
    return count


def hash32_grid(row_keys: UInt64Array, width: int) -> UInt32Array:
    """32 random bits for each cell of [len(row_keys), width], two cells to one 64-bit hash."""
    pairs = np.arange((width + 1) // 2, dtype=np.int64)
    # The byte order is fixed, so that a big-endian machine would draw the same numbers.
    cells = hash64(row_keys[:, None], pairs[None, :]).astype("<u8", copy=False).view("<u4")
    return cells[:, :width]


def permutation(key: int, size: int) -> Int64Array:
    """A permutation of range(size) decided by `key`."""
    return np.argsort(hash64(key, np.arange(size, dtype=np.int64)), kind="stable").astype(np.int64, copy=False)
