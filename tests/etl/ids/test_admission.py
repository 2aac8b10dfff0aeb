from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.admission import admit, groups_of_equal_keys

PAIRS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 4)), unique_by=lambda p: p[0], max_size=30)


@settings(max_examples=80, deadline=None)
@given(PAIRS, st.integers(1, 5), st.none() | st.integers(1, 31))
def test_admission_is_the_head_of_the_ranking(
    pairs: list[tuple[int, int]], min_count: int, max_ids: int | None
) -> None:
    keys = np.array([k for k, _ in pairs], np.uint64)
    counts = np.array([c for _, c in pairs], np.int64)
    ranked = sorted((p for p in pairs if p[1] >= min_count), key=lambda p: (-p[1], p[0]))
    chosen = admit(keys, counts, min_count, max_ids)
    assert sorted(keys[chosen].tolist()) == sorted(k for k, _ in ranked[:max_ids])
    assert len(chosen) == len(ranked[:max_ids])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=15))
def test_groups_are_the_places_of_every_key_that_repeats(keys: list[int]) -> None:
    groups = groups_of_equal_keys(
        np.array(keys, np.uint64), pa.array([f"s{i}" for i in range(len(keys))], pa.string()), "t"
    )
    assert groups == {k: [i for i, key in enumerate(keys) if key == k] for k in keys if keys.count(k) > 1}


@pytest.mark.parametrize(
    "strings", [pa.array(["a", "b", "a"]), pa.array([b"a", b"b", b"a"]), pa.array(["a", "b", "a"]).dictionary_encode()]
)
def test_the_same_string_twice_is_named_in_every_layout(strings: object) -> None:
    with pytest.raises(IdError, match=r'^ids/post: "a" is given 2 times'):
        groups_of_equal_keys(np.array([5, 5, 5], np.uint64), strings, "ids/post")


def test_where_the_cut_goes_through_equal_keys_and_counts_the_lesser_strings_are_admitted() -> None:
    strings = pa.array(["d", "b", "c", "a", "e"])
    keys, counts = np.array([1, 2, 2, 2, 3], np.uint64), np.array([9, 5, 5, 5, 5])
    for max_ids, chosen in ((1, "d"), (2, "ad"), (3, "abd"), (4, "abcd"), (5, "abcde"), (9, "abcde")):
        places = admit(keys, counts, 1, max_ids, strings)
        assert "".join(sorted(strings.take(pa.array(places)).to_pylist())) == chosen
