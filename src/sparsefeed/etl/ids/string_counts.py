"""How often each string was seen: counted column by column, merged in any order, equal keys told apart.

    counter = StringCounter(seed)
    counter.add(column)
    counts = counter.counts().merge(StringCounts.of(another, seed))
    frequent = counts.at_least(5)

What one worker counts is a table by ascending key, so tables of many workers merge range by range (`runs`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.distinct import EACH_ONE, DistinctStrings, Texts
from sparsefeed.etl.ids.keys import Strings, arrow_strings, hash_strings

__all__ = ["StringCounter", "StringCounts"]


class StringCounter:
    """Counts the strings of columns, one after the other, in memory for the distinct ones alone.

    Args:
        seed: the spec's `key_seed`.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._distinct = DistinctStrings(seed)

    def __len__(self) -> int:
        return len(self._distinct)

    def add(self, column: Strings) -> int:
        """Count the strings of a column; returns how many were neither null nor empty.

        Args:
            column: what `hash_strings` takes.

        Raises:
            IdError: values of another type.
        """
        array = arrow_strings(column)
        return sum(self._add(chunk) for chunk in (array.chunks if isinstance(array, pa.ChunkedArray) else [array]))

    def counts(self) -> StringCounts:
        """What was counted so far; IdError where bytes are not UTF-8."""
        return StringCounts.of_distinct(self._distinct)

    def _add(self, array: pa.Array) -> int:
        if len(array) == 0 or pa.types.is_null(array.type):
            return 0
        if pa.types.is_dictionary(array.type):
            if pa.types.is_null(array.dictionary.type):
                return 0
            codes = (array.indices.drop_null() if array.null_count else array.indices).cast(pa.int64())
            weights = np.bincount(codes.to_numpy(zero_copy_only=False), minlength=len(array.dictionary))
            return self._add_plain(array.dictionary, weights.astype(np.int64, copy=False)) if len(weights) else 0
        return self._add_plain(array, EACH_ONE)

    def _add_plain(self, array: pa.Array, weights: NDArray[np.int64]) -> int:
        hash_strings(array[:1], self.seed)  # refuses what is no string
        if str(array.type) in ("string_view", "binary_view"):  # pyarrow 14, cuDF's, has no word for them
            array = array.cast(pa.large_binary())
        null = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else np.empty(0, np.bool_)
        return self._distinct.add(_buffers(array), null, weights)


@dataclass(frozen=True, eq=False)
class StringCounts:
    """Immutable: distinct strings by ascending key; only different strings have equal keys.

    Attributes:
        keys: uint64 [n].
        counts: int64 [n], each at least 1.
        strings: large_string [n].
    """

    SCHEMA: ClassVar = pa.schema({"key": pa.uint64(), "count": pa.int64(), "string": pa.large_string()})

    keys: NDArray[np.uint64]
    counts: NDArray[np.int64]
    strings: pa.LargeStringArray

    @classmethod
    def of(cls, column: Strings, seed: int) -> StringCounts:
        """Count the strings of a column; null and empty ones are left out.

        Args:
            column: what `hash_strings` takes.
            seed: the spec's `key_seed`.

        Raises:
            IdError: values of another type, or bytes that are not UTF-8.
        """
        counter = StringCounter(seed)
        counter.add(column)
        return counter.counts()

    @classmethod
    def of_distinct(cls, distinct: DistinctStrings) -> StringCounts:
        """Take what a table has counted; IdError where bytes are not UTF-8."""
        keys, counts, data, offsets = distinct.by_key()
        strings = pa.LargeStringArray.from_buffers(len(keys), pa.py_buffer(offsets), pa.py_buffer(data))
        try:
            strings.validate(full=True)
        except pa.ArrowInvalid as error:
            raise IdError(f"ids: an id is no text ({error}); allowed: UTF-8; mend the logs") from error
        return cls(keys, counts, strings)

    def merge(self, *others: StringCounts) -> StringCounts:
        """Sum the counts of all parts; neither order nor grouping of merges matters."""
        if not others:
            return self
        distinct = DistinctStrings(0)
        for part in (self, *others):
            distinct.add(_buffers(part.strings), weights=part.counts, keys=part.keys)
        return self.of_distinct(distinct)

    @classmethod
    def concatenate(cls, parts: Sequence[StringCounts]) -> StringCounts:
        """Put parts one after the other, each of greater keys than the one before."""
        return cls(
            np.concatenate([np.empty(0, np.uint64), *(part.keys for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.counts for part in parts)]),
            pa.concat_arrays([pa.array([], pa.large_string()), *(part.strings for part in parts)]),
        )

    def at_least(self, min_count: int) -> StringCounts:
        """Leave out what was counted less often."""
        return self.split(min_count)[0]

    def split(self, min_count: int) -> tuple[StringCounts, StringCounts]:
        """Part what was counted at least so often from the rest."""
        frequent = self.counts >= min_count
        return self.take(np.flatnonzero(frequent)), self.take(np.flatnonzero(~frequent))

    def without(self, others: StringCounts) -> StringCounts:
        """Leave out the strings that others have."""
        distinct = DistinctStrings(0)
        distinct.add(_buffers(others.strings), keys=others.keys)
        return self.take(np.flatnonzero(~distinct.has(_buffers(self.strings), self.keys)))

    def take(self, indices: NDArray[np.int64]) -> StringCounts:
        """Keep those at the given places, ascending."""
        return StringCounts(self.keys[indices], self.counts[indices], self.strings.take(pa.array(indices)))

    def __len__(self) -> int:
        return len(self.keys)

    def to_arrow(self) -> pa.Table:
        """Write as a table of `key`, `count` and `string`."""
        return pa.table([pa.array(self.keys), pa.array(self.counts), self.strings], self.SCHEMA)

    @classmethod
    def from_arrow(cls, table: pa.Table) -> StringCounts:
        """Read what `to_arrow` wrote, or some rows of it in a row."""
        strings = table["string"]
        chunk = strings.chunk(0) if strings.num_chunks == 1 else pa.concat_arrays(strings.chunks)
        return cls(table["key"].to_numpy(), table["count"].to_numpy(), chunk)


def _buffers(array: pa.Array) -> Texts:
    """Bytes and offsets of strings."""
    if len(array) == 0:
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, offset_buffer, data_buffer = array.buffers()
    offset_type: Any = np.int64 if wide else np.int32
    offsets = np.frombuffer(offset_buffer, offset_type)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    if offsets[0] < 0 or offsets[-1] > len(data):  # kernels check no bounds
        raise IdError(f"ids: offsets {offsets[0]} to {offsets[-1]} lie outside {len(data)} bytes; write the file again")
    return data, offsets
