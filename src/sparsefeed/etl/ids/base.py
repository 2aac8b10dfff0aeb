"""The base of an id map: a minimal perfect hash and, at each position, a fingerprint of the key there.

Admitted keys are found in about (2.6 + fingerprint_bits) bits a key. The keys themselves are kept too, in a
file of their own that lookups never read: exact questions (adding, folding, the inverse) need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.etl.ids.mph import MinimalPerfectHash
from sparsefeed.etl.ids.slots import bucket_of, mix, part_of, position_of
from sparsefeed.etl.kernels.intrinsics import prefetch
from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["Base"]

_MIN_SLICE = 1 << 15  # keys per thread below which starting a thread costs more than it saves
_BLOCK = 64  # keys whose loads are in flight together
_MPH_SEED = 0


@dataclass(frozen=True)
class Base:
    """Immutable: keys to positions in [0, n).

    Attributes:
        function: key -> position.
        fingerprints: uint8, uint16, uint32 or uint64 [n]: the low bits of the key at each position.
        keys: uint64 [n]: the key at each position; the fingerprints themselves at 64 bits.
    """

    function: MinimalPerfectHash
    fingerprints: NDArray[np.unsignedinteger[Any]]
    keys: NDArray[np.uint64]

    @classmethod
    def build(cls, keys: NDArray[np.uint64], fingerprint_bits: int) -> Base:
        """Build over unique keys uint64 [n]; IdError names a key that stands twice."""
        function = MinimalPerfectHash.build(keys, _MPH_SEED)
        placed = np.empty(len(keys), np.uint64)
        placed[function.query(keys)] = keys
        # Low bits, not a second hash: keys are XXH64 values, and positions come from a mix of all 64 bits.
        fingerprints = placed if fingerprint_bits == 64 else placed.astype(f"uint{fingerprint_bits}")
        for array in (placed, fingerprints):
            array.setflags(write=False)
        return cls(function, fingerprints, placed)

    def rows(self, keys: NDArray[np.uint64], first_row: int, first_tail: int, num_tail: int) -> NDArray[np.int64]:
        """Rows of keys: int64 [len(keys)], first_row + position, or the tail's where the fingerprint differs.

        Args:
            keys: uint64 [any].
            first_row: row of position 0.
            first_tail: first row of the tail; an unseen key's row is first_tail + key mod num_tail.
            num_tail: rows of the tail.
        """
        keys = np.ascontiguousarray(keys, np.uint64)
        if len(self.fingerprints) == 0:
            return (keys % np.uint64(num_tail) + np.uint64(first_tail)).astype(np.int64)
        rows = np.empty(len(keys), np.int64)
        function, fingerprints = self.function, self.fingerprints

        def kernel(start: int, stop: int) -> None:
            _rows(
                keys[start:stop],
                np.uint64(function.seed),
                function.parts,
                function.pilots,
                function.spill,
                fingerprints,
                np.uint64(first_row),
                np.uint64(first_tail),
                np.uint64(num_tail),
                rows[start:stop],
            )

        over_slices(kernel, len(keys), _MIN_SLICE)
        return rows

    def positions(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Exact positions of keys: int64 [len(keys)], -1 for a key that is not in the base; reads `keys`."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1, np.int64)
        positions = self.function.query(keys)
        return np.where(self.keys[positions] == keys, positions, -1)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name the arrays as they are saved; fingerprints of 64 bits are the keys and are not written twice."""
        function = self.function
        arrays: dict[str, NDArray[Any]] = {
            "parts": function.parts,
            "pilots": function.pilots,
            "spill": function.spill,
            "keys": self.keys,
        }
        return arrays if self.fingerprints.itemsize == 8 else {**arrays, "fingerprints": self.fingerprints}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], seed: int, fingerprint_bits: int) -> Base:
        """Put saved arrays together; KeyError or ValueError where they do not fit each other."""
        keys = arrays["keys"]
        fingerprints = keys if fingerprint_bits == 64 else arrays["fingerprints"]
        parts, pilots, spill = arrays["parts"], arrays["pilots"], arrays["spill"]
        # The kernels check no bounds.
        fits = (
            [a.dtype.name for a in (keys, parts, pilots, spill)] == ["uint64", "uint64", "uint8", "uint16"]
            and fingerprints.dtype.name == f"uint{fingerprint_bits}"
            and (keys.ndim, pilots.ndim, spill.ndim, parts.shape[1:]) == (1, 1, 1, (3,))
            and fingerprints.shape == keys.shape
            and len(parts) >= 2
            and len(pilots) % (len(parts) - 1) == 0
            and bool((parts[1:, :2] >= parts[:-1, :2]).all())
            and parts[-1, :2].tolist() == [len(keys), len(spill)]
        )
        if not fits:
            raise ValueError("the base's arrays do not fit each other")
        return cls(MinimalPerfectHash(len(keys), seed, parts, pilots, spill), fingerprints, keys)


@njit(nogil=True, cache=True)
def _rows(
    keys: NDArray[np.uint64],
    seed: np.uint64,
    parts: NDArray[np.uint64],
    pilots: NDArray[np.uint8],
    spill: NDArray[np.uint16],
    fingerprints: NDArray[np.unsignedinteger[Any]],
    first_row: np.uint64,
    first_tail: np.uint64,
    num_tail: np.uint64,
    rows: NDArray[np.int64],
) -> None:
    num_parts = np.uint64(len(parts) - 1)
    num_buckets = np.uint64(len(pilots)) // num_parts
    num_bits = np.uint64(8 * fingerprints.itemsize)
    mask = np.uint64(0xFFFFFFFFFFFFFFFF) >> (np.uint64(64) - num_bits)
    hashes = np.empty(_BLOCK, np.uint64)
    places = np.empty(_BLOCK, np.uint64)  # of the pilot, then of the fingerprint
    for start in range(0, len(keys), _BLOCK):
        num = min(_BLOCK, len(keys) - start)
        for i in range(num):
            hashed = mix(keys[start + i], seed)
            bucket = part_of(hashed, num_parts) * num_buckets + bucket_of(hashed, num_buckets)
            prefetch(pilots, bucket)
            hashes[i], places[i] = hashed, bucket
        for i in range(num):
            part = part_of(hashes[i], num_parts)
            position = position_of(hashes[i], part, np.uint64(pilots[places[i]]), parts, spill)
            prefetch(fingerprints, position)
            places[i] = position
        for i in range(num):
            key = keys[start + i]
            seen = np.uint64(fingerprints[places[i]]) == (key & mask)
            rows[start + i] = np.int64(first_row + places[i] if seen else first_tail + key % num_tail)
