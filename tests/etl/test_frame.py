"""Columns as cuDF reads them, and lists back; what needs cuDF itself is in tests/gpu."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sparsefeed.etl import frame

TEXTS = ["a", None, "bc", "a", ""]
LISTS = [["a", "b"], [], None, ["a", None]]
CODES = pa.dictionary(pa.int32(), pa.string())


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (pa.array(TEXTS), pa.string()),
        (pa.array(TEXTS, pa.large_string()), pa.string()),
        (pa.array(TEXTS).dictionary_encode(), CODES),
        (pa.array(TEXTS, pa.large_string()).dictionary_encode(), CODES),
        (pa.array(LISTS, pa.list_(pa.string())), pa.list_(pa.string())),
        (pa.array(LISTS, pa.large_list(pa.large_string())), pa.list_(pa.string())),
        (pa.array([1, 2]), pa.int64()),
    ],
)
def test_a_column_is_narrowed_to_what_cudf_reads_and_says_the_same(array: pa.Array, kind: pa.DataType) -> None:
    for column in (array, pa.chunked_array([array, array[1:], array[:0]])):
        found = frame.narrow(column)
        assert found.type == kind
        assert found.to_pylist() == column.to_pylist()


def test_dictionaries_within_lists_are_read_out() -> None:
    codes = pa.array(["a", "b", "a"], pa.large_string()).dictionary_encode()
    lists = pa.LargeListArray.from_arrays(pa.array([0, 2, 2, 3]), codes)
    found = frame.narrow(pa.chunked_array([lists]))
    assert found.type == pa.list_(pa.string())
    assert found.to_pylist() == [["a", "b"], [], ["a"]]


def test_null_numbers_are_narrowed_to_nan() -> None:
    """cuDF gives no array of a column that has nulls."""
    found = frame.narrow(pa.chunked_array([pa.array([1.5, None], pa.float32())]))
    assert found.null_count == 0
    assert np.array_equal(found.to_numpy(), [1.5, np.nan], equal_nan=True)


def test_a_null_number_is_nan_and_what_stands_below_it_any() -> None:
    array = pa.array([7.0, None, 2.0], pa.float32())[1:]
    assert np.array_equal(frame.values(frame.arrow_column(array)), [np.nan, 2.0], equal_nan=True)
    assert frame.with_nulls(array)[1] == 2.0


def test_numpy_columns_pass() -> None:
    array = np.arange(3)
    assert frame.narrow(array) is array


def test_lists_begin_where_the_offsets_do() -> None:
    lists = frame.ragged(np.array([2, 4, 4, 5]), np.arange(9))
    assert lists.to_pylist() == [[2, 3], [], [4]]
    part = frame.like(pd.DataFrame(index=[7, 8, 9]), {"rows": lists})
    assert part.index.tolist() == [7, 8, 9]
    assert frame.strings(part["rows"])[0].tolist() == [0, 2, 2, 3]  # type: ignore[union-attr]


def test_values_of_a_pandas_column_are_numpys_over_its_own_memory() -> None:
    column = frame.arrow_column(np.array([1.0, np.nan], np.float32))
    array = frame.values(column)
    assert type(array) is np.ndarray
    assert array.ctypes.data == frame.numpy(column).ctypes.data
