from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import hash_ints, hash_strings
from sparsefeed.etl.ids.keys import hash_bytes, over_strings

STRINGS = st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=30)


def reference(strings: list[str | None], seed: int) -> tuple[list[int], list[bool]]:
    return [xxhash.xxh64_intdigest(s.encode(), seed) if s else 0 for s in strings], [bool(s) for s in strings]


def as_lists(result: tuple[np.ndarray, np.ndarray]) -> tuple[list[int], list[bool]]:
    keys, valid = result
    assert (keys.dtype, valid.dtype) == (np.uint64, np.bool_)
    return keys.tolist(), valid.tolist()


@settings(max_examples=60, deadline=None)
@given(STRINGS, st.integers(0, 2**64 - 1), st.integers(0, 5), st.integers(0, 5))
def test_every_layout_hashes_as_the_xxhash_library_does(
    strings: list[str | None], seed: int, cut_start: int, cut_end: int
) -> None:
    whole = reference(strings, seed)
    as_bytes = [None if s is None else s.encode() for s in strings]
    boxed = np.empty(len(strings), object)
    boxed[:] = as_bytes
    array = pa.array(strings, pa.string())
    dictionary = array.dictionary_encode()
    layouts = [
        strings, as_bytes, boxed, array, array.cast(pa.large_string()), pa.array(as_bytes, pa.binary()),
        pa.array(as_bytes, pa.large_binary()), dictionary, pa.chunked_array([array[:3], array[3:]], pa.string()),
        pa.chunked_array([dictionary]),
    ]  # fmt: skip
    for layout in layouts:
        assert as_lists(hash_strings(layout, seed)) == whole
    stop = max(cut_start, len(strings) - cut_end)
    sliced = reference(strings[cut_start:stop], seed)
    for layout in (array, array.cast(pa.large_string()), dictionary):
        assert as_lists(hash_strings(layout.slice(cut_start, max(0, stop - cut_start)), seed)) == sliced


@pytest.mark.parametrize("length", [*range(1, 40), 63, 64, 65, 100, 1000])
def test_every_length_takes_its_path_through_the_hash_rightly(length: int) -> None:
    string = "".join(chr(33 + i * 7 % 90) for i in range(length))
    assert hash_strings([string], 99)[0][0] == xxhash.xxh64_intdigest(string.encode(), 99)


def test_a_million_strings_hash_on_several_threads_as_the_library_does_one_by_one() -> None:
    strings = [f"post_{i}" for i in range(1_000_000)]
    keys, valid = hash_strings(pa.array(strings), 3)
    assert keys.tolist() == [xxhash.xxh64_intdigest(s.encode(), 3) for s in strings]
    assert valid.all()


def test_a_null_with_bytes_behind_it_has_no_key() -> None:
    validity = pa.py_buffer(np.packbits([1, 0, 1], bitorder="little").tobytes())
    offsets, data = pa.py_buffer(np.array([0, 1, 5, 6], np.int32)), pa.py_buffer(b"aghij" + b"b")
    array = pa.Array.from_buffers(pa.string(), 3, [validity, offsets, data])
    assert as_lists(hash_strings(array, 0)) == reference(["a", None, "b"], 0)


def test_nulls_in_the_dictionary_and_in_its_codes_are_both_null() -> None:
    array = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2], pa.uint8()), pa.array(["a", None, "b"]))
    assert as_lists(hash_strings(array, 1)) == reference(["a", None, None, "b"], 1)


def test_a_code_type_too_narrow_for_one_more_value_is_no_trouble() -> None:
    words = [f"w{i}" for i in range(128)]
    array = pa.DictionaryArray.from_arrays(pa.array([127, None], pa.int8()), pa.array(words))
    assert as_lists(hash_strings(array, 1)) == reference(["w127", None], 1)


@pytest.mark.parametrize(
    "empty", [[], pa.array([], pa.string()), pa.chunked_array([], pa.string()), np.empty(0, object)]
)
def test_nothing_hashes_to_nothing(empty: object) -> None:
    assert as_lists(hash_strings(empty, 0)) == ([], [])


def test_a_column_of_nulls_alone_is_all_invalid() -> None:
    assert as_lists(hash_strings(pa.nulls(3), 0)) == ([0, 0, 0], [False, False, False])


@pytest.mark.parametrize("wrong", [pa.array([1, 2]), [1, 2], ["a", 3.5], pa.array([["a"]])])
def test_what_is_no_string_is_refused_with_what_is_allowed(wrong: object) -> None:
    with pytest.raises(IdError, match=r"got .* allowed: str"):
        hash_strings(wrong, 0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20), st.integers(0, 2**64 - 1))
def test_an_integer_hashes_as_its_eight_bytes(values: list[int], seed: int) -> None:
    expected = [xxhash.xxh64_intdigest(v.to_bytes(8, "little", signed=True), seed) for v in values]
    assert hash_ints(np.array(values, np.int64), seed).tolist() == expected


def test_integers_of_any_width_hash_alike() -> None:
    wide = hash_ints(np.array([-3, 0, 100], np.int64), 5)
    assert (hash_ints(np.array([-3, 0, 100], np.int8), 5) == wide).all()
    assert hash_ints(np.array([2**64 - 3], np.uint64), 5)[0] == wide[0]
    assert (hash_ints(np.array([-3, 9, 0, 9, 100], np.int32)[::2], 5) == wide).all()


def test_fractions_are_refused() -> None:
    with pytest.raises(IdError, match=r"float64 .*; allowed: integers"):
        hash_ints(np.array([1.5]), 0)


def test_offsets_outside_the_text_are_refused_before_a_kernel_follows_them() -> None:
    offsets = np.array([0, 2, 4], np.int32)
    wrong = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"abcd")])
    offsets[2] = 9  # as Arrow's own dictionary_decode may leave them beyond 2 GiB
    with pytest.raises(IdError, match=r"offsets, 0 to 9, lie outside its 4 bytes"):
        hash_strings(wrong, 0)


def test_a_dictionary_is_hashed_once_for_all_chunks_that_share_it_and_not_for_a_short_slice() -> None:
    words = pa.array([f"word_{i}" for i in range(20_000)])
    whole = pa.DictionaryArray.from_arrays(pa.array([19_999, None, 5] * 20_000, pa.int32()), words)
    expected, valid = hash_strings(whole, 1)
    sizes: list[int] = []

    def of_buffers(data: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray]:
        sizes.append(len(offsets) - 1)
        return (np.zeros(len(offsets) - 1),)

    chunks = pa.chunked_array([whole[i : i + 6000] for i in range(0, 60_000, 6000)])
    over_strings(chunks, of_buffers, (np.float64(0),))
    assert sizes == [20_000]
    assert as_lists(hash_strings(chunks, 1)) == (expected.tolist(), valid.tolist())
    sizes.clear()
    over_strings(whole[3:13], of_buffers, (np.float64(0),))
    assert sizes == [10]
    assert as_lists(hash_strings(whole[3:13], 1)) == (expected[3:13].tolist(), valid[3:13].tolist())


@settings(deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=30), st.integers(0, 2**64 - 1))
def test_bytes_hash_without_arrow_as_with_it(strings: list[bytes], seed: int) -> None:
    assert hash_bytes(strings, seed).tolist() == hash_strings(strings, seed)[0].tolist()
