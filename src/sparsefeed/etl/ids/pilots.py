"""The search for pilots: part by part, the largest buckets first, evicting where no pilot is free (see mph)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.slots import bucket_of, mix, part_of, slot_of

__all__ = ["NO_PART", "group_by_part", "solve_parts"]

_SPILL_SHARE = 50  # one slot more per 50 keys: a load of 0.98
_NUM_SALTS = 1000  # attempts at one part; the first succeeds but for parts of a few keys
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finaliser
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
NO_PART = -1
_PILOTS_AT_ONCE = 8
_NEVER = np.int32(2**31 - 1)


@njit(nogil=True, cache=True)
def group_by_part(
    keys: NDArray[np.uint64], seed: np.uint64, hashes: NDArray[np.uint64], parts: NDArray[np.uint64]
) -> None:
    """Write the keys' hashes part by part, and each part's first key and first spill entry."""
    num_parts = np.uint64(len(parts) - 1)
    sizes = np.zeros(len(parts), np.int64)
    for i in range(len(keys)):
        sizes[part_of(mix(keys[i], seed), num_parts)] += 1
    next_of = np.zeros(len(parts), np.int64)
    for part in range(len(parts) - 1):
        spill = sizes[part] // _SPILL_SHARE + 1 if sizes[part] else 0
        parts[part + 1, 0] = parts[part, 0] + np.uint64(sizes[part])
        parts[part + 1, 1] = parts[part, 1] + np.uint64(spill)
        next_of[part] = np.int64(parts[part, 0])
    for i in range(len(keys)):
        hashed = mix(keys[i], seed)
        part_index = part_of(hashed, num_parts)
        hashes[next_of[part_index]] = hashed
        next_of[part_index] += 1


@njit(nogil=True, cache=True)
def solve_parts(
    hashes: NDArray[np.uint64],
    first: int,
    last: int,
    num_buckets: int,
    parts: NDArray[np.uint64],
    pilots: NDArray[np.uint8],
    spill: NDArray[np.uint16],
) -> int:
    """Find pilots, salts and spill of parts [first, last); the part that has none, or -1."""
    for part in range(first, last):
        key, next_key = np.int64(parts[part, 0]), np.int64(parts[part + 1, 0])
        spill_start, spill_stop = np.int64(parts[part, 1]), np.int64(parts[part + 1, 1])
        grouped, starts = _group_by_bucket(hashes[key:next_key], num_buckets)
        if _has_duplicate(grouped, starts) or next_key - key > 65535:
            return part
        num_slots = next_key - key + spill_stop - spill_start
        own_pilots = pilots[part * num_buckets : (part + 1) * num_buckets]
        owners = np.empty(num_slots, np.int32)
        solved = False
        for attempt in range(_NUM_SALTS):
            salt = mix(np.uint64(attempt), np.uint64(num_buckets)) if attempt else np.uint64(0)
            if _place(grouped, starts, salt, owners, own_pilots):
                parts[part, 2] = salt
                solved = True
                break
        if not solved:
            return part
        hole = 0
        for i in range(spill_stop - spill_start):
            if owners[next_key - key + i] >= 0:
                while owners[hole] >= 0:
                    hole += 1
                spill[spill_start + i] = hole
                hole += 1
    return NO_PART


@njit(nogil=True, cache=True)
def _group_by_bucket(hashes: NDArray[np.uint64], num_buckets: int) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
    """Sort the hashes by bucket; bucket b is [starts[b], starts[b + 1])."""
    starts = np.zeros(num_buckets + 1, np.int32)
    for hashed in hashes:
        starts[bucket_of(hashed, np.uint64(num_buckets)) + np.uint64(1)] += 1
    for bucket in range(num_buckets):
        starts[bucket + 1] += starts[bucket]
    next_of = starts[:-1].copy()
    grouped = np.empty_like(hashes)
    for hashed in hashes:
        index = bucket_of(hashed, np.uint64(num_buckets))
        grouped[next_of[index]] = hashed
        next_of[index] += 1
    return grouped, starts


@njit(nogil=True, cache=True)
def _has_duplicate(grouped: NDArray[np.uint64], starts: NDArray[np.int32]) -> bool:
    for bucket in range(len(starts) - 1):
        for i in range(starts[bucket], starts[bucket + 1]):
            for j in range(starts[bucket], i):
                if grouped[i] == grouped[j]:
                    return True
    return False


@njit(nogil=True, cache=True)
def _place(
    grouped: NDArray[np.uint64],
    starts: NDArray[np.int32],
    salt: np.uint64,
    owners: NDArray[np.int32],
    pilots: NDArray[np.uint8],
) -> bool:
    """Give every bucket a pilot, the largest first; False when evictions do not come to an end."""
    num_buckets = len(pilots)
    num_slots = np.uint64(len(owners))
    owners.fill(-1)
    # One bit a slot stays in the innermost cache, where the search for free slots spends its time.
    taken = np.zeros(len(owners) // 64 + 1, np.uint64)
    # A stack with the largest bucket on top; a bucket stands on it at most once.
    waiting = np.argsort(starts[1:] - starts[:-1], kind="mergesort").astype(np.int32)
    depth = num_buckets
    evictions_left = 8 * num_buckets + 64
    # A bucket that evicted another is itself safe for 16 evictions, so that two do not chase each other for ever.
    safe_until = np.full(num_buckets, _NEVER, np.int32)
    rotation = np.uint64(1)
    while depth:
        depth -= 1
        bucket = waiting[depth]
        first, last = starts[bucket], starts[bucket + 1]
        if first == last:
            continue
        pilot = _free_pilot(grouped[first:last], salt, taken, num_slots)
        if pilot < 0:
            rotation = rotation * _MIX_1 + _GOLDEN
            pilot = _cheapest_pilot(
                grouped, starts, bucket, salt, owners, safe_until, evictions_left, rotation >> np.uint64(56)
            )
            if pilot < 0:
                return False
            for i in range(first, last):
                owner = owners[slot_of(grouped[i], np.uint64(pilot), salt, num_slots)]
                if owner < 0:
                    continue
                for j in range(starts[owner], starts[owner + 1]):
                    slot = slot_of(grouped[j], np.uint64(pilots[owner]), salt, num_slots)
                    owners[slot] = -1
                    taken[slot >> np.uint64(6)] ^= np.uint64(1) << (slot & np.uint64(63))
                waiting[depth] = owner
                depth += 1
                evictions_left -= 1
            if evictions_left < 0:
                return False
            safe_until[bucket] = evictions_left - 16
        pilots[bucket] = pilot
        for i in range(first, last):
            slot = slot_of(grouped[i], np.uint64(pilot), salt, num_slots)
            owners[slot] = bucket
            taken[slot >> np.uint64(6)] |= np.uint64(1) << (slot & np.uint64(63))
    return True


@njit(nogil=True, cache=True)
def _alike(bucket: NDArray[np.uint64], pilot: int, salt: np.uint64, num_slots: np.uint64) -> bool:
    """Whether two keys of the bucket fall on one slot."""
    for i in range(1, len(bucket)):
        slot = slot_of(bucket[i], np.uint64(pilot), salt, num_slots)
        for j in range(i):
            if slot_of(bucket[j], np.uint64(pilot), salt, num_slots) == slot:
                return True
    return False


@njit(nogil=True, cache=True)
def _free_pilot(bucket: NDArray[np.uint64], salt: np.uint64, taken: NDArray[np.uint64], num_slots: np.uint64) -> int:
    """Find the first pilot that puts the bucket on free slots, or -1."""
    clashes = np.empty(_PILOTS_AT_ONCE, np.uint64)
    for first in range(0, 256, _PILOTS_AT_ONCE):
        # Every key against several pilots: no branch to guess wrong, and the compiler vectorises it.
        clashes[:] = 0
        for hashed in bucket:
            for i in range(_PILOTS_AT_ONCE):
                slot = slot_of(hashed, np.uint64(first + i), salt, num_slots)
                clashes[i] |= taken[slot >> np.uint64(6)] >> (slot & np.uint64(63))
        for i in range(_PILOTS_AT_ONCE):
            if not clashes[i] & np.uint64(1) and not _alike(bucket, first + i, salt, num_slots):
                return first + i
    return -1


@njit(nogil=True, cache=True)
def _cheapest_pilot(
    grouped: NDArray[np.uint64],
    starts: NDArray[np.int32],
    bucket: int,
    salt: np.uint64,
    owners: NDArray[np.int32],
    safe_until: NDArray[np.int32],
    evictions_left: int,
    rotation: np.uint64,
) -> int:
    """Find the pilot that evicts the least (sum of squared sizes) and no bucket that is safe, or -1."""
    num_slots = np.uint64(len(owners))
    best, best_cost = np.int64(-1), np.int64(2**62)
    for turn in range(256):
        pilot = np.int64((np.uint64(turn) + rotation) & np.uint64(255))
        cost = np.int64(0)
        for i in range(starts[bucket], starts[bucket + 1]):
            owner = owners[slot_of(grouped[i], np.uint64(pilot), salt, num_slots)]
            if owner < 0:
                continue
            size = np.int64(starts[owner + 1] - starts[owner])
            cost += size * size
            if cost >= best_cost or safe_until[owner] < evictions_left:
                cost = best_cost
                break
        if cost < best_cost and not _alike(grouped[starts[bucket] : starts[bucket + 1]], pilot, salt, num_slots):
            best, best_cost = pilot, cost
    return int(best)
