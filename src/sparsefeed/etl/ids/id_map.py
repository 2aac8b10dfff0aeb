"""Strings to rows of one embedding table, no two admitted ids alike (docs/contracts/ids.md).

Rows: 0 padding, 1 null, [2, 2 + T) the hashed tail for rare and unseen ids, then one row per admitted id.
Three levels answer a lookup: the exact overlay (what changed since the build), the base (a minimal perfect
hash with fingerprints), the tail. Strings whose 64-bit keys are equal are told apart by a list of exceptions.

    id_map = IdMap.build(keys, counts, table="post", key_seed=0, tail_rows=64, min_count=5)
    rows = id_map.encode(strings)                  # int64
    id_map, new_rows = id_map.add(new_keys)        # a map is a value: changes give a new one

A map is a value: `add`, `remove` and `upsert` return a new one that shares the base, so a server swaps maps
by one assignment and never sees half a change. A map loaded from a folder pickles as that folder's path.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.admission import admit, groups_of_equal_keys
from sparsefeed.etl.ids.array_folder import read_array_folder, write_array_folder
from sparsefeed.etl.ids.base import Base
from sparsefeed.etl.ids.exceptions import Exceptions, string_at
from sparsefeed.etl.ids.keys import Strings, hash_strings
from sparsefeed.etl.ids.overlay import TOMBSTONE, Overlay

__all__ = ["FIRST_TAIL_ROW", "NULL_ROW", "PADDING_ROW", "IdMap"]

PADDING_ROW = 0
NULL_ROW = 1
FIRST_TAIL_ROW = 2
_FORMAT = "sparsefeed.id_map/1"
_HEADER = "id_map.json"
_FINGERPRINT_BITS = (8, 16, 32, 64)


@dataclass(frozen=True, eq=False)
class IdMap:
    """Immutable map of one table.

    Attributes:
        table: name of the table, for messages.
        key_seed: XXH64 seed of the keys.
        tail_rows: T, rows of the hashed tail.
        fingerprint_bits: 8, 16, 32 or 64; an unseen key is taken for an admitted one at 2^-bits.
        num_rows: one more than the largest row ever given; removing an id does not lower it.
        num_admitted: ids that have a row of their own now.
        base: what `build` or `fold` made.
        overlay: what changed since.
        exceptions: admitted strings whose keys are equal.
        folder: where it was loaded from, if it was.
    """

    table: str
    key_seed: int
    tail_rows: int
    fingerprint_bits: int
    num_rows: int
    num_admitted: int
    base: Base
    overlay: Overlay
    exceptions: Exceptions
    folder: Path | None = None

    @classmethod
    def build(
        cls,
        keys: NDArray[np.uint64],
        counts: NDArray[np.int64],
        *,
        table: str,
        key_seed: int,
        tail_rows: int,
        min_count: int = 1,
        max_ids: int | None = None,
        fingerprint_bits: int = 16,
        strings: pa.Array | None = None,
    ) -> IdMap:
        """Build a map of the ids that were counted often enough.

        Args:
            keys: uint64 [n]; a key may repeat only where the strings differ.
            counts: int64 [n]: how often each was seen.
            table: name of the table.
            key_seed: seed the keys were hashed with.
            tail_rows: rows of the hashed tail, at least 1.
            min_count: rarer ids go to the tail.
            max_ids: keep only so many, the most frequent, ties by key.
            fingerprint_bits: 8, 16, 32 or 64.
            strings: [n], no nulls; needed to tell equal keys apart.

        Raises:
            IdError: an id is given twice, lengths differ, or a number is out of range.
        """
        if fingerprint_bits not in _FINGERPRINT_BITS:
            raise IdError(f"ids/{table}: fingerprint_bits is {fingerprint_bits}; allowed: 8, 16, 32, 64")
        if tail_rows < 1:
            raise IdError(f"ids/{table}: tail_rows is {tail_rows}; unseen ids need at least 1 row to share")
        keys = np.ascontiguousarray(keys, np.uint64)
        if len(counts) != len(keys) or (strings is not None and len(strings) != len(keys)):
            num_strings = "" if strings is None else f" and {len(strings)} strings"
            raise IdError(f"ids/{table}: {len(keys)} keys, {len(counts)} counts{num_strings}; give one of each per id")
        groups = groups_of_equal_keys(keys, strings, f"ids/{table}")
        admitted = admit(keys, np.asarray(counts, np.int64), min_count, max_ids)
        collisions: dict[int, list[bytes]] = {}
        if groups:
            chosen = set(admitted.tolist())
            for key, members in groups.items():
                named = [(-int(counts[i]), string_at(strings, i)) for i in members if i in chosen]
                if len(named) > 1:
                    collisions[key] = [string for _, string in sorted(named)]
        unique = np.unique(keys[admitted]) if collisions else keys[admitted]
        return cls._assemble(unique, collisions, table, key_seed, tail_rows, fingerprint_bits)

    @classmethod
    def _assemble(
        cls,
        keys: NDArray[np.uint64],
        collisions: dict[int, list[bytes]],
        table: str,
        key_seed: int,
        tail_rows: int,
        fingerprint_bits: int,
    ) -> IdMap:
        """Make a map of unique keys; the first string of a collision takes the key's row, the others new ones."""
        base = Base.build(keys, fingerprint_bits)
        first_row = FIRST_TAIL_ROW + tail_rows
        num_rows = first_row + len(keys)
        exceptions = Exceptions()
        for key, strings in collisions.items():
            row = first_row + int(base.positions(np.array([key], np.uint64))[0])
            exceptions = exceptions.extended(
                key, dict(zip(strings, [row, *range(num_rows, num_rows + len(strings) - 1)], strict=True))
            )
            num_rows += len(strings) - 1
        return cls(
            table=table,
            key_seed=key_seed,
            tail_rows=tail_rows,
            fingerprint_bits=fingerprint_bits,
            num_rows=num_rows,
            num_admitted=num_rows - first_row,
            base=base,
            overlay=Overlay.empty(),
            exceptions=exceptions,
        )

    @property
    def _where(self) -> str:
        return f"ids/{self.table}"

    @property
    def first_row(self) -> int:
        """The first row that belongs to one id alone: 2 + T."""
        return FIRST_TAIL_ROW + self.tail_rows

    @property
    def capacity_rows(self) -> int:
        """The smallest 64 * 2^k that is at least num_rows: the rows a table allocates."""
        capacity = 64
        while capacity < self.num_rows:
            capacity *= 2
        return capacity

    def lookup(self, keys: NDArray[np.uint64], valid: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Rows of keys: int64 [n], each in [1, num_rows); row 1 where not valid.

        Args:
            keys: uint64 [n].
            valid: bool [n]; None: all are.
        """
        keys = np.ascontiguousarray(keys, np.uint64)
        rows = self.base.rows(keys, self.first_row, FIRST_TAIL_ROW, self.tail_rows)
        self.overlay.apply(keys, rows, FIRST_TAIL_ROW, self.tail_rows)
        if valid is not None:
            rows[~valid] = NULL_ROW
        return rows

    def encode(self, strings: Strings) -> NDArray[np.int64]:
        """Rows of strings: int64 [n]; null and empty ones are row 1; takes what `hash_strings` takes."""
        keys, valid = hash_strings(strings, self.key_seed)
        rows = self.lookup(keys, valid)
        if self.exceptions:
            self._tell_apart(keys, valid, strings, rows)
        return rows

    def own_rows(self, strings: Strings) -> NDArray[np.int64]:
        """Exact rows of strings: int64 [n], -1 for an id without a row of its own.

        Unlike `encode` it never takes an unseen id for an admitted one, but it reads the keys file, which serving
        leaves on the disk.
        """
        keys, valid = hash_strings(strings, self.key_seed)
        rows = self._rows_of_admitted(keys)
        if self.exceptions:
            self._tell_apart(keys, valid, strings, rows)
        return np.where(valid & (rows >= self.first_row), rows, -1)

    def known(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which rows belong to one id alone: bool [n]."""
        return rows >= self.first_row

    def add(self, keys: NDArray[np.uint64], strings: Strings | None = None) -> tuple[IdMap, NDArray[np.int64]]:
        """Give ids rows of their own, after the last one, in the order given.

        An id that has a row keeps it, so a refresh can add all frequent ids of a day. An unseen key that the base
        takes for another is recognised and gets its own row.

        Args:
            keys: uint64 [n]; may repeat only where the strings differ (the first given then answers lookups by key).
            strings: [n], to tell equal keys apart. A string whose key was admitted before with another string
                shares its row until the next build, unless that key is already among the exceptions.

        Returns:
            The new map, and int64 [n]: the row of each id.

        Raises:
            IdError: an id is given twice.
        """
        keys = np.ascontiguousarray(keys, np.uint64)
        groups = groups_of_equal_keys(keys, strings, self._where)
        rows = self._rows_of_admitted(keys)
        extra = np.zeros(len(keys), np.bool_)  # strings that share a key with another one
        if strings is not None and self.exceptions:
            for i in np.flatnonzero(self.exceptions.mask(keys)):
                rows[i] = self.exceptions.by_key[int(keys[i])].get(string_at(strings, int(i)), -1)
                extra[i] = rows[i] < 0
        for members in groups.values():
            extra[[i for i in members[1:] if rows[i] < 0]] = True
        new = rows < 0
        rows[new] = np.arange(self.num_rows, self.num_rows + np.count_nonzero(new))
        own = new & ~extra
        result = self.upsert(keys[own], rows[own])
        exceptions = result.exceptions
        for i in np.flatnonzero(extra):
            key = int(keys[i])
            if key not in exceptions.by_key:
                first = groups[key][0]
                exceptions = exceptions.extended(key, {string_at(strings, first): int(rows[first])})
            exceptions = exceptions.extended(key, {string_at(strings, int(i)): int(rows[i])})
        num_extra = int(np.count_nonzero(extra))
        return (
            replace(
                result,
                num_rows=self.num_rows + int(np.count_nonzero(new)),
                num_admitted=result.num_admitted + num_extra,
                exceptions=exceptions,
            ),
            rows,
        )

    def upsert(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> IdMap:
        """Put keys at given rows, as a delta does.

        Args:
            keys: uint64 [n], no two alike.
            rows: int64 [n], no two alike; each is a new row (at least num_rows) or the one its key has already.

        Raises:
            IdError: a key or row stands twice, or a row is another's.
        """
        keys, rows = np.ascontiguousarray(keys, np.uint64), np.asarray(rows, np.int64)
        if len(keys) != len(rows):
            raise IdError(f"{self._where}: {len(keys)} keys for {len(rows)} rows; give one row per key")
        groups_of_equal_keys(keys, None, self._where)
        own = self._rows_of_admitted(keys)
        taken = (rows < self.num_rows) & (rows != own)
        if taken.any() or len(np.unique(rows)) < len(rows):
            row = rows[taken][0] if taken.any() else Counter(rows.tolist()).most_common(1)[0][0]
            raise IdError(
                f"{self._where}: row {row} is another id's; allowed: rows from {self.num_rows} on, each once; "
                "apply a delta to the map it was made from"
            )
        return self._changed(
            keys, rows, int(np.count_nonzero(own < 0)), max(self.num_rows, int(rows.max(initial=0)) + 1)
        )

    def remove(self, keys: NDArray[np.uint64]) -> IdMap:
        """Send these keys to the tail; their rows stay empty until the next fold. Removing twice is no error."""
        keys = np.unique(np.asarray(keys, np.uint64))
        num_gone = int(np.count_nonzero(self._rows_of_admitted(keys) >= 0))
        return self._changed(keys, np.full(len(keys), TOMBSTONE, np.int64), -num_gone, self.num_rows)

    def fold(self) -> tuple[IdMap, NDArray[np.int64]]:
        """Build a new base of what is admitted now, without tombstones and with an empty overlay.

        Returns:
            The new map, and old_row int64 [new.capacity_rows]: the row each new row had before (the rows below
            first_row are themselves), -1 for a row that had none.
        """
        overlay_keys, overlay_rows = self.overlay.items()
        live = overlay_rows != TOMBSTONE
        from_base = ~np.isin(self.base.keys, overlay_keys)
        keys = np.concatenate([self.base.keys[from_base], overlay_keys[live]])
        rows = np.concatenate([np.flatnonzero(from_base) + self.first_row, overlay_rows[live]])
        collisions = {key: list(strings) for key, strings in self.exceptions.by_key.items()}
        folded = self._assemble(keys, collisions, self.table, self.key_seed, self.tail_rows, self.fingerprint_bits)
        old_row = np.full(folded.capacity_rows, -1, np.int64)
        old_row[: self.first_row] = np.arange(self.first_row)
        old_row[folded.lookup(keys)] = rows
        for key, strings in folded.exceptions.by_key.items():
            for string, row in strings.items():
                old_row[row] = self.exceptions.by_key[key][string]
        return folded, old_row

    def save(self, folder: Path) -> None:
        """Write the map; a reader of the folder meanwhile sees the old one or the new one."""
        header = {
            "format": _FORMAT,
            "table": self.table,
            "key_seed": self.key_seed,
            "tail_rows": self.tail_rows,
            "fingerprint_bits": self.fingerprint_bits,
            "num_rows": self.num_rows,
            "num_admitted": self.num_admitted,
            "base_seed": self.base.function.seed,
            "exceptions": self.exceptions.to_json(),
        }
        overlay = {"overlay_keys": self.overlay.keys, "overlay_rows": self.overlay.rows}
        write_array_folder(folder, _HEADER, header, {**self.base.arrays(), **overlay})

    @classmethod
    def load(cls, folder: Path, mmap: bool = True) -> IdMap:
        """Open a saved map.

        Args:
            folder: as given to `save`.
            mmap: map the arrays, so that processes share them and only what is looked up is read. Sizes are always
                checked, the digests of files over 1 MiB only without mmap: to verify a whole map, load it so.

        Raises:
            IdError: the folder is not there, of another format, incomplete, truncated or altered.
        """
        header, arrays = read_array_folder(folder, _HEADER, _FORMAT, mmap)
        try:
            return cls(
                table=header["table"],
                key_seed=header["key_seed"],
                tail_rows=header["tail_rows"],
                fingerprint_bits=header["fingerprint_bits"],
                num_rows=header["num_rows"],
                num_admitted=header["num_admitted"],
                base=Base.from_arrays(arrays, header["base_seed"], header["fingerprint_bits"]),
                overlay=Overlay(arrays["overlay_keys"], arrays["overlay_rows"]),
                exceptions=Exceptions.from_json(header["exceptions"]),
                folder=folder,
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise IdError(
                f"{folder / _HEADER}: cannot be meant ({error!r}); restore the folder from its bundle"
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return type(self).load, (self.folder,)
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def _rows_of_admitted(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Find the exact rows of keys, -1 for one that is not admitted."""
        positions = self.base.positions(keys)
        rows = np.where(positions >= 0, positions + self.first_row, -1)
        self.overlay.apply(keys, rows, FIRST_TAIL_ROW, self.tail_rows)
        return np.where(rows >= self.first_row, rows, -1)

    def _tell_apart(
        self, keys: NDArray[np.uint64], valid: NDArray[np.bool_], strings: Strings, rows: NDArray[np.int64]
    ) -> None:
        """Overwrite the rows of strings whose key is among the exceptions."""
        for i in np.flatnonzero(self.exceptions.mask(keys) & valid):
            key = int(keys[i])
            rows[i] = self.exceptions.by_key[key].get(string_at(strings, int(i)), FIRST_TAIL_ROW + key % self.tail_rows)

    def _changed(self, keys: NDArray[np.uint64], rows: NDArray[np.int64], num_more: int, num_rows: int) -> IdMap:
        exceptions = self.exceptions.without(keys)
        return replace(
            self,
            overlay=self.overlay.updated(keys, rows),
            exceptions=exceptions,
            num_rows=num_rows,
            num_admitted=self.num_admitted + num_more + exceptions.num_extra - self.exceptions.num_extra,
            folder=None,
        )
