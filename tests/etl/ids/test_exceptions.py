from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.etl.ids.exceptions import Exceptions, string_at

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
LISTED = st.dictionaries(
    st.integers(0, 2**64 - 1), st.dictionaries(TEXT.map(str.encode), st.integers(0, 99)), max_size=4
)


@settings(max_examples=50, deadline=None)
@given(LISTED)
def test_json_gives_the_same_exceptions_in_the_same_order(by_key: dict[int, dict[bytes, int]]) -> None:
    read = Exceptions.from_json(json.loads(json.dumps(Exceptions(by_key).to_json())))
    assert read.by_key == by_key
    assert [list(rows) for rows in read.by_key.values()] == [list(rows) for rows in by_key.values()]


def test_extending_and_leaving_out_give_new_values() -> None:
    none = Exceptions()
    one = none.extended(5, {b"a": 10, b"b": 20})
    two = one.extended(5, {b"c": 30}).extended(2**64 - 1, {b"x": 1, b"y": 2})
    assert not none
    assert (one.num_extra, two.num_extra) == (1, 3)
    assert list(two.by_key[5]) == [b"a", b"b", b"c"]
    assert two.mask(np.array([1, 5, 2**64 - 1], np.uint64)).tolist() == [False, True, True]
    assert two.without(np.array([5, 6], np.uint64)).by_key == {2**64 - 1: {b"x": 1, b"y": 2}}
    assert none.without(np.array([5], np.uint64)) is none


@pytest.mark.parametrize(
    "strings",
    [
        pa.array(["é".encode()]),
        pa.array(["é"], pa.large_string()),
        pa.array(["é"]),
        pa.array(["é"]).dictionary_encode(),
        pa.chunked_array([["é"]]),
    ],
)
def test_one_string_is_read_from_every_layout(strings: object) -> None:
    assert string_at(strings, 0) == "é".encode()
