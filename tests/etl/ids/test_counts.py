from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.ids import KeyCounts

PARTITIONS = st.lists(
    st.lists(st.integers(0, 20) | st.integers(2**64 - 5, 2**64 - 1), max_size=30), min_size=1, max_size=5
)


@settings(max_examples=60, deadline=None)
@given(PARTITIONS)
def test_merged_counts_are_those_of_all_partitions_at_once(partitions: list[list[int]]) -> None:
    counts = [KeyCounts.from_keys(np.array(partition, np.uint64)) for partition in partitions]
    merged = counts[0].merge(*counts[1:])
    truth = Counter(key for partition in partitions for key in partition)
    assert merged.keys.tolist() == sorted(truth)
    assert merged.counts.tolist() == [truth[key] for key in sorted(truth)]
    assert (merged.keys.dtype, merged.counts.dtype) == (np.uint64, np.int64)
    assert len(merged) == len(truth)


def test_merging_one_by_one_is_merging_at_once() -> None:
    a, b, c = (KeyCounts.from_keys(np.array(k, np.uint64)) for k in ([1, 1, 5], [5, 7], [1]))
    one_by_one, at_once = a.merge(b).merge(c), c.merge(a, b)
    assert one_by_one.keys.tolist() == at_once.keys.tolist() == [1, 5, 7]
    assert one_by_one.counts.tolist() == at_once.counts.tolist() == [3, 2, 1]


def test_a_key_that_was_never_seen_counts_zero() -> None:
    counts = KeyCounts.from_keys(np.array([4, 4, 9], np.uint64))
    assert counts.of(np.array([9, 4, 0, 100], np.uint64)).tolist() == [1, 2, 0, 0]
    assert KeyCounts.from_keys(np.empty(0, np.uint64)).of(np.array([3], np.uint64)).tolist() == [0]
