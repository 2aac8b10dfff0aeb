"""The base of an id map: a minimal perfect hash and, at each position, a fingerprint of the key there.

Admitted keys are found in about (2.6 + fingerprint_bits) bits a key, and 32 more where ids kept the rows of an earlier
base, which do not follow positions. The keys themselves are kept too, in a file of their own that lookups never read:
exact questions (adding, folding, the inverse) need them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.array_folder import StoredArray
from sparsefeed.etl.ids.keys import checked_keys
from sparsefeed.etl.ids.mph import BLOCK, MinimalPerfectHash, positions_of_block
from sparsefeed.etl.ids.slots import SPILL_BLOCK, Function
from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["Base"]

_MIN_SLICE = 1 << 15  # keys per thread below which starting a thread costs more than it saves
_MPH_SEED = 0
_NAMES = ("pilots", "spill_bases", "spill", "keys", "fingerprints", "rows")
_NO_ROWS = np.empty(0, np.uint32)
_NO_ROWS.setflags(write=False)


@dataclass(frozen=True)
class Base:
    """Immutable: keys to positions in [0, n).

    Attributes:
        function: key -> position.
        fingerprints: uint8, uint16, uint32 or uint64 [n]: the low bits of the key at each position.
        keys: uint64 [n]: the key at each position; the fingerprints themselves at 64 bits.
        rows: uint32 [n]: the row of the key at each position; empty where rows follow the order of positions.
        stored: files that the arrays were read from, by name.
    """

    function: MinimalPerfectHash
    fingerprints: NDArray[np.unsignedinteger[Any]]
    keys: NDArray[np.uint64]
    rows: NDArray[np.uint32] = field(default_factory=lambda: _NO_ROWS)
    stored: Mapping[str, StoredArray] = field(default_factory=dict)

    @classmethod
    def build(cls, keys: NDArray[np.uint64], fingerprint_bits: int) -> Base:
        """Build over unique keys uint64 [n]; IdError names a key that stands twice."""
        keys = checked_keys(keys)
        function = MinimalPerfectHash.build(keys, _MPH_SEED)
        placed = np.empty(len(keys), np.uint64)
        if len(keys):
            taken = function.function
            over_slices(lambda start, stop: _put(keys[start:stop], taken, placed), len(keys), _MIN_SLICE)
        # Low bits, not a second hash: keys are XXH64 values, and positions come from a mix of all 64 bits.
        fingerprints = placed if fingerprint_bits == 64 else placed.astype(f"uint{fingerprint_bits}")
        for array in (placed, fingerprints):
            array.setflags(write=False)
        return cls(function, fingerprints, placed)

    def with_rows(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> Base:
        """The same base with its keys, uint64 [n] in any order, at these rows, int64 [n]; IdError from 2^32 on."""
        if len(rows) and int(rows.max()) >= 2**32:
            raise IdError(
                f"ids: row {rows.max()} cannot be kept; allowed: rows below 2^32; fold() the map, it moves them"
            )
        placed = np.empty(len(keys), np.uint32)
        placed[self.function.query(keys)] = rows
        placed.setflags(write=False)
        return replace(self, rows=placed)

    def positions(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Exact positions of keys: int64 [len(keys)], -1 for a key that is not in the base; reads `keys`."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1, np.int64)
        keys = checked_keys(keys)
        positions = self.function.query(keys)
        return np.where(self.keys[positions] == keys, positions, -1)

    def all_rows(self, first_row: int) -> NDArray[np.int64]:
        """Rows of `keys`; that of the first position is `first_row` where rows follow positions."""
        return self.rows.astype(np.int64) if len(self.rows) else first_row + np.arange(len(self.keys))

    def rows_of(self, keys: NDArray[np.uint64], first_row: int) -> NDArray[np.int64]:
        """Exact rows of keys: int64 [len(keys)], -1 for a key that is not in the base; `first_row` as of `all_rows`."""
        positions = self.positions(keys)
        rows = self.rows[positions].astype(np.int64) if len(self.rows) else positions + first_row
        return np.where(positions >= 0, rows, -1)

    @property
    def nbytes(self) -> int:
        """Bytes a lookup reads: function, fingerprints and rows."""
        return self.function.nbytes + self.fingerprints.nbytes + self.rows.nbytes

    def header(self) -> dict[str, int]:
        """Name the numbers as they are saved."""
        function = self.function
        return {
            "num_keys": function.num_keys,
            "seed": function.seed,
            "num_parts": function.num_parts,
            "buckets_per_part": len(function.pilots) // function.num_parts,
            "slots_per_part": function.slots_per_part,
        }

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Name the arrays as they are saved, without fingerprints that are the keys and rows that follow positions."""
        function = self.function
        arrays: dict[str, NDArray[Any]] = {
            "pilots": function.pilots,
            "spill_bases": function.spill_bases,
            "spill": function.spill,
            "keys": self.keys,
        }
        arrays |= {} if self.fingerprints.itemsize == 8 else {"fingerprints": self.fingerprints}
        return arrays | ({"rows": self.rows} if len(self.rows) else {})

    @classmethod
    def load(
        cls,
        header: Mapping[str, int],
        arrays: Mapping[str, NDArray[Any]],
        fingerprint_bits: int,
        stored: Mapping[str, StoredArray] | None = None,
    ) -> Base:
        """Put saved numbers and arrays together; KeyError or ValueError where they do not fit each other."""
        keys = arrays["keys"]
        fingerprints = keys if fingerprint_bits == 64 else arrays["fingerprints"]
        rows = arrays.get("rows", _NO_ROWS)
        pilots, spill_bases, spill = arrays["pilots"], arrays["spill_bases"], arrays["spill"]
        num_keys, num_parts, slots = header["num_keys"], header["num_parts"], header["slots_per_part"]
        # The kernels check no bounds.
        fits = (
            # not by name: that of the other byte order is the same
            [a.dtype for a in (keys, pilots, spill_bases, spill)] == [np.uint64, np.uint8, np.uint64, np.uint16]
            and fingerprints.dtype == np.dtype(f"uint{fingerprint_bits}")
            and rows.dtype == np.uint32
            and {a.ndim for a in (keys, pilots, spill_bases, spill, fingerprints, rows)} == {1}
            and len(rows) in (0, num_keys)
            and len(keys) == len(fingerprints) == num_keys
            and num_parts >= 1
            and header["buckets_per_part"] >= 1
            and len(pilots) == num_parts * header["buckets_per_part"]
            and 0 < slots < 2**32
            and len(spill) == num_parts * slots - num_keys
            and len(spill_bases) == -(-len(spill) // SPILL_BLOCK)
            and 0 <= header["seed"] < 2**64
        )
        if not fits:
            raise ValueError("the base's arrays do not fit each other")
        function = MinimalPerfectHash(num_keys, header["seed"], num_parts, slots, pilots, spill_bases, spill)
        return cls(function, fingerprints, keys, rows, {n: f for n, f in (stored or {}).items() if n in _NAMES})


@njit(nogil=True, cache=True)
def _put(keys: NDArray[np.uint64], function: Function, placed: NDArray[np.uint64]) -> None:
    """Write every key at its position."""
    hashes, pilots, places = np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64), np.empty(BLOCK, np.uint64)
    for start in range(0, len(keys), BLOCK):
        num = min(BLOCK, len(keys) - start)
        positions_of_block(keys[start : start + num], function, hashes, pilots, places)
        for i in range(num):
            placed[places[i]] = keys[start + i]
