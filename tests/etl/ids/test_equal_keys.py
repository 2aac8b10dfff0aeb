"""Strings whose 64-bit keys really are equal, in every way an id can be given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, Inverse, hash_strings
from tests.etl.ids.equal_keys import another_of_the_same_key

A = "post-00000000001"
B = another_of_the_same_key(A).decode()
C = another_of_the_same_key(A, start=6_000_000).decode()
IDS = [A, B, "c", "d"]


def build(strings: Any, counts: list[int] | None = None, **options: Any) -> IdMap:
    counted = np.array(counts or range(len(strings), 0, -1), np.int64)
    given = {"table": "post", "key_seed": 0, "tail_rows": 4, "strings": strings, **options}
    return IdMap.build(hash_strings(strings, 0)[0], counted, **given)


def test_the_keys_are_equal_and_the_strings_are_not() -> None:
    assert len(set(hash_strings([A, B, C], 0)[0].tolist())) == 1
    assert len({A, B, C}) == 3


@pytest.mark.parametrize(
    "series",
    [
        pd.Series(IDS, index=[1, 0, 3, 2]),
        pd.Series(IDS, index=["w", "x", "y", "z"]),
        pd.Series(IDS).sort_values(),
        pd.Series(IDS, dtype="category", index=[9, 8, 7, 6]),
    ],
)
def test_a_series_is_read_by_position_whatever_its_labels(series: pd.Series) -> None:
    built, as_list = build(IDS), series.tolist()
    assert (built.encode(series) == built.encode(as_list)).all()
    assert (built.own_rows(series) == built.own_rows(as_list)).all()
    assert build(series).exceptions.by_key == build(as_list).exceptions.by_key
    keys, _ = hash_strings(as_list, 0)
    added, rows = build(["e"]).add(keys, series)
    assert added.encode(as_list).tolist() == rows.tolist()
    assert len(set(rows.tolist())) == 4
    assert Inverse.build(built, series).decode(built.encode(IDS)).to_pylist() == IDS


def test_of_equal_keys_and_counts_the_lesser_strings_are_admitted_in_whatever_order_they_come() -> None:
    for order in ([A, B, C], [C, B, A], [B, C, A]):
        built = build(order, [1, 1, 1], max_ids=2)
        assert built.known(built.encode(sorted([A, B, C]))).tolist() == [True, True, False]


def test_an_inverse_keeps_the_first_of_two_strings_that_read_one_row() -> None:
    built = build([A, B], [9, 1], min_count=2)
    assert built.num_admitted == 1
    assert Inverse.build(built, [A, B]).decode(built.encode([A])).to_pylist() == [A]


def test_bytes_that_are_no_text_have_rows_and_are_saved_and_an_inverse_of_them_is_refused(tmp_path: Path) -> None:
    other = another_of_the_same_key(A, printable=False)
    with pytest.raises(UnicodeDecodeError):
        other.decode()
    ids = pa.array([A.encode(), other, "\u00e9".encode()], pa.binary())
    built = build(ids)
    assert built.exceptions.num_extra == 1
    built.save(tmp_path)
    assert (IdMap.load(tmp_path).encode(ids) == built.encode(ids)).all()
    assert built.known(built.encode(ids)).all()
    with pytest.raises(IdError, match=r"inverse/post: ids that are no text .*allowed: UTF-8"):
        Inverse.build(built, ids)
