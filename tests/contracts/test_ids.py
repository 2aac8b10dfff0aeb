"""Every sentence of docs/contracts/ids.md."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from sparsefeed.etl.ids import IdMap, Inverse, LastSeen, StringCounts, hash_ints, hash_strings
from sparsefeed.etl.ids.codes import rows_of
from tests.etl.ids.equal_keys import another_of_the_same_key

FIXTURES = Path(__file__).parent / "fixtures"
GOLDEN = json.loads((FIXTURES / "ids_golden.json").read_text("utf-8"))
SEED = GOLDEN["key_seed"]
TAIL = 8
FIRST = 2 + TAIL
IDS = [f"id_{i}" for i in range(100)]


def keys_of(*strings: str) -> np.ndarray:
    return hash_strings(list(strings), SEED)[0]


def build(strings: list[str] = IDS, counts: list[int] | None = None, /, **options: object) -> IdMap:
    given: dict = {"table": "post", "key_seed": SEED, "tail_rows": TAIL, **options}
    return IdMap.build(keys_of(*strings), np.array(counts or [1] * len(strings)), **given)


def test_0_rows_are_padding_null_tail_and_then_one_per_admitted_id() -> None:
    built = build()
    assert sorted(built.encode(IDS).tolist()) == list(range(FIRST, FIRST + 100))
    assert built.encode([None]).tolist() == [1]
    assert 2 <= built.encode(["unseen"])[0] < FIRST
    assert 0 not in built.encode([*IDS, None, "unseen"])


def test_1_a_key_is_the_xxh64_of_the_utf8_bytes() -> None:
    for string, key in GOLDEN["keys"].items():
        assert keys_of(string)[0] == int(key, 16) == xxhash.xxh64_intdigest(string.encode(), SEED)
    assert hash_ints(np.array(GOLDEN["ints"]), SEED).tolist() == [int(key, 16) for key in GOLDEN["int_keys"]]
    keys, valid = hash_strings([None, "", "a"], SEED)
    assert keys[:2].tolist() == [0, 0]
    assert valid.tolist() == [False, False, True]


def test_2_an_id_is_admitted_by_its_count_and_of_too_many_the_most_frequent_ties_by_key() -> None:
    strings, counts = ["rare", "often", "tie_1", "tie_2", "tie_3"], [1, 9, 5, 5, 5]
    kept = build(strings, counts, min_count=2)
    assert kept.known(kept.encode(strings)).tolist() == [False, True, True, True, True]
    three = build(strings, counts, min_count=2, max_ids=3)
    by_key = sorted(["tie_1", "tie_2", "tie_3"], key=lambda s: int(keys_of(s)[0]))
    assert three.known(three.encode(["often", *by_key])).tolist() == [True, True, True, False]


def test_2_strings_are_counted_and_not_keys_however_many_partitions_they_come_from() -> None:
    first = "post-00000000001"
    other = another_of_the_same_key(first, SEED).decode()
    parts = [StringCounts.of(strings, SEED) for strings in ([first, other, "x"], [first, "x"], [first, other])]
    for order in (parts, parts[::-1]):
        counted = order[0].merge(*order[1:]).at_least(3)
        assert counted.strings.to_pylist() == [first]  # its key was counted five times
        assert counted.counts.tolist() == [3]


def test_3_an_unseen_or_rare_id_is_two_plus_key_mod_t() -> None:
    built = build(["a", "rare"], [5, 1], min_count=2)
    for string in ("rare", "unseen"):
        assert built.encode([string])[0] == 2 + xxhash.xxh64_intdigest(string.encode(), SEED) % TAIL
    # The fingerprint is the key's low bits: another key that has them and falls on the same position passes.
    function = build(["a"])
    key = keys_of("a")
    assert function.known(function.lookup(key ^ np.uint64(1 << 40))).all()
    assert not function.known(function.lookup(key ^ np.uint64(1))).any()


def test_4_the_overlay_is_asked_first_and_a_tombstone_sends_its_key_to_the_tail() -> None:
    built = build()
    moved = built.upsert(keys_of("id_0"), np.array([500]))
    assert moved.encode(["id_0"]).tolist() == [500]
    assert built.remove(keys_of("id_0")).encode(["id_0"])[0] == 2 + int(keys_of("id_0")[0]) % TAIL


def test_5_add_and_remove_move_no_other_row_and_fold_tells_the_old_rows() -> None:
    built = build()
    grown, rows = built.add(keys_of("new_1", "id_7", "new_2"))
    assert rows.tolist() == [FIRST + 100, built.encode(["id_7"])[0], FIRST + 101]
    smaller = grown.remove(keys_of("id_0", "new_1"))
    stay = [*IDS[1:], "new_2"]
    assert (smaller.encode(stay) == grown.encode(stay)).all()
    assert (grown.encode(IDS) == built.encode(IDS)).all()
    folded, old_row = smaller.fold()
    assert old_row.dtype == np.int64
    assert len(old_row) == folded.capacity_rows
    assert (old_row[folded.encode(stay)] == smaller.encode(stay)).all()
    assert old_row[:FIRST].tolist() == list(range(FIRST))
    assert sorted(folded.encode(stay).tolist()) == list(range(FIRST, folded.num_rows))
    assert (old_row[folded.num_rows :] == -1).all()
    assert len(folded.overlay) == 0


def test_5_merged_builds_such_a_base_too_and_moves_no_row(tmp_path: Path) -> None:
    grown, _ = build().add(keys_of("new_1", "new_2"))
    smaller = grown.remove(keys_of("id_0", "new_1"))
    smaller.merged().save(tmp_path)
    stay = [*IDS[1:], "new_2"]
    for merged in (smaller.merged(), IdMap.load(tmp_path)):
        assert len(merged.overlay) == 0
        assert (merged.encode(stay) == smaller.encode(stay)).all()
        assert (merged.own_rows(["id_0", "new_1"]) == -1).all()
        assert (merged.num_rows, merged.num_admitted) == (smaller.num_rows, smaller.num_admitted)
        assert merged.base.rows.dtype == np.uint32
        positions = merged.base.positions(keys_of(*stay))
        assert (merged.base.rows[positions] == smaller.encode(stay)).all()
    again, rows = IdMap.load(tmp_path).add(keys_of("new_3", "id_7"))
    assert rows.tolist() == [smaller.num_rows, smaller.encode(["id_7"])[0]]
    assert (again.merged().encode(stay) == smaller.encode(stay)).all()
    folded, old_row = again.fold()
    assert (old_row[folded.encode(stay)] == smaller.encode(stay)).all()


def test_6_admitted_strings_with_equal_keys_are_listed_and_told_apart(tmp_path: Path) -> None:
    rarer, frequent = GOLDEN["collision"]
    assert rarer != frequent
    assert xxhash.xxh64_intdigest(rarer.encode(), SEED) == xxhash.xxh64_intdigest(frequent.encode(), SEED)
    strings = [*IDS, rarer, frequent]
    built = build(strings, [1] * 100 + [3, 4], strings=pa.array(strings))
    built.save(tmp_path)
    for id_map in (built, IdMap.load(tmp_path)):
        rows = id_map.encode(strings)
        assert sorted(rows.tolist()) == list(range(FIRST, FIRST + 102))
        assert id_map.lookup(keys_of(rarer))[0] == id_map.encode([frequent])[0]
    listed = json.loads((tmp_path / "id_map.json").read_text("utf-8"))["exceptions"]
    assert listed == {GOLDEN["keys"][rarer]: {s: int(built.encode([s])[0]) for s in (frequent, rarer)}}


def test_7_unseen_keys_pass_at_two_to_the_minus_bits_until_they_are_admitted() -> None:
    rng = np.random.default_rng(0)
    unseen = rng.integers(0, 2**64, 200_000, np.uint64)
    built = build(fingerprint_bits=8)
    passed = unseen[built.known(built.lookup(unseen))]
    assert abs(len(passed) - 200_000 / 256) < 5 * (200_000 / 256) ** 0.5
    admitted, rows = built.add(passed)
    assert len(np.unique(rows)) == len(passed)
    assert (rows >= built.num_rows).all()
    assert (admitted.lookup(passed) == rows).all()


def test_8_a_key_finds_its_id_in_every_map_of_the_seed() -> None:
    keys = keys_of(*IDS)
    for id_map in (build(), build().fold()[0], build(list(reversed(IDS)), fingerprint_bits=64)):
        assert (id_map.lookup(keys) == id_map.encode(IDS)).all()


def test_9_decode_gives_back_every_admitted_string() -> None:
    strings = [*IDS, *GOLDEN["collision"]]
    built = build(strings, strings=pa.array(strings))
    assert Inverse.build(built, pa.array(strings)).decode(built.encode(strings)).to_pylist() == strings


def test_9_looking_up_never_loads_an_inverse(tmp_path: Path) -> None:
    build().save(tmp_path)
    assert not list(tmp_path.glob("*inverse*"))
    assert (IdMap.load(tmp_path).encode(IDS) == build().encode(IDS)).all()


def test_10_a_map_is_a_header_and_arrays_named_by_their_digest(tmp_path: Path) -> None:
    build().save(tmp_path)
    header = json.loads((tmp_path / "id_map.json").read_text())
    assert (header["format"], header["key_seed"], header["num_rows"]) == ("sparsefeed.id_map/2", SEED, FIRST + 100)
    for name, entry in header["arrays"].items():
        content = (tmp_path / entry["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
        assert entry["file"] == f"{name}-{entry['sha256'][:16]}.npy"
        assert entry["bytes"] == len(content)
    assert {p.name for p in tmp_path.iterdir()} == {"id_map.json", *(e["file"] for e in header["arrays"].values())}
    base = IdMap.load(tmp_path).base
    assert isinstance(base.fingerprints.base, np.memmap)


def test_10_a_reader_sees_the_old_map_or_the_new_one(tmp_path: Path) -> None:
    old = build()
    old.save(tmp_path)
    held = IdMap.load(tmp_path)
    old.remove(keys_of(*IDS[:50])).fold()[0].save(tmp_path)
    assert (held.encode(IDS) == old.encode(IDS)).all()
    assert IdMap.load(tmp_path).num_admitted == 50


def test_10_a_map_written_by_an_earlier_version_is_still_read() -> None:
    golden = IdMap.load(FIXTURES / "ids_map", mmap=False)
    rows = json.loads((FIXTURES / "ids_map_rows.json").read_text("utf-8"))
    assert golden.encode(GOLDEN["map"]["strings"]).tolist() == rows


def test_11_capacity_is_the_smallest_64_times_a_power_of_two_and_bounds_every_row() -> None:
    for num, capacity in ((54, 64), (55, 128), (100, 128)):
        built = build(IDS[:num])
        assert (built.num_rows, built.capacity_rows) == (FIRST + num, capacity)
        assert built.lookup(np.random.default_rng(0).integers(0, 2**64, 10_000, np.uint64)).max() < capacity
    grown, rows = build(IDS[:54]).add(keys_of("one more"))
    assert rows.max() == 64
    assert grown.capacity_rows == 128


def test_12_ids_unseen_since_a_day_are_pruned_and_a_fold_changes_nothing(tmp_path: Path) -> None:
    today = 20_000
    older, newer = LastSeen.of(keys_of(*IDS[:60]), today - 9), LastSeen.of(keys_of(*IDS[50:90]), today)
    last_seen = older.merge(newer)
    assert last_seen.keys.nbytes + last_seen.days.nbytes == 12 * 90
    last_seen.save(tmp_path)
    assert (tmp_path / "last_seen.json").exists()
    for id_map in (build(), build().fold()[0]):
        pruned = id_map.remove(LastSeen.load(tmp_path).unseen_since(today - 7))
        assert pruned.known(pruned.encode(IDS)).tolist() == [False] * 50 + [True] * 50  # the last ten are not listed


def test_the_core_imports_numpy_pyarrow_and_numba_alone() -> None:
    heavy = ["torch", "dask", "pandas", "nvtabular", "pydantic"]
    code = f"import sys, sparsefeed.etl.ids; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_13_an_id_of_a_paired_tail_is_a_code_of_two_rows_and_an_admitted_one_is_one() -> None:
    paired = build(paired_tail=True, fingerprint_bits=64)
    strings = [f"unseen {i}" for i in range(200)]
    half = TAIL // 2
    codes = (keys_of(*strings) % np.uint64(half**2)).astype(np.int64)
    ids = paired.encode(strings)
    assert ids.tolist() == (codes - half**2).tolist()
    assert (ids < 0).all()
    first, second = rows_of(ids, TAIL)
    assert first.tolist() == (2 + codes // half).tolist()
    assert second.tolist() == (2 + half + codes % half).tolist()
    assert paired.encode(IDS).tolist() == build(fingerprint_bits=64).encode(IDS).tolist()
    assert paired.encode([None]).tolist() == [1]
