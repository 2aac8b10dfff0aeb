from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, hash_ints, hash_strings
from sparsefeed.etl.ids.codes import num_codes, rows_of, vectors_of

TAIL = 10
IDS = [f"id_{i}" for i in range(500)]


def build(**options: object) -> IdMap:
    given: dict = {"table": "post", "key_seed": 3, "tail_rows": TAIL, "paired_tail": True, **options}
    return IdMap.build(hash_strings(IDS, 3)[0], np.ones(len(IDS), np.int64), **given)


def unseen(num: int) -> list[str]:
    return [f"unseen_{i}" for i in range(num)]


def test_each_code_is_two_rows_one_of_each_half_and_no_two_codes_the_same() -> None:
    codes = np.arange(-num_codes(TAIL), 0)
    first, second = rows_of(codes, TAIL)
    assert len(codes) == 25
    assert set(first) == set(range(2, 7))
    assert set(second) == set(range(7, 12))
    assert len(set(zip(first, second, strict=True))) == 25


def test_other_ids_are_one_row() -> None:
    ids = np.array([0, 1, 2, 11, 12, 10**12])
    first, second = rows_of(ids, TAIL)
    assert first.tolist() == ids.tolist()
    assert not second.any()


def test_an_id_reads_the_sum_of_its_two_rows() -> None:
    table = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    got = vectors_of(table, np.array([-25, 13, -1, 1]), TAIL)
    np.testing.assert_array_equal(got, [table[2] + table[7], table[13], table[6] + table[11], table[1]])


def test_an_unseen_id_is_the_quotient_and_the_remainder_of_its_key() -> None:
    strings = unseen(2000)
    keys, _ = hash_strings(strings, 3)
    ids = build(fingerprint_bits=64).encode(strings)
    first, second = rows_of(ids, TAIL)
    half = np.uint64(TAIL // 2)
    assert first.tolist() == (2 + keys // half % half).astype(np.int64).tolist()
    assert second.tolist() == (2 + TAIL // 2 + keys % half).astype(np.int64).tolist()
    assert len(np.unique(ids)) == 25


def test_strings_integers_and_keys_get_the_same_code() -> None:
    id_map = build(fingerprint_bits=64)
    numbers = np.arange(1000)
    by_number = id_map.encode(numbers)
    assert by_number.tolist() == id_map.lookup(hash_ints(numbers, 3)).tolist()
    assert (by_number < 0).all()
    assert not id_map.known(by_number).any()
    assert id_map.encode(pa.array([None, ""])).tolist() == [1, 1]


def test_admitted_ids_have_the_rows_they_have_beside_a_hashed_tail() -> None:
    assert build().encode(IDS).tolist() == build(paired_tail=False).encode(IDS).tolist()


def test_a_removed_id_is_a_code_and_one_that_is_added_a_row_through_folds_and_files(tmp_path: Path) -> None:
    id_map, new = build(fingerprint_bits=64), unseen(3)
    before = id_map.encode(new)
    id_map, rows = id_map.add(hash_strings(new[:2], 3)[0])
    id_map = id_map.remove(hash_strings(IDS[:1], 3)[0])
    id_map.save(tmp_path / "map")
    folded, _ = id_map.fold()
    for one in (id_map, IdMap.load(tmp_path / "map"), IdMap.load(tmp_path / "map", mmap=False)):
        assert one.encode(new).tolist() == [*rows, before[2]]
        assert one.paired_tail
        assert one.encode(IDS[:1])[0] < 0
    assert folded.encode(new)[2] == before[2]
    assert (folded.encode(new)[:2] >= folded.first_row).all()


def test_the_header_of_a_hashed_map_is_what_it_was(tmp_path: Path) -> None:
    build(paired_tail=False).save(tmp_path / "map")
    assert "paired" not in (tmp_path / "map" / "id_map.json").read_text()
    assert not IdMap.load(tmp_path / "map").paired_tail


@pytest.mark.parametrize(
    ("rows", "message"), [(2, "from 4 to 92680"), (7, "two halves, give an even"), (92_682, "from 4 to 92680")]
)
def test_a_tail_that_has_no_halves_is_refused(rows: int, message: str) -> None:
    with pytest.raises(IdError, match=f"tail_rows is {rows}.*{message}"):
        build(tail_rows=rows)


def test_codes_of_the_largest_tail_are_told_apart_by_both_rows() -> None:
    codes = num_codes(92_680)
    assert codes < 2**31
    first, second = rows_of(np.array([-codes, -1]), 92_680)
    assert (first.tolist(), second.tolist()) == ([2, 2 + 46_339], [46_342, 46_342 + 46_339])
