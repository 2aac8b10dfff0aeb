from __future__ import annotations

from functools import reduce
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, LastSeen, hash_strings
from sparsefeed.etl.ids.array_folder import write_array_folder

KEYS = st.integers(0, 12) | st.integers(2**64 - 3, 2**64 - 1)
DAYS = st.lists(st.tuples(st.lists(KEYS, max_size=12), st.integers(0, 40)), min_size=1, max_size=6)


def seen(keys: list[int], day: int) -> LastSeen:
    return LastSeen.of(np.array(keys, np.uint64), day)


def as_dict(last_seen: LastSeen) -> dict[int, int]:
    assert (last_seen.keys.dtype, last_seen.days.dtype) == (np.uint64, np.int32)
    assert (last_seen.keys[1:] > last_seen.keys[:-1]).all()
    assert len(last_seen) == len(last_seen.days)
    return dict(zip(last_seen.keys.tolist(), last_seen.days.tolist(), strict=True))


@settings(max_examples=80, deadline=None)
@given(DAYS, st.randoms())
def test_merging_keeps_the_latest_day_in_any_order_and_grouping(
    days: list[tuple[list[int], int]], random: object
) -> None:
    truth: dict[int, int] = {}
    for keys, day in days:
        truth |= {key: max(day, truth.get(key, 0)) for key in keys}
    parts = [seen(keys, day) for keys, day in days]
    assert as_dict(parts[0].merge(*parts[1:])) == truth
    random.shuffle(parts)  # type: ignore[attr-defined]
    assert as_dict(reduce(LastSeen.merge, parts)) == truth
    assert as_dict(parts[0].merge(parts[0].merge(*parts[1:]))) == truth


@settings(max_examples=60, deadline=None)
@given(DAYS, st.integers(0, 41), st.lists(KEYS, max_size=6))
def test_what_was_unseen_is_older_and_what_is_forgotten_is_gone(
    days: list[tuple[list[int], int]], day: int, forgotten: list[int]
) -> None:
    last_seen = reduce(LastSeen.merge, [seen(keys, d) for keys, d in days])
    truth = as_dict(last_seen)
    assert last_seen.unseen_since(day).tolist() == sorted(key for key, d in truth.items() if d < day)
    assert as_dict(last_seen.without(np.array(forgotten, np.uint64))) == {
        key: d for key, d in truth.items() if key not in forgotten
    }


@pytest.mark.parametrize("day", [-1, 1_700_000_000, 1_700_000_000_000])
def test_seconds_are_no_days(day: int) -> None:
    with pytest.raises(IdError, match=rf"last_seen: day is {day}; allowed: days since 1970-01-01, .* divide seconds"):
        seen([1], day)


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("keys", [[], [7, 2**64 - 1, 0]])
def test_what_was_saved_is_loaded(tmp_path: Path, keys: list[int], mmap: bool) -> None:
    saved = seen(keys, 20_000).merge(seen(keys[:1], 20_001))
    saved.save(tmp_path)
    loaded = LastSeen.load(tmp_path, mmap)
    assert as_dict(loaded) == as_dict(saved)
    assert as_dict(loaded.merge(seen([5], 3))) == {**as_dict(saved), 5: 3}


def test_an_id_takes_twelve_bytes(tmp_path: Path) -> None:
    last_seen = seen(list(range(10_000)), 20_000)
    last_seen.save(tmp_path)
    assert last_seen.keys.nbytes + last_seen.days.nbytes == 120_000
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npy")) < 121_000


def test_a_truncated_altered_missing_or_foreign_folder_is_refused(tmp_path: Path) -> None:
    seen(list(range(1000)), 20_000).save(tmp_path)
    days = next(tmp_path.glob("days-*.npy"))
    whole = days.read_bytes()
    days.write_bytes(whole[:-4])
    with pytest.raises(IdError, match=r"days-.*npy: truncated or extended: 4124 bytes, 4128 written; restore"):
        LastSeen.load(tmp_path)
    days.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(IdError, match=r"days-.*npy: altered"):
        LastSeen.load(tmp_path)
    days.unlink()
    with pytest.raises(IdError, match=r"days-.*npy: missing"):
        LastSeen.load(tmp_path)
    with pytest.raises(IdError, match=r"last_seen.json: cannot be read"):
        LastSeen.load(tmp_path / "elsewhere")
    keys = np.arange(3, dtype=np.uint64)
    for arrays in ({}, {"keys": keys}, {"keys": keys, "days": keys}, {"keys": keys, "days": np.zeros(2, np.int32)}):
        write_array_folder(tmp_path, "last_seen.json", {"format": "sparsefeed.last_seen/1"}, arrays)
        with pytest.raises(IdError, match=r"last_seen.json: its arrays are .*; allowed: keys uint64 and days int32"):
            LastSeen.load(tmp_path)


def test_ten_days_of_new_and_forgotten_ids_are_as_a_dictionary_tells(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    names = np.array([f"id_{i}" for i in range(600)])
    keep_days, start = 3, 20_000
    id_map = IdMap.build(
        np.empty(0, np.uint64), np.empty(0, np.int64), table="post", key_seed=0, tail_rows=5, fingerprint_bits=64
    )
    last_seen = seen([], start)
    truth: dict[str, int] = {}
    num_pruned = 0
    for day in range(start, start + 10):
        # Posts come, stay for a while, and go; some come back.
        middle = 40 * (day - start) + 60
        today = np.unique(names[np.clip(rng.normal(middle, 40, 80).astype(int), 0, 599)]).tolist()
        before = dict(zip(truth, id_map.encode(list(truth)).tolist(), strict=True))
        keys, _ = hash_strings(today, 0)
        id_map, _ = id_map.add(keys)
        last_seen = last_seen.merge(LastSeen.of(keys, day))
        truth |= dict.fromkeys(today, day)
        gone = last_seen.unseen_since(day - keep_days)
        id_map, last_seen = id_map.remove(gone), last_seen.without(gone)
        num_pruned += len(gone)
        truth = {name: last for name, last in truth.items() if last >= day - keep_days}

        assert len(last_seen) == id_map.num_admitted == len(truth)
        assert (id_map.own_rows(list(truth)) >= id_map.first_row).all()
        rest = [name for name in names.tolist() if name not in truth]
        assert (id_map.own_rows(rest) == -1).all()
        stayed = [name for name in truth if name in before]
        assert id_map.encode(stayed).tolist() == [before[name] for name in stayed]
        if day == start + 5:
            folded, old_row = id_map.fold()
            assert (old_row[folded.encode(list(truth))] == id_map.encode(list(truth))).all()
            folded.save(tmp_path / "ids")
            last_seen.save(tmp_path / "last_seen")
            id_map, last_seen = IdMap.load(tmp_path / "ids"), LastSeen.load(tmp_path / "last_seen")
    assert num_pruned > 100
