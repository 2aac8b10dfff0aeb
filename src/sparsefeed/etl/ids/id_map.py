"""Strings to rows of one embedding table, no two admitted ids alike (docs/contracts/ids.md).

Rows: 0 padding, 1 null, [2, 2 + T) the hashed tail for rare and unseen ids, then one row per admitted id.
Three levels answer a lookup: the exact overlay (what changed since the build), the base (a minimal perfect hash with
fingerprints), the tail. Strings whose 64-bit keys are equal are told apart by a list of exceptions.

    id_map = IdMap.build(keys, counts, table="post", key_seed=0, tail_rows=64, min_count=5)
    rows = id_map.encode(strings)                  # int64
    id_map, new_rows = id_map.add(new_keys)

A map is a value: `add`, `remove` and `upsert` return a new one that shares the base, so a server swaps maps
by one assignment and never sees half a change. A map loaded from a folder pickles as that folder's path and opens
as that very version or not at all.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.admission import (
    Options,
    admit,
    check_strings,
    checked_counts,
    checked_number,
    checked_rows,
    colliding_strings,
    groups_of_equal_keys,
)
from sparsefeed.etl.ids.base import Base
from sparsefeed.etl.ids.codes import num_codes
from sparsefeed.etl.ids.device_strings import DeviceArray, DeviceStrings, is_on_device
from sparsefeed.etl.ids.exceptions import Exceptions, string_at
from sparsefeed.etl.ids.keys import Ints, Strings, arrow_strings, checked_keys, checked_valid, hash_strings, words_of
from sparsefeed.etl.ids.map_file import NUMBERS, read_map, write_map
from sparsefeed.etl.ids.output import output
from sparsefeed.etl.ids.overlay import ABSENT, TOMBSTONE, Overlay
from sparsefeed.etl.ids.probe import FIRST_TAIL_ROW, NULL_ROW, PADDING_ROW, Probe, Tail

if TYPE_CHECKING:
    from sparsefeed.etl.ids.device import DeviceMap

__all__ = ["FIRST_TAIL_ROW", "NULL_ROW", "PADDING_ROW", "IdMap"]


@dataclass(frozen=True, eq=False)
class IdMap:
    """Immutable map of one table.

    Attributes:
        table: name of the table, for messages.
        key_seed: XXH64 seed of the keys.
        tail_rows: T, rows of the tail.
        paired_tail: an id without a row of its own is a code for two rows of the tail, below 0 (etl.ids.codes).
        fingerprint_bits: 8, 16, 32 or 64; an unseen key is taken for an admitted one at 2^-bits.
        num_rows: one more than the largest row ever given; removing an id does not lower it.
        num_admitted: ids that have a row of their own now.
        base: what `build` or `fold` made.
        overlay: what changed since.
        exceptions: admitted strings whose keys are equal.
        folder: where it was loaded from, if it was.
        digest: of the header there.
    """

    table: str
    key_seed: int
    tail_rows: int
    paired_tail: bool
    fingerprint_bits: int
    num_rows: int
    num_admitted: int
    base: Base
    overlay: Overlay
    exceptions: Exceptions
    folder: Path | None = None
    digest: str | None = None

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
        paired_tail: bool = False,
        strings: Strings | None = None,
    ) -> IdMap:
        """Build a map of the ids that were counted often enough.

        Args:
            keys: uint64 [n]; a key may repeat only where the strings differ.
            counts: int64 [n]: how often each was seen.
            table: name of the table.
            key_seed: seed the keys were hashed with.
            tail_rows: rows of the tail, at least 1.
            min_count: rarer ids go to the tail.
            max_ids: keep only so many, the most frequent, ties by key, then by string.
            fingerprint_bits: 8, 16, 32 or 64.
            paired_tail: see `IdMap`; tail_rows is then an even number, 4 to 92,680.
            strings: [n], no nulls; tell equal keys apart.

        Raises:
            IdError: an id is given twice, lengths differ, or a number is out of range.
        """
        where, options = f"ids/{table}", Options.checked(table, key_seed, tail_rows, paired_tail, fingerprint_bits)
        key_seed = options.key_seed
        min_count = checked_number("min_count", min_count, 0, 2**63, where)
        max_ids = None if max_ids is None else checked_number("max_ids", max_ids, 1, 2**63, where)
        keys = checked_keys(keys)
        counts = checked_counts(counts, len(keys), where)
        if strings is not None:
            strings = arrow_strings(strings)
            check_strings(keys, hash_strings(strings, key_seed), where)
        if len(keys) <= (len(keys) if max_ids is None else max_ids) and (counts >= min_count).all():
            try:  # nothing to leave out, so nothing to copy
                return cls._assemble(keys, {}, options)
            except IdError:  # keys repeat: the strings decide
                pass
        admitted = admit(keys, counts, min_count, max_ids, strings)
        collisions = colliding_strings(keys, counts, strings, admitted, where)
        return cls._assemble(np.unique(keys[admitted]) if collisions else keys[admitted], collisions, options)

    @classmethod
    def _assemble(cls, keys: NDArray[np.uint64], collisions: dict[int, list[bytes]], options: Options) -> IdMap:
        """Make a map of unique keys; the first string of a collision takes the key's row, the others new ones."""
        base = Base.build(keys, options.fingerprint_bits)
        first_row = FIRST_TAIL_ROW + options.tail_rows
        first_rows = first_row + base.positions(np.array(list(collisions), np.uint64))
        exceptions = Exceptions.of(collisions, first_rows.tolist(), first_row + len(keys))
        num_rows = first_row + len(keys) + exceptions.num_extra
        return cls(
            **options._asdict(),
            num_rows=num_rows,
            num_admitted=num_rows - first_row,
            base=base,
            overlay=Overlay.empty(),
            exceptions=exceptions,
        )

    @property
    def first_row(self) -> int:
        """The first row that belongs to one id alone: 2 + T."""
        return FIRST_TAIL_ROW + self.tail_rows

    @property
    def tail(self) -> Tail:
        """What an id without a row of its own gets."""
        codes = num_codes(self.tail_rows)
        return Tail(-codes, codes) if self.paired_tail else Tail(FIRST_TAIL_ROW, self.tail_rows)

    @property
    def capacity_rows(self) -> int:
        """The smallest 64 * 2^k that is at least num_rows: the rows a table allocates."""
        capacity = 64
        while capacity < self.num_rows:
            capacity *= 2
        return capacity

    @cached_property
    def probe(self) -> Probe:
        """What a lookup reads, as kernels take it."""
        for array in (*self.base.arrays().values(), self.base.rows, *self.overlay.arrays().values()):
            array.setflags(write=False)  # pickling loses it
        return Probe(
            self.base.function.function,
            self.base.fingerprints,
            self.base.rows,
            self.overlay.entries,
            self.overlay.filter,
            np.uint64(self.key_seed),
            np.uint64(self.tail_rows),
            np.int64(self.tail.first),
            np.uint64(self.tail.size),
            np.uint64(self.num_rows),
        )

    @cached_property
    def on_device(self) -> DeviceMap:
        """The same lookups in a GPU's memory; what they read is uploaded the first time."""
        from sparsefeed.etl.ids.device import DeviceMap  # imports CUDA

        return DeviceMap.of(self)

    @property
    def lookup_bytes(self) -> int:
        """Bytes that lookups read."""
        return self.base.nbytes + self.overlay.nbytes

    def lookup(
        self, keys: NDArray[np.uint64], valid: NDArray[np.bool_] | None = None, out: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Rows of keys uint64 [n]: int64 [n], each in [1, num_rows), or a code below 0; row 1 where not valid.

        `valid` is bool [n], None: all are; `out`, int64 [n], is written and returned, None: a new array, which costs
        many keys as much as their lookup.
        """
        if is_on_device(keys):
            return self.on_device.lookup(keys, valid, out)  # type: ignore[no-any-return]
        keys = checked_keys(keys)
        rows = output(out, len(keys), keys)
        self.probe.of_keys(keys, rows)
        if valid is not None:
            rows[~checked_valid(valid, len(rows))] = NULL_ROW
        return rows

    def encode(
        self, ids: Strings | Ints | DeviceStrings | DeviceArray, out: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Rows of ids: int64 [n]; null and empty strings are row 1.

        `ids` is what `hash_strings` takes, or a numpy array of integers: a table's ids are all strings or all integers;
        `out`, int64 [n], is written and returned, None: a new array.
        """
        if is_on_device(ids):
            return self.on_device.encode(ids, out)  # type: ignore[no-any-return]
        if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu":
            words = words_of(ids)
            rows = output(out, len(words), ids)
            self.probe.of_ints(words, rows)
            return rows
        strings = arrow_strings(ids)
        rows = output(out, len(strings), ids)
        if self.exceptions:
            keys, valid = hash_strings(strings, self.key_seed)
            self.lookup(keys, valid, rows)
            self.exceptions.tell_apart(keys, valid, strings, rows, self.tail)
        else:
            self.probe.of_strings(strings, rows)
        return rows

    def own_rows(self, strings: Strings) -> NDArray[np.int64]:
        """Rows of strings by whole keys, not fingerprints: int64 [n], -1 for an id without a row of its own.

        It reads the keys, which serving does not. An unseen id whose key is an admitted one's has that one's row.
        """
        strings = arrow_strings(strings)
        keys, valid = hash_strings(strings, self.key_seed)
        rows = self._rows_of_admitted(keys)
        self.exceptions.tell_apart(keys, valid, strings, rows, self.tail)
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
        keys = checked_keys(keys)
        if strings is not None:
            strings = arrow_strings(strings)
            check_strings(keys, hash_strings(strings, self.key_seed), f"ids/{self.table}")
        groups = groups_of_equal_keys(keys, strings, f"ids/{self.table}")
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
        num_rows, num_admitted = self.num_rows + int(new.sum()), result.num_admitted + int(extra.sum())
        return replace(result, num_rows=num_rows, num_admitted=num_admitted, exceptions=exceptions), rows

    def upsert(self, keys: NDArray[np.uint64], rows: NDArray[np.int64]) -> IdMap:
        """Put keys at given rows, as a delta does.

        Args:
            keys: uint64 [n], no two alike.
            rows: int64 [n], no two alike; each is a new row (at least num_rows) or the one its key has already.

        Raises:
            IdError: a key or row stands twice, or a row is another's.
        """
        keys = checked_keys(keys)
        rows = checked_rows(rows, len(keys), self.first_row, f"ids/{self.table}")
        groups_of_equal_keys(keys, None, f"ids/{self.table}")
        own = self._rows_of_admitted(keys)
        taken = (rows < self.num_rows) & (rows != own)
        if taken.any() or len(np.unique(rows)) < len(rows):
            row = rows[taken][0] if taken.any() else Counter(rows.tolist()).most_common(1)[0][0]
            raise IdError(
                f"ids/{self.table}: row {row} is another id's; allowed: rows from {self.num_rows} on, each once; "
                "apply a delta to the map it was made from"
            )
        num_rows = max(self.num_rows, int(rows.max(initial=0)) + 1)
        new = rows != own  # an id that keeps its row keeps its exceptions too
        return self._changed(keys[new], rows[new], int(np.count_nonzero(own < 0)), num_rows)

    def remove(self, keys: NDArray[np.uint64]) -> IdMap:
        """Send these keys to the tail; their rows stay empty until the next fold. One without a row is no error."""
        keys = np.unique(checked_keys(keys))
        keys = keys[self._rows_of_admitted(keys) >= 0]
        return self._changed(keys, np.full(len(keys), TOMBSTONE, np.int64), -len(keys), self.num_rows)

    def fold(self) -> tuple[IdMap, NDArray[np.int64]]:
        """Build a new base of what is admitted now, without tombstones and with an empty overlay.

        Returns:
            The new map, and old_row int64 [new.capacity_rows]: the row each new row had before (the rows below
            first_row are themselves), -1 for a row that had none.
        """
        keys, rows = self.overlay.on_top_of(self.base.keys, self.base.all_rows(self.first_row))
        collisions = {key: list(strings) for key, strings in self.exceptions.by_key.items()}
        options = Options(self.table, self.key_seed, self.tail_rows, self.paired_tail, self.fingerprint_bits)
        folded = self._assemble(keys, collisions, options)
        old_row = np.full(folded.capacity_rows, -1, np.int64)
        old_row[: self.first_row] = np.arange(self.first_row)
        old_row[folded.lookup(keys)] = rows
        for key, strings in folded.exceptions.by_key.items():
            for string, row in strings.items():
                old_row[row] = self.exceptions.by_key[key][string]
        return folded, old_row

    def merged(self) -> IdMap:
        """Build such a base, too, but leave every row where it is: lookups read four bytes an id more."""
        keys, rows = self.overlay.on_top_of(self.base.keys, self.base.all_rows(self.first_row))
        base = Base.build(keys, self.fingerprint_bits).with_rows(keys, rows)
        return replace(self, base=base, overlay=Overlay.empty(), folder=None, digest=None)

    def save(self, folder: Path | str) -> None:
        """Write the map; a reader of the folder meanwhile sees the old one or the new one."""
        numbers = {name: getattr(self, name) for name in NUMBERS}
        write_map(folder, numbers, self.base, self.overlay, self.exceptions)

    @classmethod
    def load(cls, folder: Path | str, mmap: bool = True, digest: str | None = None) -> IdMap:
        """Open a saved map.

        Args:
            folder: as given to `save`.
            mmap: map the arrays, so that processes share them and only what is looked up is read; without it the
                digests of files over 1 MiB are checked too.
            digest: of the header, where it must be that very version.

        Raises:
            IdError: the folder is not there, of another format or version, incomplete, truncated or altered.
        """
        return cls(**read_map(Path(folder).absolute(), mmap, digest))  # pickles as a path that holds elsewhere

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return type(self).load, (self.folder, True, self.digest)
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def _rows_of_admitted(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Find the exact rows of keys, -1 for one that is not admitted."""
        rows, changed = self.base.rows_of(keys, self.first_row), self.overlay.rows(keys)
        return np.where(changed == ABSENT, rows, np.maximum(changed, -1))

    def _changed(self, keys: NDArray[np.uint64], rows: NDArray[np.int64], num_more: int, num_rows: int) -> IdMap:
        exceptions = self.exceptions.without(keys)
        return replace(
            self,
            overlay=self.overlay.updated(keys, rows),
            exceptions=exceptions,
            num_rows=num_rows,
            num_admitted=self.num_admitted + num_more + exceptions.num_extra - self.exceptions.num_extra,
            folder=None,
            digest=None,
        )
