"""The search for pilots: part by part, the largest buckets first, evicting where no pilot is free (see mph)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.slots import SPILL_BLOCK, bucket_of, mix, part_of, slot_of

__all__ = ["NO_PART", "count_parts", "fill_spill", "move_to_parts", "solve_parts"]

NO_PART = -1
_LARGEST = 1000  # keys of a bucket; of random keys the first bucket has about 600
_PILOTS_AT_ONCE = 32
_ALL_TAKEN = np.uint64((1 << _PILOTS_AT_ONCE) - 1)
_NEVER = np.int32(2**31 - 1)
_TURN_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
_TURN_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_U6, _U63 = np.uint64(6), np.uint64(63)


@njit(nogil=True, cache=True)
def count_parts(keys: NDArray[np.uint64], seed: np.uint64, num_parts: int) -> NDArray[np.int64]:
    """Count the keys of every part: int64 [num_parts]."""
    sizes = np.zeros(num_parts, np.int64)
    for key in keys:
        sizes[part_of(mix(key, seed), np.uint64(num_parts))] += 1
    return sizes


@njit(nogil=True, cache=True)
def move_to_parts(
    keys: NDArray[np.uint64], seed: np.uint64, next_of: NDArray[np.int64], hashes: NDArray[np.uint64]
) -> None:
    """Write the keys' hashes part by part; part p's from next_of[p] on, which is moved along."""
    num_parts = np.uint64(len(next_of))
    for key in keys:
        hashed = mix(key, seed)
        part = part_of(hashed, num_parts)
        hashes[next_of[part]] = hashed
        next_of[part] += 1


@njit(nogil=True, cache=True)
def solve_parts(
    hashes: NDArray[np.uint64],
    starts: NDArray[np.int64],
    first: int,
    last: int,
    slots_per_part: int,
    pilots: NDArray[np.uint8],
    taken: NDArray[np.uint64],
) -> int:
    """Find the pilots of parts [first, last) and mark the slots they take; the part that has none, or NO_PART.

    Args:
        hashes: uint64 [n], part by part.
        starts: int64 [num_parts + 1]: part p is hashes[starts[p]:starts[p + 1]].
        first: of the parts to solve.
        last: of the parts to solve, exclusive.
        slots_per_part: a multiple of 64, at least the keys of any part.
        pilots: uint8 [num_parts * buckets per part], written.
        taken: uint64 [num_parts * slots_per_part / 64], a bit a slot; written.
    """
    num_buckets = len(pilots) // (len(starts) - 1)
    num_words = slots_per_part // 64
    # Made once: threads that get and give back memory part by part wait for each other.
    grouped, owners = np.empty(slots_per_part, np.uint64), np.empty(slots_per_part, np.int32)
    buckets, next_of = np.empty(num_buckets + 1, np.int32), np.empty(max(num_buckets, _LARGEST) + 2, np.int32)
    waiting, safe_until = np.empty(num_buckets, np.int32), np.empty(num_buckets, np.int32)
    for part in range(first, last):
        _group_by_bucket(hashes[starts[part] : starts[part + 1]], grouped, buckets, next_of)
        if not _sort_buckets(grouped, buckets):
            return part
        _by_size(buckets, next_of, waiting)
        own_pilots = pilots[part * num_buckets : (part + 1) * num_buckets]
        own_taken = taken[part * num_words : (part + 1) * num_words]
        if not _place(grouped, buckets, waiting, safe_until, owners, own_taken, own_pilots):
            return part
    return NO_PART


@njit(nogil=True, cache=True)
def fill_spill(
    taken: NDArray[np.uint64], num_keys: int, spill_bases: NDArray[np.uint64], spill: NDArray[np.uint16]
) -> bool:
    """Give every taken slot from num_keys on a free one below; False where two holes lie too far apart for 16 bits.

    Holes are given in ascending order, so an entry is a short distance from the first of its block.
    """
    word, free = 0, ~taken[0]
    hole = _lowest_bit(free) if free else 64  # 64: look into the next word
    for entry in range(len(spill)):
        while hole == 64 * (word + 1) and hole < num_keys:
            word += 1
            free = ~taken[word]
            hole = 64 * word + (_lowest_bit(free) if free else 64)
        hole = min(hole, num_keys)
        if entry % SPILL_BLOCK == 0:
            spill_bases[entry // SPILL_BLOCK] = hole
        slot = num_keys + entry
        if taken[slot >> 6] >> np.uint64(slot & 63) & np.uint64(1):
            distance = np.uint64(hole) - spill_bases[entry // SPILL_BLOCK]
            if distance > np.uint64(65535):
                return False
            spill[entry] = distance
            free &= free - np.uint64(1)
            hole = 64 * word + (_lowest_bit(free) if free else 64)
    return True


@njit(nogil=True, cache=True)
def _lowest_bit(word: np.uint64) -> int:
    """Find the lowest bit that is set, in [0, 64)."""
    place = 0
    for width in (32, 16, 8, 4, 2, 1):
        if not word & ((np.uint64(1) << np.uint64(width)) - np.uint64(1)):
            word >>= np.uint64(width)
            place += width
    return place


@njit(nogil=True, cache=True)
def _group_by_bucket(
    hashes: NDArray[np.uint64], grouped: NDArray[np.uint64], starts: NDArray[np.int32], next_of: NDArray[np.int32]
) -> None:
    """Order the hashes by bucket: bucket b is grouped[starts[b]:starts[b + 1]]; `next_of` is overwritten."""
    num_buckets = len(starts) - 1
    starts[:] = 0
    for hashed in hashes:
        starts[bucket_of(hashed, np.uint64(num_buckets)) + np.uint64(1)] += 1
    for bucket in range(num_buckets):
        starts[bucket + 1] += starts[bucket]
        next_of[bucket] = starts[bucket]
    for hashed in hashes:
        index = bucket_of(hashed, np.uint64(num_buckets))
        grouped[next_of[index]] = hashed
        next_of[index] += 1


@njit(nogil=True, cache=True)
def _sort_buckets(grouped: NDArray[np.uint64], starts: NDArray[np.int32]) -> bool:
    """Sort each bucket, so that the order of the keys given does not matter; False where a hash stands twice."""
    for bucket in range(len(starts) - 1):
        first, last = starts[bucket], starts[bucket + 1]
        if last - first > _LARGEST:  # not random keys: do not sort a million equal ones slowly
            return False
        for i in range(first + 1, last):
            hashed = grouped[i]
            j = i
            while j > first and grouped[j - 1] > hashed:
                grouped[j] = grouped[j - 1]
                j -= 1
            grouped[j] = hashed
            if j > first and grouped[j - 1] == hashed:
                return False
    return True


@njit(nogil=True, cache=True)
def _by_size(starts: NDArray[np.int32], next_of: NDArray[np.int32], ordered: NDArray[np.int32]) -> None:
    """List the buckets from the smallest to the largest, those of one size in order; `next_of` is overwritten."""
    next_of[: _LARGEST + 2] = 0
    for bucket in range(len(starts) - 1):
        next_of[starts[bucket + 1] - starts[bucket] + 1] += 1
    for size in range(_LARGEST + 1):
        next_of[size + 1] += next_of[size]
    for bucket in range(len(starts) - 1):
        size = starts[bucket + 1] - starts[bucket]
        ordered[next_of[size]] = bucket
        next_of[size] += 1


@njit(nogil=True, cache=True)
def _place(
    grouped: NDArray[np.uint64],
    starts: NDArray[np.int32],
    waiting: NDArray[np.int32],
    safe_until: NDArray[np.int32],
    owners: NDArray[np.int32],
    taken: NDArray[np.uint64],
    pilots: NDArray[np.uint8],
) -> bool:
    """Give every bucket a pilot, the largest first; False when evictions do not come to an end.

    `waiting` is a stack with the largest bucket on top; a bucket stands on it at most once.
    """
    num_buckets = len(pilots)
    num_slots = np.uint64(len(owners))
    owners.fill(-1)
    # One bit a slot stays in the innermost cache, where the search for free slots spends its time.
    taken.fill(0)
    depth = num_buckets
    evictions_left = 8 * num_buckets + 64
    # A bucket that evicted another is itself safe for 16 evictions, so that two do not chase each other for ever.
    safe_until.fill(_NEVER)
    turn = np.uint64(1)
    while depth:
        depth -= 1
        bucket = waiting[depth]
        first, last = starts[bucket], starts[bucket + 1]
        if first == last:
            continue
        pilot = _free_pilot(grouped, first, last, taken, num_slots)
        if pilot < 0:
            turn = turn * _TURN_MULTIPLIER + _TURN_INCREMENT
            pilot = _cheapest_pilot(
                grouped, starts, bucket, owners, safe_until, evictions_left, turn >> np.uint64(56), num_slots
            )
            if pilot < 0:
                return False
            for i in range(first, last):
                owner = owners[slot_of(grouped[i], np.uint64(pilot), num_slots)]
                if owner < 0:
                    continue
                for j in range(starts[owner], starts[owner + 1]):
                    slot = slot_of(grouped[j], np.uint64(pilots[owner]), num_slots)
                    owners[slot] = -1
                    taken[slot >> _U6] ^= np.uint64(1) << (slot & _U63)
                waiting[depth] = owner
                depth += 1
                evictions_left -= 1
            if evictions_left < 0:
                return False
            safe_until[bucket] = evictions_left - 16
        pilots[bucket] = pilot
        for i in range(first, last):
            slot = slot_of(grouped[i], np.uint64(pilot), num_slots)
            owners[slot] = bucket
            taken[slot >> _U6] |= np.uint64(1) << (slot & _U63)
    return True


@njit(nogil=True, cache=True)
def _alike(grouped: NDArray[np.uint64], first: int, last: int, pilot: int, num_slots: np.uint64) -> bool:
    """Whether two keys of the bucket fall on one slot."""
    for i in range(first + 1, last):
        slot = slot_of(grouped[i], np.uint64(pilot), num_slots)
        for j in range(first, i):
            if slot_of(grouped[j], np.uint64(pilot), num_slots) == slot:
                return True
    return False


@njit(nogil=True, cache=True)
def _taken_under(hashed: np.uint64, first_pilot: int, taken: NDArray[np.uint64], num_slots: np.uint64) -> np.uint64:
    """Under which of the pilots from first_pilot on the key's slot is taken: a bit each."""
    # No branch and no store: the compiler turns the loop into vectors.
    bits = np.uint64(0)
    for i in range(_PILOTS_AT_ONCE):
        slot = slot_of(hashed, np.uint64(first_pilot + i), num_slots)
        bits |= ((taken[slot >> _U6] >> (slot & _U63)) & np.uint64(1)) << np.uint64(i)
    return bits


@njit(nogil=True, cache=True)
def _free_pilot(
    grouped: NDArray[np.uint64], first: int, last: int, taken: NDArray[np.uint64], num_slots: np.uint64
) -> int:
    """Find the first pilot that puts the bucket on free slots, or -1."""
    for first_pilot in range(0, 256, _PILOTS_AT_ONCE):
        bits = np.uint64(0)
        for i in range(first, last):
            bits |= _taken_under(grouped[i], first_pilot, taken, num_slots)
            if bits == _ALL_TAKEN:
                break
        if bits == _ALL_TAKEN:
            continue
        for i in range(_PILOTS_AT_ONCE):
            free = not (bits >> np.uint64(i)) & np.uint64(1)
            if free and not _alike(grouped, first, last, first_pilot + i, num_slots):
                return first_pilot + i
    return -1


@njit(nogil=True, cache=True)
def _cheapest_pilot(
    grouped: NDArray[np.uint64],
    starts: NDArray[np.int32],
    bucket: int,
    owners: NDArray[np.int32],
    safe_until: NDArray[np.int32],
    evictions_left: int,
    turn: np.uint64,
    num_slots: np.uint64,
) -> int:
    """Find the pilot that evicts the least (sum of squared sizes) and no bucket that is safe, or -1."""
    first, last = starts[bucket], starts[bucket + 1]
    best, best_cost = np.int64(-1), np.int64(2**62)
    for i in range(256):
        pilot = np.int64((np.uint64(i) + turn) & np.uint64(255))
        cost = np.int64(0)
        for j in range(first, last):
            owner = owners[slot_of(grouped[j], np.uint64(pilot), num_slots)]
            if owner < 0:
                continue
            size = np.int64(starts[owner + 1] - starts[owner])
            cost += size * size
            if cost >= best_cost or safe_until[owner] < evictions_left:
                cost = best_cost
                break
        if cost < best_cost and not _alike(grouped, first, last, pilot, num_slots):
            best, best_cost = pilot, cost
    return int(best)
