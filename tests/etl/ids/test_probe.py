from __future__ import annotations

import numpy as np
import pytest

from sparsefeed.etl.ids.base import Base
from sparsefeed.etl.ids.keys import hash_ints, hash_strings
from sparsefeed.etl.ids.overlay import TOMBSTONE, Overlay
from sparsefeed.etl.ids.probe import Probe, row_of_key

TAIL, FIRST = 7, 9
EMPTY = Overlay.empty()


def probe_of(base: Base, overlay: Overlay = EMPTY) -> Probe:
    function = base.function.function
    tail = np.uint64(TAIL), np.int64(2), np.uint64(TAIL)
    return Probe(
        function, base.fingerprints, base.rows, overlay.entries, overlay.filter, np.uint64(3), *tail, np.uint64(2**40)
    )


def rows_of(probe: Probe, keys: np.ndarray) -> np.ndarray:
    rows = np.empty(len(keys), np.int64)
    probe.of_keys(keys, rows)
    return rows


def random_keys(num: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, num, np.uint64)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_rows_are_the_function_where_the_fingerprint_agrees_and_the_tail_elsewhere(bits: int) -> None:
    keys = random_keys(70_000, 0)
    base = Base.build(keys, bits)
    asked = np.concatenate([keys, random_keys(80_001, 1)])
    positions = base.function.query(asked)
    agree = base.fingerprints[positions] == asked.astype(base.fingerprints.dtype)
    expected = np.where(agree, positions + FIRST, 2 + (asked % np.uint64(TAIL)).astype(np.int64))
    assert (rows_of(probe_of(base), asked) == expected).all()
    assert agree[: len(keys)].all()


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("num", [0, 1, 700, 100_000])
def test_blocks_give_what_one_key_at_a_time_gives(num: int, bits: int) -> None:
    keys, new = random_keys(num, 0), random_keys(500, 1)
    changed = np.concatenate([keys[: num // 2 : 7], new])
    to = np.where(np.arange(len(changed)) % 3, np.arange(len(changed)) + 10**6, TOMBSTONE)
    for overlay in (Overlay.empty(), Overlay.empty().updated(changed, to)):
        probe = probe_of(Base.build(keys, bits), overlay)
        asked = np.concatenate([keys[:2000], new, random_keys(1501, 2)])
        assert rows_of(probe, asked).tolist() == [row_of_key(key, probe) for key in asked]


def test_the_overlay_wins_and_a_tombstone_sends_to_the_tail() -> None:
    keys = np.array([5, 6, 8], np.uint64)
    overlay = Overlay.empty().updated(np.array([5, 6, 7], np.uint64), np.array([100, TOMBSTONE, 101]))
    rows = rows_of(probe_of(Base.build(keys, 64), overlay), np.array([5, 6, 7, 8, 9], np.uint64))
    assert rows.tolist()[:3] == [100, 2 + 6 % TAIL, 101]
    assert FIRST <= rows[3] < FIRST + 3
    assert rows[4] == 2 + 9 % TAIL


@pytest.mark.parametrize("bits", [16, 64])
def test_kept_rows_are_read_and_one_that_an_altered_file_made_none_is_the_tails(bits: int) -> None:
    keys, own = random_keys(3000, 0), np.random.default_rng(1).permutation(3000) + FIRST
    probe = probe_of(Base.build(keys, bits).with_rows(keys, own))
    asked = np.concatenate([keys, random_keys(1001, 2)])
    assert rows_of(probe, keys).tolist() == own.tolist()
    assert rows_of(probe, asked).tolist() == [row_of_key(key, probe) for key in asked]
    fewer = probe._replace(num_rows=np.uint64(FIRST + 1000))
    expected = np.where(own < FIRST + 1000, own, 2 + (keys % np.uint64(TAIL)).astype(np.int64))
    assert rows_of(fewer, keys).tolist() == expected.tolist()
    assert [row_of_key(key, fewer) for key in keys] == expected.tolist()


def test_strings_and_integers_are_hashed_on_the_way() -> None:
    strings, integers = [f"member_{i}" for i in range(3000)], np.arange(-1500, 1500)
    for ids, keys in ((strings, hash_strings(strings, 3)[0]), (integers, hash_ints(integers, 3))):
        probe = probe_of(Base.build(keys[:2000], 16))
        rows = np.empty(3000, np.int64)
        if ids is strings:
            probe.of_strings(strings, rows)
        else:
            probe.of_ints(integers, rows)
        assert (rows == rows_of(probe, keys)).all()
        assert sorted(rows[:2000].tolist()) == list(range(FIRST, FIRST + 2000))


def test_a_map_of_no_keys_sends_all_to_the_tail() -> None:
    rows = rows_of(probe_of(Base.build(np.empty(0, np.uint64), 16)), np.array([0, 8, 2**64 - 1], np.uint64))
    assert rows.tolist() == [2, 3, 2 + (2**64 - 1) % TAIL]
