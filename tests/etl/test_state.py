"""State of members and posts: the last row wins, whatever the order and the cut into parts."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.state import Keys, LastKnown

# key, time, tie, dense value, id, list
row = st.tuples(
    st.integers(1, 5), st.integers(0, 9), st.integers(0, 10**6), st.integers(0, 99), st.integers(0, 9),
    st.lists(st.integers(1, 9), max_size=3),
)  # fmt: skip


def state(rows: list[tuple[int, int, int, int, int, list[int]]]) -> LastKnown:
    key, time_ms, tie, dense, item, tags = (list(column) for column in zip(*rows, strict=True)) if rows else [[]] * 6
    return LastKnown.of_rows(
        np.array(key, np.uint64),
        np.array(time_ms, np.int64),
        np.array(tie, np.int64),
        np.array(dense, np.float32).reshape(-1, 1),
        {
            "item": Keys(np.array(item, np.uint64)),
            "tags": Keys(
                np.array([t for tag in tags for t in tag], np.uint64), np.array([len(t) for t in tags], np.int64)
            ),
        },
    )


def plain(found: LastKnown) -> dict[int, tuple[float, int, list[int]]]:
    side = found.snapshot({})
    offsets, tags = side.lists["tags"]
    return {
        int(key): (float(side.dense[i, 0]), int(side.ids["item"][i]), tags[offsets[i] : offsets[i + 1]].tolist())
        for i, key in enumerate(side.keys)
    }


@settings(max_examples=60, deadline=None)
@given(st.lists(row, max_size=25, unique_by=lambda r: (r[0], r[1], r[2])), st.integers(0, 25), st.randoms())
def test_the_last_row_of_every_key_wins_however_the_rows_are_cut_and_ordered(rows, cut, random) -> None:  # type: ignore[no-untyped-def]
    expected = {r[0]: (float(r[3]), r[4], r[5]) for r in sorted(rows, key=lambda r: (r[1], r[2]))}
    assert plain(state(rows)) == expected
    random.shuffle(rows)
    assert plain(LastKnown.merge([state(rows[:cut]), state(rows[cut:])])) == expected


def test_rows_of_a_ragged_column_are_taken_in_the_order_asked() -> None:
    column = Keys(np.array([1, 2, 3, 4], np.uint64), np.array([2, 0, 1, 1]))
    taken = column.take(np.array([3, 0, 1]))
    assert taken.values.tolist() == [4, 1, 2]
    assert taken.lengths is not None
    assert taken.lengths.tolist() == [1, 2, 0]
