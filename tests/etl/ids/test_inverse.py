from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, Inverse, hash_strings

TAIL = 4
TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), unique=True, max_size=25)


def build(strings: list[str], **options: object) -> IdMap:
    keys, _ = hash_strings(strings, 1)
    given_: dict = {"table": "post", "key_seed": 1, "tail_rows": TAIL, **options}
    return IdMap.build(keys, np.ones(len(keys), np.int64), **given_)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_decoding_gives_every_admitted_string_back(strings: list[str], random: object) -> None:
    built = build(strings)
    others = ["never admitted", None, ""]
    shuffled = [*strings, *(o for o in others if o not in strings)]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    inverse = Inverse.build(built, pa.array(shuffled, pa.string()))
    assert inverse.decode(built.encode(strings)).to_pylist() == strings


def test_padding_null_and_tail_have_no_string() -> None:
    built = build(["a"])
    decoded = Inverse.build(built, pa.array(["a"])).decode(np.arange(2 + TAIL + 1))
    assert decoded.type == pa.large_string()
    assert decoded.to_pylist() == [None] * (2 + TAIL) + ["a"]


def test_a_string_the_base_takes_for_another_does_not_take_its_place() -> None:
    strings = [f"id_{i}" for i in range(200)]
    built = build(strings, fingerprint_bits=8)
    strangers = [f"stranger_{i}" for i in range(5000)]
    assert built.known(built.encode(strangers)).any()
    inverse = Inverse.build(built, pa.array([*strings, *strangers]))
    assert inverse.decode(built.encode(strings)).to_pylist() == strings


@pytest.mark.parametrize(
    "strings",
    [
        pa.array(["b", "a"], pa.large_string()),
        pa.array(["x", "b", "a", "x"]).slice(1, 2),
        pa.array(["b", "a", "b"]).dictionary_encode(),
        pa.chunked_array([["b"], ["a"]]),
        pa.chunked_array([pa.array(["b"]).dictionary_encode(), pa.array(["a"]).dictionary_encode()]),
    ],
)
def test_every_layout_of_strings_will_do(strings: pa.Array) -> None:
    built = build(["a", "b"])
    assert Inverse.build(built, strings).decode(built.encode(["b", "a"])).to_pylist() == ["b", "a"]


def test_after_changes_and_a_fold_the_old_inverse_and_the_new_strings_make_the_new_one() -> None:
    built = build(["a", "b"])
    inverse = Inverse.build(built, pa.array(["a", "b"]))
    changed = built.add(hash_strings(["c"], 1)[0])[0].remove(hash_strings(["a"], 1)[0])
    known = pa.concat_arrays([inverse.decode(np.arange(built.num_rows)), pa.array(["c"], pa.large_string())])
    grown = Inverse.build(changed, known)
    assert grown.decode(changed.encode(["b", "c", "a"])).to_pylist() == ["b", "c", None]
    assert grown.decode(built.encode(["a"])).to_pylist() == [None]
    folded, _ = changed.fold()
    assert Inverse.build(folded, known).decode(folded.encode(["c", "b"])).to_pylist() == ["c", "b"]


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("strings", [[], ["a"], ["a", "Zürich", "日本"]])
def test_a_saved_inverse_decodes_as_the_one_that_was_saved(tmp_path: Path, strings: list[str], mmap: bool) -> None:
    built = build(strings)
    Inverse.build(built, pa.array(strings, pa.string())).save(tmp_path)
    loaded = Inverse.load(tmp_path, mmap)
    assert loaded.table == "post"
    assert loaded.decode(built.encode([*strings, None])).to_pylist() == [*strings, None]


@pytest.mark.parametrize("row", [-1, 2 + TAIL + 1])
def test_a_row_of_no_map_is_refused(row: int) -> None:
    inverse = Inverse.build(build(["a"]), pa.array(["a"]))
    with pytest.raises(IdError, match=rf"inverse/post: row {row} is not in \[0, 7\)"):
        inverse.decode(np.array([0, row]))


def test_the_folder_of_a_map_is_not_read_as_an_inverse(tmp_path: Path) -> None:
    build(["a"]).save(tmp_path)
    with pytest.raises(IdError, match=r"inverse.json: cannot be read"):
        Inverse.load(tmp_path)


def test_a_dictionary_whose_text_would_exceed_2_gib_is_not_decoded() -> None:
    ids = pa.array(["0123456789abcdef" * 2 + f"{i:04d}" for i in range(1000)])
    built = build(ids.to_pylist())
    codes = pa.array(np.arange(70_000_000, dtype=np.int32) % 1000)
    inverse = Inverse.build(built, pa.DictionaryArray.from_arrays(codes, ids))
    assert inverse.decode(built.encode(ids)).to_pylist() == ids.to_pylist()


def test_chunks_of_dictionaries_that_arrow_cannot_unify_are_read_one_by_one() -> None:
    chunks = [
        pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), pa.array([f"{c}{i}" for i in range(100)]))
        for c in "ab"
    ]
    ids = pa.chunked_array(chunks)
    built = build(ids.to_pylist())
    assert Inverse.build(built, ids).decode(built.encode(ids)).to_pylist() == ids.to_pylist()
