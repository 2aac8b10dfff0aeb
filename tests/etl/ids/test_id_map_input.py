"""What tired people pass to an id map, and what it makes of it."""

from __future__ import annotations

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, KeyCounts, MinimalPerfectHash, hash_strings

TAIL = 5
FIRST = 2 + TAIL


def keys_of(*strings: str) -> np.ndarray:
    return hash_strings(list(strings), 0)[0]


def build(strings: list[str], counts: list[int] | None = None, /, **options: object) -> IdMap:
    settings_: dict = {"table": "post", "key_seed": 0, "tail_rows": TAIL, "strings": pa.array(strings, pa.string())}
    return IdMap.build(keys_of(*strings), np.array(counts or [1] * len(strings)), **{**settings_, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_ids": 0}, r"ids/post: max_ids is 0; allowed: integers from 1"),
        ({"min_count": float("nan")}, r"ids/post: min_count is nan; allowed: integers from 0"),
        ({"tail_rows": 2.5}, r"tail_rows is 2.5; allowed: integers from 1"),
        ({"key_seed": -1}, r"key_seed is -1; allowed: integers from 0"),
        ({"key_seed": 1}, r"key 0 is not that of its string; give strings in the order of keys"),
        ({"strings": ["b", "a"]}, r"key 0 is not that of its string"),
        ({"strings": ["a", None]}, r"string 1 is null or empty; leave these out"),
        ({"strings": "ab"}, r"got str that is not all strings \(one str\)"),
        ({"counts": [1, -1]}, r"counts are int64, the least -1; allowed: integers from 0"),
        ({"counts": [1.0, 2.0]}, r"counts are float64"),
        ({"counts": [[1], [2]]}, r"counts are \[2, 1\] for 2 keys"),
        ({"keys": np.array([1.0, 2.0])}, r"keys are float64 \[2\]; allowed: a numpy array of uint64"),
        ({"keys": np.zeros((2, 1), np.uint64)}, r"keys are uint64 \[2, 1\]"),
        ({"keys": ["a", "b"]}, r"keys are list"),
    ],
)
def test_what_a_map_cannot_be_built_of_is_refused(options: dict[str, object], message: str) -> None:
    given: dict = {"keys": keys_of("a", "b"), "counts": np.ones(2, np.int64), "table": "post", "key_seed": 0}
    with pytest.raises(IdError, match=message):
        IdMap.build(**{**given, "tail_rows": TAIL, "strings": ["a", "b"], **options})


@pytest.mark.parametrize("wrong", [np.array([1.5]), np.zeros((1, 1), np.uint64), ["a"], (keys_of("a"), None)])
def test_keys_that_are_none_are_refused_everywhere(wrong: object) -> None:
    built = build(["a"])
    for ask in (built.lookup, built.add, built.remove, KeyCounts.from_keys, MinimalPerfectHash.build):
        with pytest.raises(IdError, match=r"ids: keys are .*; allowed: a numpy array of uint64 \[n\]"):
            ask(wrong)


@pytest.mark.parametrize("row", [-1, 0, 3, 2**62])
def test_a_row_that_no_id_can_have_cannot_be_put(row: int) -> None:
    with pytest.raises(IdError, match=rf"ids/.*: row {row} can't be an id's; allowed: 7 \(below"):
        build(["a"]).upsert(keys_of("b"), np.array([row]))


def test_a_pandas_series_is_read_as_what_it_holds() -> None:
    built = build(["1", "2"])
    assert (built.encode(pd.Series(["2", None, "1"])) == built.encode(["2", None, "1"])).all()
    assert (built.encode(pd.Series(["2", "1"], dtype="category")) == built.encode(["2", "1"])).all()
    for wrong in (pd.Series([1, 2]), pd.Series([1.0]), pd.Series([True]), np.array("a"), "a", {"a": 1}):
        with pytest.raises(IdError, match=r"integers .* as a numpy array"):
            built.encode(wrong)


def test_rows_of_any_width_are_put_exactly() -> None:
    row = 2**53 + 1
    for dtype in (np.uint64, np.int64):
        assert build(["a"]).upsert(keys_of("b"), np.array([row], dtype)).encode(["b"]).tolist() == [row]


def test_a_map_from_a_relative_path_pickles_as_one_that_holds_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(["a"]).save(tmp_path / "map")
    monkeypatch.chdir(tmp_path)
    pickled = pickle.dumps(IdMap.load("map"))
    monkeypatch.chdir("/")
    assert pickle.loads(pickled).encode(["a"]).tolist() == [FIRST]


def test_what_a_lookup_reads_cannot_be_written_after_a_pickle_either() -> None:
    probe = pickle.loads(pickle.dumps(build(["a", "b"]).add(keys_of("c"))[0])).probe
    arrays = [probe.fingerprints, probe.overlay, probe.overlay_filter, probe.function.pilots, probe.function.spill]
    assert not any(array.flags.writeable for array in arrays)


def test_a_number_alone_is_no_column_of_ids() -> None:
    with pytest.raises(IdError, match=r"numbers of int64 \[\]; allowed: integers \[n\]"):
        build(["a"]).encode(np.array(5))


def test_strings_are_written_where_the_caller_wants_them_and_nothing_is_allocated_beside() -> None:
    built, strings = build([f"s{i}" for i in range(5000)]), pa.array([f"s{i}" for i in range(5000)] * 200)
    out = np.empty(len(strings), np.int64)
    built.encode(strings, out=out)
    tracemalloc.start()
    assert built.encode(strings, out=out) is out
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(strings)
    assert (out == built.encode(strings)).all()
