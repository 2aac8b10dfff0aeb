"""Gathered lists against Python's, and a batch of some rows against one of rows side by side."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.kernels.ragged import gather_lists, list_lengths


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-9, 9), max_size=20), min_size=1, max_size=50), st.data())
def test_lists_are_gathered_in_any_order(lists: list[list[int]], data: st.DataObject) -> None:
    rows = np.array(data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=60)), np.int64)
    values = np.array([value for one in lists for value in one], np.int64)
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    lengths = np.empty(len(rows), np.int64)
    total = list_lengths(offsets, rows, lengths)
    assert lengths.tolist() == [len(lists[row]) for row in rows]
    out = np.empty(total, np.int64)
    gather_lists(values, offsets, rows, out)
    assert out.tolist() == [value for row in rows for value in lists[row]]
