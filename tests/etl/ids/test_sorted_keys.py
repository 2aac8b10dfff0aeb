from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.ids import sorted_keys

EDGES = st.sampled_from([0, 1, 2**8, 2**32, 2**63 - 1, 2**63, 2**64 - 1])
KEYS = st.integers(0, 9) | st.integers(0, 2**64 - 1) | EDGES
COLUMNS = st.lists(st.dictionaries(KEYS, st.integers(0, 2**30)), min_size=1, max_size=6)


def column(numbers: dict[int, int], dtype: type = np.int64) -> sorted_keys.Column:
    keys = sorted(numbers)
    return np.array(keys, np.uint64), np.array([numbers[key] for key in keys], dtype)


@settings(max_examples=100, deadline=None)
@given(st.lists(KEYS, max_size=60))
def test_counted_keys_are_those_of_numpy(keys: list[int]) -> None:
    given_keys = np.array(keys, np.uint64)
    unique, counts = sorted_keys.count(given_keys)
    expected, expected_counts = np.unique(given_keys, return_counts=True)
    assert (unique.tolist(), counts.tolist()) == (expected.tolist(), expected_counts.tolist())
    assert (unique.dtype, counts.dtype) == (np.uint64, np.int64)
    assert given_keys.tolist() == keys  # left as they were


def test_a_hundred_thousand_keys_are_counted_as_numpy_does() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 5_000, np.uint64)[rng.zipf(1.3, 100_000) % 5_000]
    unique, counts = sorted_keys.count(keys[::2])  # not contiguous
    expected, expected_counts = np.unique(keys[::2], return_counts=True)
    assert (unique == expected).all()
    assert (counts == expected_counts).all()


@settings(max_examples=100, deadline=None)
@given(COLUMNS, st.booleans(), st.sampled_from([np.int32, np.int64]))
def test_merged_columns_hold_the_sum_or_the_largest_of_every_key(
    columns: list[dict[int, int]], largest: bool, dtype: type
) -> None:
    keys, numbers = sorted_keys.merge([column(c, np.int64) for c in columns], largest)
    truth = {k: [c[k] for c in columns if k in c] for c in columns for k in c}
    assert keys.tolist() == sorted(truth)
    assert numbers.tolist() == [max(truth[k]) if largest else sum(truth[k]) for k in sorted(truth)]
    if largest:
        assert sorted_keys.merge([column(c, dtype) for c in columns], True)[1].dtype == dtype


@pytest.mark.parametrize("largest", [True, False])
def test_merging_leaves_what_was_merged_as_it_was(largest: bool) -> None:
    a, b = column({1: 5, 3: 1}), column({1: 2})
    sorted_keys.merge([a, b], largest)
    assert (a[0].tolist(), a[1].tolist(), b[1].tolist()) == ([1, 3], [5, 1], [2])


@settings(max_examples=60, deadline=None)
@given(st.sets(KEYS, max_size=20), st.lists(KEYS, max_size=30))
def test_a_place_is_the_index_of_a_key_or_minus_one(ascending: set[int], keys: list[int]) -> None:
    ordered = sorted(ascending)
    places = sorted_keys.places(np.array(ordered, np.uint64), np.array(keys, np.uint64))
    assert places.tolist() == [ordered.index(key) if key in ascending else -1 for key in keys]
