"""Keys and strings chosen to do harm: alike in their low bits, their high bits, their part or their bucket."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numba import njit

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, MinimalPerfectHash, hash_ints, hash_strings
from sparsefeed.etl.ids.overlay import Overlay
from sparsefeed.etl.ids.slots import bucket_of, mix, part_of
from tests.children import ask_child

TAIL = 5
FIRST = 2 + TAIL
NUM = 3000
MAX_KEY = 2**64 - 1
COUNT = np.arange(NUM, dtype=np.uint64)
GOLDEN = 0x9E3779B97F4A7C15  # what multiplicative hashes multiply by
RANDOM = np.random.default_rng(0).integers(0, 2**64, 3_000_000, np.uint64)


def shifted(bits: int) -> np.ndarray:
    return COUNT << np.uint64(bits)


KEY_SETS: dict[str, np.ndarray] = {
    "sequential": COUNT,
    "the last": np.uint64(MAX_KEY) - COUNT,
    "about the sign": COUNT + np.uint64(2**63 - NUM // 2),
    **{f"multiples of 2^{bits}": shifted(bits) for bits in (1, 4, 8, 16, 20, 31, 32, 33, 48, 52)},
    "low 16 bits equal": shifted(16) + np.uint64(0xBEEF),
    "low 32 bits equal": shifted(32) + np.uint64(0xDEADBEEF),
    "low 52 bits equal": shifted(52) + np.uint64(1),
    "high 32 bits equal": COUNT + np.uint64(0xDEADBEEF << 32),
    "high and low bits equal": shifted(24) + np.uint64((0xABC << 52) + 0xABC),
    "one or two bits": np.array(sorted({1 << i | 1 << j for i in range(64) for j in range(64)}), np.uint64),
    "all but one or two bits": ~np.array(sorted({1 << i | 1 << j for i in range(64) for j in range(64)}), np.uint64),
    "sequential after a multiplicative hash": COUNT * np.uint64(pow(GOLDEN, -1, 2**64)),
    "multiples of the golden ratio": COUNT * np.uint64(GOLDEN),
    "squares": COUNT * COUNT,
    "the ends": np.array([0, 1, MAX_KEY - 1, MAX_KEY], np.uint64),
    "zero": np.array([0], np.uint64),
    "the largest": np.array([MAX_KEY], np.uint64),
}  # fmt: skip


def build(keys: np.ndarray, bits: int = 16) -> IdMap:
    ones = np.ones(len(keys), np.int64)
    return IdMap.build(keys, ones, table="post", key_seed=0, tail_rows=TAIL, fingerprint_bits=bits)


def is_dense(rows: np.ndarray, first: int) -> bool:
    return bool((np.sort(rows) == np.arange(first, first + len(rows))).all())


@pytest.mark.parametrize("kind", KEY_SETS)
@pytest.mark.parametrize("seed", [0, 1, MAX_KEY])
def test_a_function_of_such_keys_is_one_to_one(kind: str, seed: int) -> None:
    keys = KEY_SETS[kind]
    assert is_dense(MinimalPerfectHash.build(keys, seed).query(keys), 0)


@pytest.mark.parametrize("kind", KEY_SETS)
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_such_keys_have_rows_of_their_own_from_the_base_the_overlay_and_after_a_fold(kind: str, bits: int) -> None:
    keys = KEY_SETS[kind]
    early, late = keys[::2], keys[1::2]
    built = build(early, bits)
    before = built.lookup(early)
    grown, rows = built.add(late)
    assert is_dense(before, FIRST)
    assert (grown.lookup(early) == before).all()
    assert rows.tolist() == list(range(built.num_rows, built.num_rows + len(late)))
    assert (grown.lookup(late) == rows).all()
    gone = grown.remove(early)
    assert (gone.lookup(early) == 2 + (early % np.uint64(TAIL)).astype(np.int64)).all()
    assert (gone.lookup(late) == rows).all()
    assert is_dense(gone.fold()[0].lookup(late), FIRST)


@pytest.mark.parametrize("kind", KEY_SETS)
def test_with_64_bits_no_such_key_is_taken_for_another(kind: str) -> None:
    keys = KEY_SETS[kind]
    strangers = np.setdiff1d(np.concatenate([keys + np.uint64(NUM), ~keys, keys ^ np.uint64(1 << 63)]), keys)
    rows = build(keys, 64).lookup(strangers)
    assert (rows == 2 + (strangers % np.uint64(TAIL)).astype(np.int64)).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(
    "keys_of",
    [
        lambda numbers: hash_ints(numbers, 0),
        lambda numbers: hash_ints(numbers << 40, 0),
        lambda numbers: hash_strings([f"{'https://example.com/posts/' * 3}{n}" for n in numbers], 0)[0],
        lambda numbers: hash_strings([f"{n:08d}/the/same/end" for n in numbers], 0)[0],
    ],
    ids=["sequential", "equal low bits", "a common prefix", "a common suffix"],
)
def test_ids_alike_are_falsely_accepted_no_more_often_than_stated(
    keys_of: Callable[[np.ndarray], np.ndarray], bits: int
) -> None:
    built = build(keys_of(np.arange(20_000)), bits)
    num_unseen = 400_000
    accepted = np.count_nonzero(built.known(built.lookup(keys_of(np.arange(20_000, 20_000 + num_unseen)))))
    expected = num_unseen / 2**bits
    assert abs(accepted - expected) < 3 * expected**0.5


@pytest.mark.parametrize("length", [1, 30, 31, 32, 33, 63, 64, 65, 1000])
def test_strings_with_a_long_common_prefix_or_suffix_have_rows_of_their_own(length: int) -> None:
    strings = ["x" * length + f"{i:04x}" for i in range(2000)]
    strings += [f"{i:04x}" + "x" * length for i in range(2000)]
    strings += ["x" * i for i in range(1, length)] + ["\0" * i for i in range(1, length)]
    assert is_dense(build(hash_strings(strings, 0)[0]).encode(strings), FIRST)


# -------------------------------------------------------------------------- keys chosen against the function


@njit
def places_of(keys: np.ndarray, seed: np.uint64, num_parts: np.uint64, num_buckets: np.uint64) -> tuple[Any, Any]:
    parts, buckets = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        hashed = mix(keys[i], seed)
        parts[i], buckets[i] = part_of(hashed, num_parts), bucket_of(hashed, num_buckets)
    return parts, buckets


def places(num_parts: int, num_buckets: int) -> tuple[np.ndarray, np.ndarray]:
    """Parts and buckets of RANDOM under the seed that a map is built with first."""
    return places_of(RANDOM, np.uint64(0), np.uint64(num_parts), np.uint64(num_buckets))


def num_positions_out_of_range(function: MinimalPerfectHash) -> int:
    positions = function.query(RANDOM)
    return int(np.count_nonzero((positions < 0) | (positions >= function.num_keys)))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_keys", [70_000, 150_000, 300_000])
def test_keys_that_all_fall_into_one_part_are_built_or_refused_and_strangers_stay_in_range(num_keys: int) -> None:
    keys = RANDOM[places(num_parts=8, num_buckets=1)[0] == 0][:num_keys]
    assert len(keys) == num_keys
    function = MinimalPerfectHash.build(keys)
    assert is_dense(function.query(keys), 0)
    assert ask_child(lambda: num_positions_out_of_range(function)) == (0, 0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("num_parts", [2, 3, 5, 8])
def test_a_part_that_no_key_falls_into_sends_strangers_to_positions_in_range(num_parts: int) -> None:
    # As many keys as make this many parts, of 32,768 or of 65,536 keys each.
    for keys_per_part in (32_768, 65_536):
        keys = RANDOM[places(num_parts, num_buckets=1)[0] != num_parts - 1][: num_parts * keys_per_part]
        function = MinimalPerfectHash.build(keys)
        assert is_dense(function.query(keys), 0)
        assert ask_child(lambda function=function: num_positions_out_of_range(function)) == (0, 0)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("num_alike", "num_keys"), [(10, 10), (100, 100), (100, 3000), (1000, 30_000), (30_000, 30_000)]
)
def test_keys_that_fall_into_one_bucket_are_built(num_alike: int, num_keys: int) -> None:
    buckets = places(num_parts=1, num_buckets=int(num_keys / 3.4) + 1)[1]
    alike, others = RANDOM[buckets == 0][:num_alike], RANDOM[buckets != 0][: num_keys - num_alike]
    keys = np.concatenate([alike, others])
    assert len(keys) == num_keys
    assert is_dense(MinimalPerfectHash.build(keys).query(keys), 0)


@pytest.mark.timeout(60)
def test_one_key_a_hundred_thousand_times_is_refused_at_once() -> None:
    for others in (RANDOM[:0], RANDOM[:100_000]):
        keys = np.concatenate([np.full(100_000, 12345, np.uint64), others])
        with pytest.raises(IdError, match=r"key 0x0000000000003039 is given 100000 times"):
            MinimalPerfectHash.build(keys)


# --------------------------------------------------------------------------- keys chosen against the overlay


def seconds(action: Callable[[], object]) -> float:
    """The quickest of three times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["sequential", "multiples of 2^20", "multiples of 2^44", "golden"])
def test_such_keys_cost_an_overlay_no_more_than_random_ones(kind: str) -> None:
    count = np.arange(30_000, dtype=np.uint64)
    keys = {
        "sequential": count,
        "multiples of 2^20": count << np.uint64(20),
        "multiples of 2^44": count << np.uint64(44),
        "golden": count * np.uint64(pow(GOLDEN, -1, 2**64)),
    }[kind]

    def cost(keys: np.ndarray) -> tuple[float, float]:
        overlay = Overlay.empty().updated(keys, np.arange(len(keys)))
        return seconds(lambda: Overlay.empty().updated(keys, np.arange(len(keys)))), seconds(lambda: overlay.rows(keys))

    for structured_s, random_s in zip(cost(keys), cost(RANDOM[: len(keys)]), strict=True):
        assert structured_s < 10 * random_s + 0.01


# ----------------------------------------------------------------------------------------- masks and numbers


def test_a_mask_is_read_as_bools_or_refused() -> None:
    built = build(COUNT)
    right = built.lookup(COUNT[:600], np.arange(600) % 2 == 0)
    assert (right[1::2] == 1).all()
    for mask in ((np.arange(600) % 2 == 0).astype(np.uint8), (np.arange(600) % 2 == 0).astype(np.int64)):
        try:
            assert (built.lookup(COUNT[:600], mask) == right).all()
        except IdError as error:
            assert "valid" in str(error)
    with pytest.raises(IdError, match="valid"):
        built.lookup(COUNT[:600], np.ones(599, np.bool_))
