"""What a batch asks the tables for: the keys of its KeyedJaggedTensor, of a lookup one or one per place.

A history whose pooling is learned has a key per place of its list, of one id at most. Its vectors then come apart from
the tables, and its weights are learned beside them, in the dense model. A weight per sample, which tables take, would
do with one key, but its gradient ends where ids are sent to the rank that has the table; and a collection that does not
pool would need a table of its own, where a history shares that of its item.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.spec import Feature, FeedSpec, HistoryFeature

__all__ = ["Lists", "keys_of", "lookup_order", "places"]

Lists = tuple[NDArray[np.int64], NDArray[np.int64]]


def keys_of(feature: Feature) -> tuple[str, ...]:
    """Keys of a lookup: its name, or `<name>.<place>` for each place of a history whose pooling is learned."""
    if isinstance(feature, HistoryFeature) and feature.pooling == "learned":
        return tuple(f"{feature.name}.{place}" for place in range(feature.max_length))  # no name has a dot
    return (feature.name,)


def lookup_order(spec: FeedSpec) -> tuple[str, ...]:
    """Keys of a batch, those of one table side by side: fbgemm's row-wise Adagrad is wrong without."""
    return tuple(key for table in spec.tables for feature in spec.lookups_of(table.name) for key in keys_of(feature))


def places(lists: Lists, max_length: int) -> Iterator[Lists]:
    """Lists of n rows, (values, offsets int64 [n + 1]), place by place: lists of one value or none."""
    values, offsets = lists
    lengths = np.diff(offsets)
    for place in range(max_length):
        filled = lengths > place
        yield values[offsets[:-1][filled] + place], np.concatenate([[0], np.cumsum(filled)])
