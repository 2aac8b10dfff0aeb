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
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.pilots import NO_PART, group_by_part, solve_parts
from sparsefeed.etl.ids.slots import bucket_of, mix, part_of, position_of
from sparsefeed.etl.kernels.intrinsics import prefetch
from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["MinimalPerfectHash"]

_KEYS_PER_PART = 32768
_KEYS_PER_BUCKET = 3.5
_MIN_SLICE = 1 << 15  # keys per thread below which starting a thread costs more than it saves
_BLOCK = 64  # keys whose loads are in flight together


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
        group_by_part(np.ascontiguousarray(keys), np.uint64(seed), hashes, parts)
        pilots = np.zeros(num_parts * buckets_per_part, np.uint8)
        spill = np.zeros(int(parts[-1, 1]), np.uint16)
        failed = over_slices(
            lambda first, last: solve_parts(hashes, first, last, buckets_per_part, parts, pilots, spill), num_parts, 1
        )
        if any(part != NO_PART for part in failed):
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
