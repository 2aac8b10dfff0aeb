"""How often each string was seen: counted column by column, merged in any order, equal keys told apart.

    counts = StringCounts.of(column, seed)
    counts = counts.merge(StringCounts.of(another, seed))
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
from sparsefeed.etl.ids.distinct import distinct, order_of, sum_equal
from sparsefeed.etl.ids.keys import Strings, arrow_strings, hash_strings

__all__ = ["StringCounts"]


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
        array = arrow_strings(column)
        chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
        return cls._merged([_count(chunk, seed) for chunk in chunks])

    def merge(self, *others: StringCounts) -> StringCounts:
        """Sum the counts of all parts; neither order nor grouping of merges matters."""
        return self._merged([self, *others])

    @classmethod
    def concatenate(cls, parts: Sequence[StringCounts]) -> StringCounts:
        """Put parts one after the other, each of greater keys than the one before."""
        return cls(
            np.concatenate([np.empty(0, np.uint64), *(part.keys for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.counts for part in parts)]),
            pa.concat_arrays([pa.array([], pa.large_string()), *(part.strings for part in parts)]),
        )

    @classmethod
    def _merged(cls, parts: list[StringCounts]) -> StringCounts:
        if len(parts) == 1:
            return parts[0]
        whole = cls.concatenate(parts)
        chosen, sums = sum_equal(whole.keys, order_of(whole.keys), *_buffers(whole.strings), whole.counts)
        return cls(whole.keys[chosen], sums, whole.strings.take(pa.array(chosen)))

    def at_least(self, min_count: int) -> StringCounts:
        """Leave out what was counted less often."""
        kept = self.counts >= min_count
        return self if kept.all() else self.take(np.flatnonzero(kept))

    def without(self, others: StringCounts) -> StringCounts:
        """Leave out the strings that others have."""
        whole = self.concatenate([self, others])
        theirs = np.r_[np.zeros(len(self), np.int64), np.ones(len(others), np.int64)]
        chosen, found = sum_equal(whole.keys, order_of(whole.keys), *_buffers(whole.strings), theirs)
        return self.take(chosen[found == 0])

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


def _count(array: pa.Array, seed: int) -> StringCounts:
    if pa.types.is_dictionary(array.type):
        strings, valid_codes = array.dictionary, array.indices.drop_null() if array.null_count else array.indices
        keys, valid = hash_strings(strings, seed)
        counts = np.bincount(valid_codes.to_numpy(zero_copy_only=False), minlength=len(keys)).astype(np.int64)
        seen = np.flatnonzero(valid & (counts > 0))
        order = seen[order_of(keys[seen])]
        taken, keys, counts = _text(strings.take(pa.array(order))), keys[order], counts[order]
        if (keys[1:] == keys[:-1]).any():  # a dictionary may hold a string twice
            chosen, counts = sum_equal(keys, np.arange(len(keys)), *_buffers(taken), counts)
            keys, taken = keys[chosen], taken.take(pa.array(chosen))
        return StringCounts(keys, counts, taken)
    if len(array) == 0 or pa.types.is_null(array.type):
        return StringCounts._merged([])
    hash_strings(array[:1], seed)  # refuses what is no string
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    null = array.is_null().to_numpy(zero_copy_only=False) if array.null_count else np.empty(0, np.bool_)
    keys, first, counts = distinct(*_buffers(array), null, seed)
    order = order_of(keys)
    return StringCounts(keys[order], counts[order], _text(array.take(pa.array(first[order]))))


def _buffers(array: pa.Array) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Bytes and offsets of strings."""
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    _, offset_buffer, data_buffer = array.buffers()
    offset_type: Any = np.int64 if wide else np.int32
    offsets = np.frombuffer(offset_buffer, offset_type)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    if offsets[0] < 0 or offsets[-1] > len(data):  # kernels check no bounds
        raise IdError(f"ids: offsets {offsets[0]} to {offsets[-1]} lie outside {len(data)} bytes; write the file again")
    return data, offsets


def _text(strings: pa.Array) -> pa.LargeStringArray:
    try:
        large = strings.cast(pa.large_string())
        large.validate(full=True)
    except pa.ArrowInvalid as error:
        raise IdError(f"ids: an id is no text ({error}); allowed: UTF-8; mend the logs") from error
    return large
