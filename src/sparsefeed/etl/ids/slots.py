"""Where a key lies: its part, its bucket in the part, its slot under the bucket's pilot, its position (see mph).

Scalar arithmetic that the CPU's kernels and the GPU's compile alike. Whoever changes a function here clears the
`__pycache__` folders: other modules compile them into their own kernels, and numba's cache looks at the time of
the caller's file alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["SPILL_BLOCK", "Function", "bucket_of", "mix", "part_of", "position_of", "slot_of", "unspilled"]

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finaliser
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SLOT_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_LOW_32 = np.uint64(0xFFFFFFFF)
_U32 = np.uint64(32)
SPILL_BLOCK = 32  # entries of `spill` that count from one entry of `spill_bases`


class Function(NamedTuple):
    """A minimal perfect hash as kernels take it; the arrays are those of `MinimalPerfectHash`."""

    seed: np.uint64
    num_keys: np.uint64
    num_parts: np.uint64
    buckets_per_part: np.uint64
    slots_per_part: np.uint64
    pilots: NDArray[np.uint8]
    spill_bases: NDArray[np.uint64]
    spill: NDArray[np.uint16]


@njit(nogil=True, cache=True)
def mix(key: np.uint64, seed: np.uint64) -> np.uint64:
    """Map the keys one to one on 64 random-looking bits."""
    state = key + seed * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))


@njit(nogil=True, cache=True)
def part_of(hashed: np.uint64, num_parts: np.uint64) -> np.uint64:
    """Find the part of a key: the high half of its hash, scaled."""
    return ((hashed >> _U32) * num_parts) >> _U32


@njit(nogil=True, cache=True)
def bucket_of(hashed: np.uint64, num_buckets: np.uint64) -> np.uint64:
    """Find the bucket of a key in its part: 255/256 * x^2 (1 + x) / 2 + x / 256, x the low half as a fraction."""
    x = hashed & _LOW_32
    square = (x * x) >> _U32
    cubic = ((square >> np.uint64(1)) * (x + _LOW_32 + np.uint64(1))) >> _U32
    return ((cubic - (cubic >> np.uint64(8)) + (x >> np.uint64(8))) * num_buckets) >> _U32


@njit(nogil=True, cache=True)
def slot_of(hashed: np.uint64, pilot: np.uint64, num_slots: np.uint64) -> np.uint64:
    """Find the slot of a key in its part under its bucket's pilot."""
    return ((((hashed ^ (pilot * _GOLDEN)) * _SLOT_MULTIPLIER) >> _U32) * num_slots) >> _U32


@njit(nogil=True, cache=True)
def unspilled(place: np.uint64, function: Function) -> np.uint64:
    """Send a place beyond the last position to the hole that was kept for it."""
    entry = place - function.num_keys
    hole = function.spill_bases[entry // np.uint64(SPILL_BLOCK)] + np.uint64(function.spill[entry])
    # An altered file must not lead out of the arrays that positions index. (numba 0.68 has no `min` for a GPU.)
    last = function.num_keys - np.uint64(1)
    return np.uint64(hole if hole < last else last)


@njit(nogil=True, cache=True)
def position_of(key: np.uint64, function: Function) -> np.uint64:
    """Find the position of one key; the function must not be empty."""
    hashed = mix(key, function.seed)
    part = part_of(hashed, function.num_parts)
    bucket = part * function.buckets_per_part + bucket_of(hashed, function.buckets_per_part)
    slot = slot_of(hashed, np.uint64(function.pilots[bucket]), function.slots_per_part)
    place = part * function.slots_per_part + slot
    return np.uint64(place if place < function.num_keys else unspilled(place, function))
