from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import KeyCounts, admission
from sparsefeed.etl.ids.admission import admit, candidates, groups_of_equal_keys

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


STRINGS = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6)), min_size=1, max_size=40)


def candidates_of(strings: list[tuple[int, int]], min_count: int, max_ids: int | None) -> list[int]:
    parts = [KeyCounts(np.array([key], np.uint64), np.array([count])) for key, count in strings]
    return candidates(parts[0].merge(*parts[1:]), min_count, max_ids).tolist()


@settings(max_examples=120, deadline=None)
@given(STRINGS, st.integers(1, 8), st.none() | st.integers(1, 12))
def test_every_admitted_string_has_a_candidate_key_though_most_keys_are_shared(
    strings: list[tuple[int, int]], min_count: int, max_ids: int | None
) -> None:
    keys, counts = (np.array(column) for column in zip(*strings, strict=True))
    admitted = admit(keys.astype(np.uint64), counts, min_count, max_ids)
    chosen = candidates_of(strings, min_count, max_ids)
    assert set(keys[admitted].tolist()) <= set(chosen)
    assert chosen == sorted(set(chosen))
    assert all(counts[keys == key].sum() >= min_count for key in chosen)


def test_spare_candidates_make_up_for_keys_of_several_strings(monkeypatch: pytest.MonkeyPatch) -> None:
    strings = [(1, 5), (1, 5), (2, 8), (3, 2)]  # key 1 stands first, the string of key 2 is the most frequent
    monkeypatch.setattr(admission, "SPARE_IDS", 0)
    assert candidates_of(strings, 1, 1) == [1]
    monkeypatch.setattr(admission, "SPARE_IDS", 1)
    assert candidates_of(strings, 1, 1) == [1, 2]


def test_candidates_beyond_max_ids_are_few() -> None:
    keys = np.arange(5000, dtype=np.uint64)
    counts = KeyCounts(keys, np.arange(1, 5001))
    assert candidates(counts, 1, 100).tolist() == list(range(5000 - 100 - admission.SPARE_IDS, 5000))
    assert candidates(counts, 4990, 100).tolist() == list(range(4989, 5000))
