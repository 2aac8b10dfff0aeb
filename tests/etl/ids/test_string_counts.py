"""StringCounts against a Counter: every layout, any grouping, equal keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import hash_strings
from sparsefeed.etl.ids.key_order import order_of
from sparsefeed.etl.ids.string_counts import StringCounts
from tests.etl.ids.equal_keys import another_of_the_same_key
from tests.etl.ids.narrow import use_narrow_keys

SEED = 3
COLUMNS = st.lists(st.none() | st.sampled_from(["", "a", "b", "é", "日本", "a" * 40, "\0"]) | st.text(max_size=3))
A = "post-00000000001"
B = another_of_the_same_key(A, SEED).decode()
LAYOUTS: dict[str, Callable[[list[str | None]], object]] = {
    "plain": lambda s: pa.array(s, pa.string()),
    "large": lambda s: pa.array(s, pa.large_string()),
    "dictionary": lambda s: pa.array(s, pa.string()).dictionary_encode(),
    "sliced": lambda s: pa.array(["x", *s, "y"], pa.string())[1:-1],
    "chunks": lambda s: pa.chunked_array([pa.array(s[:2], pa.string()), pa.array(s[2:], pa.string())]),
    **({"view": lambda s: pa.array(s, pa.string_view())} if hasattr(pa, "string_view") else {}),
    "list": list,
}


def as_counter(counts: StringCounts) -> Counter[str]:
    keys, _ = hash_strings(counts.strings, SEED)
    assert counts.keys.tolist() == keys.tolist() == sorted(keys.tolist())
    found = dict(zip(counts.strings.to_pylist(), counts.counts.tolist(), strict=True))
    assert len(found) == len(counts)
    return Counter(found)


@settings(max_examples=80, deadline=None)
@given(COLUMNS, st.sampled_from(list(LAYOUTS)))
def test_a_column_is_counted_as_python_counts_it(strings: list[str | None], layout: str) -> None:
    assert as_counter(StringCounts.of(LAYOUTS[layout](strings), SEED)) == Counter(s for s in strings if s)


@settings(max_examples=60, deadline=None)
@given(st.lists(COLUMNS, min_size=1, max_size=5))
def test_neither_order_nor_grouping_of_merges_matters(columns: list[list[str | None]]) -> None:
    parts = [StringCounts.of(pa.array(column, pa.string()), SEED) for column in columns]
    expected = Counter(s for column in columns for s in column if s)
    assert as_counter(parts[0].merge(*parts[1:])) == expected
    backwards = parts[-1]
    for part in parts[-2::-1]:
        backwards = StringCounts.from_arrow(backwards.to_arrow()).merge(part) if len(backwards) else part
    assert as_counter(backwards) == expected
    assert as_counter(backwards.at_least(2)) == Counter({s: n for s, n in expected.items() if n >= 2})


def test_many_random_strings_are_counted_in_every_block_of_the_table() -> None:
    random = np.random.default_rng(0)
    strings = [f"id_{i}" for i in random.zipf(1.2, 50_000) % 20_000]
    assert as_counter(StringCounts.of(pa.array(strings), SEED)) == Counter(strings)


def test_texts_of_every_length_that_differ_in_one_byte_or_in_length_alone_are_apart() -> None:
    """Words, short texts and long ones meet at 8 and 16 bytes; the last ones end where the column's memory does."""
    whole = "".join(chr(97 + i % 26) for i in range(41))
    strings = [f"{whole[:length]}{end}" for length in range(41) for end in ("", "\0", "x", "y")][1:]
    for times in (1, 3):
        for column in (strings, strings[::-1]):
            assert as_counter(StringCounts.of(pa.array(column * times), SEED)) == Counter(strings * times)
            for string in column:
                assert as_counter(StringCounts.of(pa.array([string] * times), SEED)) == {string: times}


def test_strings_of_one_key_are_counted_apart_within_a_column_and_across_merges() -> None:
    strings = [A, B, A, B, B, "c"]
    counted = StringCounts.of(pa.array(strings), SEED)
    assert len(set(counted.keys.tolist())) == 2
    assert dict(zip(counted.strings.to_pylist(), counted.counts.tolist(), strict=True)) == {A: 2, B: 3, "c": 1}
    one, other = StringCounts.of(pa.array([A, "c"]), SEED), StringCounts.of(pa.array([B, B, A]), SEED)
    merged = one.merge(other)
    assert dict(zip(merged.strings.to_pylist(), merged.counts.tolist(), strict=True)) == {A: 2, B: 2, "c": 1}


def test_keys_of_three_bits_leave_all_strings_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_keys(monkeypatch)
    strings = [f"s{i % 50}" for i in range(500)]
    parts = [StringCounts.of(pa.array(strings[i::3]), SEED) for i in range(3)]
    merged = parts[0].merge(*parts[1:])
    assert set(merged.keys.tolist()) <= set(range(8))
    assert dict(zip(merged.strings.to_pylist(), merged.counts.tolist(), strict=True)) == Counter(strings)


def test_what_is_no_text_or_no_string_is_refused() -> None:
    with pytest.raises(IdError, match=r"an id is no text .*; allowed: UTF-8"):
        StringCounts.of(pa.array([b"\xff"], pa.binary()), SEED)
    with pytest.raises(IdError, match="got a column of int64"):
        StringCounts.of(pa.array([1]), SEED)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5) | st.integers(2**63, 2**63 + 300), max_size=200))
def test_the_order_of_keys_is_that_of_a_stable_sort(keys: list[int]) -> None:
    array = np.array(keys, np.uint64)
    assert order_of(array).tolist() == np.argsort(array, kind="stable").tolist()


@pytest.mark.parametrize("alike", [10, 1000])
def test_hashes_of_a_range_and_keys_that_are_alike_are_ordered_too(alike: int) -> None:
    random = np.random.default_rng(1)
    hashes = random.integers(2**60, 2**60 + 2**44, 5000, np.uint64)
    for array in (hashes, np.append(hashes, np.full(alike, hashes[7])), np.zeros(0, np.uint64)):
        assert order_of(array).tolist() == np.argsort(array, kind="stable").tolist()
