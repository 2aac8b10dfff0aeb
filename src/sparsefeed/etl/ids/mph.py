"""A minimal perfect hash over uint64 keys: n keys to [0, n), no two alike, in about 2.6 bits a key.

The PTHash family (Pibiri and Trani, arXiv 2104.10402) in the form of PtrHash (Groot Koerkamp, arXiv
2502.15539): keys are cut into parts of about 32,768, so that one part is solved inside the cache and parts
are solved side by side; inside a part keys fall into buckets of very unequal size (a cubic law), and each
bucket owns one byte, its pilot, which moves all its keys to free slots. A bucket that finds no free place
evicts the buckets in its way. A part has 2 % more slots than keys; a slot beyond the last key is sent back
to one of the holes by the `spill` array, which makes the function minimal.

Arithmetic, h = mix(key, seed) a bijection on 64 bits:
    part   = high 32 bits of h scaled to the number of parts
    bucket = cubic(low 32 bits of h) scaled to the buckets of a part
    slot   = high 32 bits of (h ^ pilot * C ^ salt[part]) * M scaled to the slots of the part

Whoever changes a kernel that another module compiles into its own (`mix`, `bucket_of`, ...) clears the
`__pycache__` folders: numba's cache looks at the time of the caller's file alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.intrinsics import prefetch
from sparsefeed.etl.ids.threads import over_slices

__all__ = ["MinimalPerfectHash"]

_KEYS_PER_PART = 32768
_KEYS_PER_BUCKET = 3.5
_SPILL_SHARE = 50  # one slot more per 50 keys: a load of 0.98
_NUM_SALTS = 1000  # attempts at one part; the first succeeds but for parts of a few keys
_MIN_SLICE = 1 << 15  # keys per thread below which starting a thread costs more than it saves
_BLOCK = 64  # keys whose loads are in flight together

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)  # splitmix64's finaliser
_MIX_2 = np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SLOT_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)
_LOW_32 = np.uint64(0xFFFFFFFF)
_U32 = np.uint64(32)
_NO_PART = -1
_PILOTS_AT_ONCE = 8
_NEVER = np.int32(2**31 - 1)


@dataclass(frozen=True)
class MinimalPerfectHash:
    """A bijection from n known keys to [0, n); any other key goes somewhere in [0, n) as well.

    Attributes:
        num_keys: n.
        seed: of the mixing of keys.
        parts: uint64 [num_parts + 1, 3]: first key, first spill entry and salt of each part.
        pilots: uint8 [num_parts * buckets per part].
        spill: uint16: position inside its part of each slot beyond the part's last key.
    """

    num_keys: int
    seed: int
    parts: NDArray[np.uint64]
    pilots: NDArray[np.uint8]
    spill: NDArray[np.uint16]

    @classmethod
    def build(cls, keys: NDArray[np.uint64], seed: int = 0) -> MinimalPerfectHash:
        """Build the function of n different keys; n may be 0.

        Deterministic: the same keys in any order and the same seed give the same function. Needs about 40 bytes
        a key while it runs.

        Args:
            keys: uint64 [n].
            seed: any integer in [0, 2^64).

        Raises:
            IdError: a key stands twice; it is named.
        """
        num_keys = len(keys)
        num_parts = max(1, round(num_keys / _KEYS_PER_PART))
        buckets_per_part = int(num_keys / num_parts / _KEYS_PER_BUCKET) + 1
        parts = np.zeros((num_parts + 1, 3), np.uint64)
        hashes = np.empty(num_keys, np.uint64)
        _group_by_part(np.ascontiguousarray(keys), np.uint64(seed), hashes, parts)
        pilots = np.zeros(num_parts * buckets_per_part, np.uint8)
        spill = np.zeros(int(parts[-1, 1]), np.uint16)
        failed = over_slices(
            lambda first, last: _solve_parts(hashes, first, last, buckets_per_part, parts, pilots, spill), num_parts, 1
        )
        if any(part != _NO_PART for part in failed):
            unique, num_found = np.unique(keys, return_counts=True)
            twice = unique[num_found > 1]
            assert len(twice), "a part of different keys found no pilots under any salt"
            raise IdError(
                f"ids: key {int(twice[0]):#018x} is given {num_found[num_found > 1][0]} times; give every key once"
            )
        for array in (parts, pilots, spill):
            array.setflags(write=False)  # as mapped ones are: a kernel is compiled for one kind of array
        return cls(num_keys=num_keys, seed=seed, parts=parts, pilots=pilots, spill=spill)

    @property
    def bits_per_key(self) -> float:
        """Bits of all arrays over n."""
        return 8 * (self.parts.nbytes + self.pilots.nbytes + self.spill.nbytes) / max(self.num_keys, 1)

    def query(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Positions of keys: int64 [len(keys)], in [0, n); of an empty function all -1.

        A key that was not built gets the position of some other key: compare a fingerprint.
        """
        positions = np.empty(len(keys), np.int64)
        if self.num_keys == 0:
            positions.fill(-1)
            return positions
        source = np.ascontiguousarray(keys)
        over_slices(
            lambda start, stop: _query(
                source[start:stop], np.uint64(self.seed), self.parts, self.pilots, self.spill, positions[start:stop]
            ),
            len(source),
            _MIN_SLICE,
        )
        return positions


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


@njit(nogil=True, cache=True)
def _query(
    keys: NDArray[np.uint64],
    seed: np.uint64,
    parts: NDArray[np.uint64],
    pilots: NDArray[np.uint8],
    spill: NDArray[np.uint16],
    positions: NDArray[np.int64],
) -> None:
    num_parts = np.uint64(len(parts) - 1)
    num_buckets = np.uint64(len(pilots)) // num_parts
    hashes = np.empty(_BLOCK, np.uint64)
    buckets = np.empty(_BLOCK, np.uint64)
    for start in range(0, len(keys), _BLOCK):
        num = min(_BLOCK, len(keys) - start)
        for i in range(num):
            hashed = mix(keys[start + i], seed)
            bucket = part_of(hashed, num_parts) * num_buckets + bucket_of(hashed, num_buckets)
            prefetch(pilots, bucket)
            hashes[i], buckets[i] = hashed, bucket
        for i in range(num):
            part = part_of(hashes[i], num_parts)
            positions[start + i] = np.int64(position_of(hashes[i], part, np.uint64(pilots[buckets[i]]), parts, spill))


@njit(nogil=True, cache=True)
def _group_by_part(
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
def _solve_parts(
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
    return _NO_PART


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
