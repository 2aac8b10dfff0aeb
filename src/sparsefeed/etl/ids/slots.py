"""Where a key lies: its part, its bucket in the part, its slot under the bucket's pilot (see mph).

Whoever changes a function here clears the `__pycache__` folders: other modules compile them into their own
kernels, and numba's cache looks at the time of the caller's file alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

__all__ = ["bucket_of", "mix", "part_of", "position_of", "slot_of"]

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finaliser
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SLOT_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_LOW_32 = np.uint64(0xFFFFFFFF)
_U32 = np.uint64(32)


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
def slot_of(hashed: np.uint64, pilot: np.uint64, salt: np.uint64, num_slots: np.uint64) -> np.uint64:
    """Find the slot of a key in its part under its bucket's pilot."""
    return ((((hashed ^ (pilot * _GOLDEN) ^ salt) * _SLOT_MULTIPLIER) >> _U32) * num_slots) >> _U32


@njit(nogil=True, cache=True)
def position_of(
    hashed: np.uint64,
    part: np.uint64,
    pilot: np.uint64,
    parts: NDArray[np.uint64],
    spill: NDArray[np.uint16],
) -> np.uint64:
    """Find the position of a key among all keys."""
    first_key, first_spill = parts[part, 0], parts[part, 1]
    num_keys = parts[part + np.uint64(1), 0] - first_key
    num_slots = num_keys + parts[part + np.uint64(1), 1] - first_spill
    slot = slot_of(hashed, pilot, parts[part, 2], num_slots)
    if slot >= num_keys:
        slot = np.uint64(spill[first_spill + slot - num_keys])
    return np.uint64(first_key + slot)
