"""Segments and their columns against plain dictionaries: any days, any sizes, any cut into ranges."""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl import segments
from sparsefeed.etl.columns import KEY, open_columns, ranges, write_columns
from sparsefeed.etl.segments import Segments, rows_of

SCHEMA = pa.schema({KEY: pa.uint64(), "number": pa.int64(), "text": pa.large_string()})
SPREAD = 2**60 + 12345  # so that keys lie in all ranges
DAYS = st.lists(st.dictionaries(st.integers(0, 15), st.lists(st.integers(-5, 5), min_size=1, max_size=3), max_size=9))


def table_of(rows: dict[int, list[int]]) -> pa.Table:
    flat = [(key * SPREAD % 2**64, number) for key in rows for number in rows[key]]
    flat.sort(key=lambda row: row[0])
    keys, numbers = [key for key, _ in flat], [number for _, number in flat]
    return pa.table([keys, numbers, ["é" * abs(n) for n in numbers]], SCHEMA)


def newer_of_each(newer: pa.Table, older: pa.Table) -> pa.Table:
    rest = ~np.isin(older[KEY].to_numpy(), newer[KEY].to_numpy())
    whole = pa.concat_tables([newer, older.filter(pa.array(rest))])
    return whole.take(pa.array(np.argsort(whole[KEY].to_numpy(), kind="stable")))


@settings(max_examples=60, deadline=None)
@given(DAYS, st.integers(1, 7))
def test_the_newest_rows_of_a_key_are_those_of_the_last_day_that_has_it(
    days: list[dict[int, list[int]]], at_once: int
) -> None:
    wanted: dict[int, list[int]] = {}
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_ROWS_AT_ONCE", at_once)
        before = None
        for number, day in enumerate(days):
            wanted |= day
            grown = Segments(Path(scratch) / str(number), SCHEMA)
            grown.grow(before, [table_of(day)], newer_of_each)
            before = grown
            sizes = [len(table) for table in grown.tables()]  # the newest first
            assert all(older >= 2 * max(newer, 1) for newer, older in itertools.pairwise(sizes))
        if before:
            asked = np.unique(np.array([key * SPREAD % 2**64 for key in range(20)], np.uint64))
            found = before.newest(asked)
            assert table_of(wanted).equals(newer_of_each(found, SCHEMA.empty_table()).combine_chunks())


def test_what_did_not_change_is_the_same_file(tmp_path: Path) -> None:
    first, second = Segments(tmp_path / "1", SCHEMA), Segments(tmp_path / "2", SCHEMA)
    first.grow(None, [table_of({key: [1, 2] for key in range(10)})], newer_of_each)
    second.grow(first, [table_of({3: [4]})], newer_of_each)
    (old,) = (tmp_path / "1").iterdir()
    assert [path.name for path in sorted((tmp_path / "2").iterdir())] == [old.name, "000002"]
    for path in old.iterdir():
        assert path.samefile(tmp_path / "2" / old.name / path.name)


def test_without_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    first, second = Segments(tmp_path / "1", SCHEMA), Segments(tmp_path / "2", SCHEMA)
    first.grow(None, [table_of({key: [1, 2] for key in range(10)})], newer_of_each)
    second.grow(first, [table_of({3: [4]})], newer_of_each)
    assert second.tables()[1].equals(first.tables()[0])


def test_columns_of_slices_and_chunks_open_as_one_array(tmp_path: Path) -> None:
    whole = table_of({key: [key - 5] for key in range(12)})
    parts = [
        whole.slice(0, 0),
        whole.slice(0, 5),
        pa.concat_tables([whole.slice(5, 3), whole.slice(8, 0), whole.slice(8)]),
    ]
    assert write_columns(tmp_path / "columns", SCHEMA, parts) == 12
    opened = open_columns(tmp_path / "columns", SCHEMA)
    assert opened.equals(whole)
    assert {column.num_chunks for column in opened.columns} == {1}
    assert write_columns(tmp_path / "none", SCHEMA, []) == 0
    assert open_columns(tmp_path / "none", SCHEMA).equals(SCHEMA.empty_table())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 30), st.just([1])), min_size=1, max_size=3), st.integers(1, 9))
def test_ranges_cut_all_tables_at_the_same_keys_and_lose_nothing(days: list[dict[int, list[int]]], rows: int) -> None:
    tables = [table_of(day) for day in days]
    last = -1
    found: list[list[pa.Table]] = [[] for _ in tables]
    for parts in ranges(tables, rows):
        keys = np.concatenate([part[KEY].to_numpy() for part in parts])
        if len(keys):
            assert int(keys.min()) > last
            last = int(keys.max())
        for part, kept in zip(parts, found, strict=True):
            kept.append(part)
    for table, parts in zip(tables, found, strict=True):
        assert pa.concat_tables([SCHEMA.empty_table(), *parts]).combine_chunks().equals(table.combine_chunks())


def test_rows_of_keys_are_all_of_each(tmp_path: Path) -> None:
    table = table_of({1: [1, 2], 4: [3], 9: [4, 5, -5]})
    asked = np.unique(np.array([key * SPREAD % 2**64 for key in (1, 2, 9)], np.uint64))
    assert sorted(rows_of(table, asked)["number"].to_pylist()) == [-5, 1, 2, 4, 5]
