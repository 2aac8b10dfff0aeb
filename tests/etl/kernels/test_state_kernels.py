"""The kernels of a request's state, each against plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.kernels.state import (
    find_sorted,
    flag_strange,
    pad_rows,
    read_only,
    take_floats,
    take_keys,
    take_lists,
)

KEYS = st.integers(0, 2**64 - 1)
WIDTH = 3


@settings(deadline=None)
@given(st.sets(KEYS, max_size=40), st.lists(KEYS, max_size=20))
def test_a_key_is_found_where_it_stands_and_nowhere_else(there: set[int], others: list[int]) -> None:
    keys = sorted(there)
    wanted = [*keys, *others, 0, 2**64 - 1]
    found = np.full(len(wanted), 77, np.int64)
    find_sorted(np.array(keys, np.uint64), np.array(wanted, np.uint64), found)
    assert found.tolist() == [keys.index(key) if key in there else -1 for key in wanted]


def test_rows_not_there_are_nan_and_keys_not_there_are_zero_or_what_was_there() -> None:
    at = np.array([2, -1, 0])
    out = np.full((3, 2), 8, np.float32)
    for fill in (False, True):
        assert out[1].tolist() == [8, 8]
        take_floats(np.arange(6, dtype=np.float32).reshape(3, 2), at, fill, out)
        assert out[[0, 2]].tolist() == [[4, 5], [0, 1]]
    assert np.isnan(out[1]).all()
    keys = np.full((3, 1), 9, np.uint64)
    for fill, of_none in ((False, 9), (True, 0)):
        take_keys(np.array([10, 11, 12], np.uint64), at, fill, keys)
        assert keys.tolist() == [[12], [of_none], [10]]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(1, 99), max_size=6), min_size=1, max_size=8), st.booleans(), st.data())
def test_lists_are_cut_and_what_is_beyond_is_zero(lists: list[list[int]], fill: bool, data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(-1, len(lists) - 1), max_size=9))
    offsets, values = np.cumsum([0, *map(len, lists)]), np.array([key for one in lists for key in one], np.uint64)
    out, lengths = np.full((len(at), WIDTH), 5, np.uint64), np.full(len(at), 7, np.int64)
    take_lists(offsets, values, np.array(at, np.int64), fill, out, lengths)
    expected = [lists[i][:WIDTH] if i >= 0 else [] for i in at]
    stay = [i < 0 and not fill for i in at]
    assert lengths.tolist() == [7 if kept else len(one) for one, kept in zip(expected, stay, strict=True)]
    rows = zip(expected, stay, strict=True)
    assert out.tolist() == [[5] * WIDTH if kept else one + [0] * (WIDTH - len(one)) for one, kept in rows]


def test_beyond_the_length_is_padding_and_a_zero_key_before_it_null() -> None:
    rows = np.full((2, 3), 50, np.int64)
    pad_rows(np.array([[7, 0, 8], [0, 0, 0]], np.uint64), np.array([3, 1]), 0, 1, rows)
    assert rows.tolist() == [[50, 1, 50], [1, 0, 0]]


def test_a_row_before_the_first_sets_the_bit_and_a_null_only_if_asked() -> None:
    rows = np.array([[9, 9], [9, 3], [9, 1], [0, 0]])
    keys = np.array([[5, 6], [5, 6], [5, 0], [0, 0]], np.uint64)
    bits = np.array([16, 16, 0, 0], np.int32)
    flag_strange(rows, keys, 9, False, 4, bits)
    assert bits.tolist() == [16, 20, 0, 0]
    flag_strange(rows, keys, 9, True, 2, bits)
    assert bits.tolist() == [16, 22, 2, 2]


def test_a_read_only_view_leaves_the_array_as_it_is() -> None:
    array = np.zeros(3)
    view = read_only(array)
    assert not view.flags.writeable
    assert array.flags.writeable
    assert np.shares_memory(view, array)
