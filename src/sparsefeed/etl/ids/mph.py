"""A minimal perfect hash over uint64 keys: n keys to [0, n), no two alike, in about 2.6 bits a key.

The PTHash family (Pibiri and Trani, arXiv 2104.10402) in the form of PtrHash (Groot Koerkamp, arXiv
2502.15539): keys are cut into parts of about 65,536, so that one part is solved inside the cache and parts
are solved side by side; inside a part keys fall into buckets of very unequal size (a cubic law), and each
bucket owns one byte, its pilot, which moves all its keys to free slots. A bucket that finds no free place
evicts the buckets in its way. There are 1.5 % more slots than keys, the same number in every part; a key whose
slot lies at n or beyond is sent back to one of the holes below n, which makes the function minimal.

Arithmetic, h = mix(key, seed) a bijection on 64 bits:
    part     = high 32 bits of h scaled to the number of parts
    bucket   = cubic(low 32 bits of h) scaled to the buckets of a part
    slot     = high 32 bits of (h ^ pilot * C) * M scaled to the slots of a part
    place    = part * slots of a part + slot
    position = place below n, else spill_bases[(place - n) / 32] + spill[place - n]
A query is vector arithmetic around one load: no step depends on the part but through that load.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.keys import checked_keys
from sparsefeed.etl.ids.output import output
from sparsefeed.etl.ids.pilots import NO_PART, count_parts, fill_spill, move_to_parts, solve_parts
from sparsefeed.etl.ids.slots import SPILL_BLOCK, Function, bucket_of, mix, part_of, slot_of, unspilled
from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["BLOCK", "MinimalPerfectHash", "positions_of_block"]

_KEYS_PER_PART = 65536
_KEYS_PER_BUCKET = 3.4
_LOAD = 0.985  # of all slots
_LOAD_OF_FULLEST = 0.998  # of the slots of the part with the most keys
_MIN_SLICE = 1 << 15  # keys per thread below which starting a thread costs more than it saves
_NUM_SEEDS = 20  # tried; the first succeeds unless the keys were made to fail under it
BLOCK = 512  # keys a kernel takes at once: their state stays in the innermost cache


@dataclass(frozen=True)
class MinimalPerfectHash:
    """A bijection from n known keys to [0, n); any other key goes somewhere in [0, n) as well.

    Attributes:
        num_keys: n.
        seed: of the mixing of keys.
        num_parts: parts the keys are cut into, at least 1.
        slots_per_part: a multiple of 64.
        pilots: uint8 [num_parts * buckets of a part].
        spill_bases: uint64: the first hole of every 32 entries of `spill`.
        spill: uint16 [num_parts * slots_per_part - n]: how far beyond its base the hole of each place from n on lies.
    """

    num_keys: int
    seed: int
    num_parts: int
    slots_per_part: int
    pilots: NDArray[np.uint8]
    spill_bases: NDArray[np.uint64]
    spill: NDArray[np.uint16]

    @classmethod
    def build(cls, keys: NDArray[np.uint64], seed: int = 0) -> MinimalPerfectHash:
        """Build the function of n different keys; n may be 0.

        Deterministic: the same keys in any order, on any number of threads, and the same seed give the same function.
        Needs 9 bytes a key beside the keys while it runs.

        Args:
            keys: uint64 [n].
            seed: any integer in [0, 2^64); keys that find no function under it are tried with others.

        Raises:
            IdError: a key stands twice; it is named.
        """
        keys = checked_keys(keys)
        for attempt in range(_NUM_SEEDS):
            function = cls._attempt(keys, (int(seed) + attempt) % 2**64)
            if function is not None:
                return function
            if attempt == 0:
                unique, num_found = np.unique(keys, return_counts=True)
                twice = unique[num_found > 1]
                if len(twice):
                    raise IdError(
                        f"ids: key {int(twice[0]):#018x} is given {num_found[num_found > 1][0]} times; "
                        "give every key once"
                    )
        raise IdError(f"ids: {len(keys)} keys found no function under {_NUM_SEEDS} seeds from {seed}; give another")

    @classmethod
    def _attempt(cls, keys: NDArray[np.uint64], seed: int) -> MinimalPerfectHash | None:
        num_keys = len(keys)
        num_parts = max(1, round(num_keys / _KEYS_PER_PART))
        buckets_per_part = int(num_keys / num_parts / _KEYS_PER_BUCKET) + 1
        mixed = np.uint64(seed)

        sizes: dict[int, NDArray[np.int64]] = {}
        over_slices(
            lambda start, stop: sizes.update({start: count_parts(keys[start:stop], mixed, num_parts)}),
            num_keys,
            _MIN_SLICE,
        )
        of_slices = np.stack([sizes[start] for start in sorted(sizes)])
        starts = np.r_[0, np.cumsum(of_slices.sum(0))]
        next_of = dict(zip(sorted(sizes), starts[:-1] + np.cumsum(of_slices, 0) - of_slices, strict=True))
        mean, fullest = num_keys / num_parts, int(np.diff(starts).max())
        slots_per_part = 64 * (int(max(mean / _LOAD, fullest / _LOAD_OF_FULLEST)) // 64 + 1)
        if slots_per_part > 1.03 * mean / _LOAD + 64:  # no random keys, or one key many times
            return None

        hashes = np.empty(num_keys, np.uint64)
        over_slices(
            lambda start, stop: move_to_parts(keys[start:stop], mixed, next_of[start], hashes), num_keys, _MIN_SLICE
        )
        pilots = np.zeros(num_parts * buckets_per_part, np.uint8)
        taken = np.empty(num_parts * slots_per_part // 64, np.uint64)
        unsolved = over_slices(
            lambda first, last: solve_parts(hashes, starts, first, last, slots_per_part, pilots, taken),
            num_parts,
            1,
            per_thread=16,
        )
        spill = np.zeros(num_parts * slots_per_part - num_keys, np.uint16)
        spill_bases = np.zeros(-(-len(spill) // SPILL_BLOCK), np.uint64)
        if any(part != NO_PART for part in unsolved) or not fill_spill(taken, num_keys, spill_bases, spill):
            return None
        for array in (pilots, spill_bases, spill):
            array.setflags(write=False)  # as mapped ones are: a kernel is compiled for one kind of array
        return cls(num_keys, seed, num_parts, slots_per_part, pilots, spill_bases, spill)

    @property
    def function(self) -> Function:
        """The same as kernels take it."""
        return Function(
            np.uint64(self.seed),
            np.uint64(self.num_keys),
            np.uint64(self.num_parts),
            np.uint64(len(self.pilots) // self.num_parts),
            np.uint64(self.slots_per_part),
            self.pilots,
            self.spill_bases,
            self.spill,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.pilots.nbytes + self.spill_bases.nbytes + self.spill.nbytes

    @property
    def bits_per_key(self) -> float:
        """Bits of all arrays over n."""
        return 8 * self.nbytes / max(self.num_keys, 1)

    def query(self, keys: NDArray[np.uint64], out: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Positions of keys: int64 [len(keys)], in [0, n); of an empty function all -1.

        A key that was not built gets the position of some other key: compare a fingerprint.

        Args:
            keys: uint64 [any].
            out: int64 [len(keys)], written and returned; a new array costs many keys as much as their query.
        """
        source, function = checked_keys(keys), self.function
        positions = output(out, len(keys), keys)
        if self.num_keys == 0:
            positions.fill(-1)
            return positions
        over_slices(
            lambda start, stop: _query(source[start:stop], function, positions[start:stop]), len(source), _MIN_SLICE
        )
        return positions


@njit(nogil=True, cache=True)
def _query(keys: NDArray[np.uint64], function: Function, positions: NDArray[np.int64]) -> None:
    hashes, pilots, places = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    for start in range(0, len(keys), BLOCK):
        num = min(BLOCK, len(keys) - start)
        positions_of_block(keys[start : start + num], function, hashes, pilots, places)
        for i in range(num):
            positions[start + i] = places[i]


@njit(nogil=True, cache=True)
def positions_of_block(
    keys: NDArray[np.uint64],
    function: Function,
    hashes: NDArray[np.uint64],
    pilots: NDArray[np.uint64],
    places: NDArray[np.uint64],
) -> None:
    """Positions of at most BLOCK keys, as `position_of` gives one by one, written to `places`.

    Loops of arithmetic alone become vectors; a loop of loads alone keeps as many of them in flight as the
    processor can, which prefetches did no better (docs/log.md).
    """
    num = len(keys)
    _buckets(keys, function.seed, function.num_parts, function.buckets_per_part, hashes, places)
    for i in range(num):
        pilots[i] = np.uint64(function.pilots[places[i]])
    _places(num, hashes, pilots, function.num_parts, function.slots_per_part, places)
    for i in range(num):
        if places[i] >= function.num_keys:
            places[i] = unspilled(places[i], function)


@njit(nogil=True, cache=True)
def _buckets(
    keys: NDArray[np.uint64],
    seed: np.uint64,
    num_parts: np.uint64,
    buckets_per_part: np.uint64,
    hashes: NDArray[np.uint64],
    buckets: NDArray[np.uint64],
) -> None:
    for i in range(len(keys)):
        hashed = mix(keys[i], seed)
        hashes[i] = hashed
        buckets[i] = part_of(hashed, num_parts) * buckets_per_part + bucket_of(hashed, buckets_per_part)


@njit(nogil=True, cache=True)
def _places(
    num: int,
    hashes: NDArray[np.uint64],
    pilots: NDArray[np.uint64],
    num_parts: np.uint64,
    slots_per_part: np.uint64,
    places: NDArray[np.uint64],
) -> None:
    for i in range(num):
        place = part_of(hashes[i], num_parts) * slots_per_part
        places[i] = place + slot_of(hashes[i], pilots[i], slots_per_part)
