"""What a batch asks the tables for: the keys of its KeyedJaggedTensor, one or more of each lookup.

A history whose pooling is learned has a key per place of its list, of one id at most. Its vectors then come apart from
the tables, and its weights are learned beside them, in the dense model. A weight per sample, which tables take, would
do with one key, but its gradient ends where ids are sent to the rank that has the table; and a collection that does not
pool would need a table of its own, where a history shares that of its item.

Where the ids of a table's tail are two rows each, every key has a second one, of the second rows, whose sum is added:
the first alone counts the ids, which a mean divides by.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.ids.codes import rows_of
from sparsefeed.etl.spec import FeedSpec, HistoryFeature, IdFeature, IdListFeature

__all__ = ["Lists", "keys_of", "lists_of", "lookup_order", "places", "second_of"]

Lists = tuple[NDArray[np.int64], NDArray[np.int64]]
Lookup = IdFeature | IdListFeature | HistoryFeature


def keys_of(feature: Lookup) -> tuple[str, ...]:
    """Keys of a lookup: its name, or `<name>.<place>` for each place of a history whose pooling is learned."""
    if isinstance(feature, HistoryFeature) and feature.pooling == "learned":
        return tuple(f"{feature.name}.{place}" for place in range(feature.max_length))  # no name has a dot
    return (feature.name,)


def second_of(key: str) -> str:
    """The key of the second rows, of a table whose tail is paired."""
    return f"{key}.second"


def lookup_order(spec: FeedSpec, *tables: str) -> tuple[str, ...]:
    """Keys of a batch, or of some tables; those of one side by side: fbgemm's row-wise Adagrad is wrong without."""
    return tuple(
        key
        for table in spec.tables
        if not tables or table.name in tables
        for feature in spec.lookups_of(table.name)
        for first in keys_of(feature)
        for key in ((first, second_of(first)) if table.paired_tail else (first,))
    )


def lists_of(
    spec: FeedSpec, feature: Lookup, ids: Lists, earlier: Mapping[str, NDArray[np.int64]]
) -> Iterator[tuple[str, Lists]]:
    """The rows that each key of a lookup asks for, of its column in the training parquet.

    Of a table named in `earlier` row i stands for earlier[i]; a code, below 0, is what it was.
    """
    keys, table = keys_of(feature), spec.table_of(feature)
    if table.name in earlier:
        ids = np.where(ids[0] < 0, ids[0], earlier[table.name][np.maximum(ids[0], 0)]), ids[1]
    for key, (values, offsets) in zip(keys, places(ids, len(keys)) if len(keys) > 1 else [ids], strict=True):
        if not table.paired_tail:
            yield key, (values, offsets)
            continue
        first, second = rows_of(values, table.tail_rows)
        yield key, (first, offsets)
        paired = second > 0
        yield second_of(key), (second[paired], np.concatenate([[0], np.cumsum(paired)])[offsets])


def places(lists: Lists, max_length: int) -> Iterator[Lists]:
    """Lists of n rows, (values, offsets int64 [n + 1]), place by place: lists of one value or none."""
    values, offsets = lists
    lengths = np.diff(offsets)
    for place in range(max_length):
        filled = lengths > place
        yield values[offsets[:-1][filled] + place], np.concatenate([[0], np.cumsum(filled)])
