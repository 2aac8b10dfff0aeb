from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import MinimalPerfectHash

MAX_KEY = 2**64 - 1


def is_permutation(positions: np.ndarray) -> bool:
    return bool((np.sort(positions) == np.arange(len(positions))).all())


@pytest.mark.parametrize("num", [*range(12), 50, 127, 1000, 32768, 49152, 100_000])
@pytest.mark.parametrize("kind", ["random", "consecutive", "high bits only"])
def test_n_keys_go_to_n_positions(num: int, kind: str) -> None:
    keys = {
        "random": lambda: np.random.default_rng(num).integers(0, MAX_KEY, num, np.uint64),
        "consecutive": lambda: np.arange(num, dtype=np.uint64),
        "high bits only": lambda: np.arange(num, dtype=np.uint64) << np.uint64(44),
    }[kind]()
    assert is_permutation(MinimalPerfectHash.build(keys).query(keys))


@settings(max_examples=100, deadline=None)
@given(st.sets(st.integers(0, MAX_KEY), max_size=60), st.integers(0, MAX_KEY))
def test_any_keys_and_any_seed_give_a_bijection(keys: set[int], seed: int) -> None:
    array = np.array(sorted(keys), np.uint64)
    assert is_permutation(MinimalPerfectHash.build(array, seed).query(array))


def test_small_sets_are_solved_under_every_seed() -> None:
    keys = np.random.default_rng(0).integers(0, MAX_KEY, 5, np.uint64)
    assert all(
        is_permutation(MinimalPerfectHash.build(keys[:n], s).query(keys[:n])) for s in range(200) for n in range(6)
    )


def test_another_seed_gives_another_function() -> None:
    keys = np.arange(1000, dtype=np.uint64)
    assert (MinimalPerfectHash.build(keys, 1).query(keys) != MinimalPerfectHash.build(keys, 2).query(keys)).mean() > 0.9


def test_the_threads_a_build_ran_on_do_not_show_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = np.random.default_rng(1).integers(0, MAX_KEY, 100_000, np.uint64)
    functions = []
    for num_threads in (1, 3):
        monkeypatch.setattr("numba.core.config.NUMBA_NUM_THREADS", num_threads)
        functions.append(MinimalPerfectHash.build(keys))
    first, second = functions
    assert (first.pilots == second.pilots).all()
    assert (first.spill_bases == second.spill_bases).all()
    assert (first.spill == second.spill).all()


def test_a_key_that_was_not_built_still_gets_a_position_in_range() -> None:
    rng = np.random.default_rng(2)
    function = MinimalPerfectHash.build(rng.integers(0, MAX_KEY, 40_000, np.uint64))
    positions = function.query(rng.integers(0, MAX_KEY, 200_000, np.uint64))
    assert positions.min() >= 0
    assert positions.max() < 40_000


def test_the_function_of_no_keys_answers_minus_one() -> None:
    function = MinimalPerfectHash.build(np.empty(0, np.uint64))
    assert function.query(np.array([1, 2], np.uint64)).tolist() == [-1, -1]


@pytest.mark.parametrize("num", [1, 500, 70_000])
def test_a_key_that_stands_twice_is_named(num: int) -> None:
    keys = np.concatenate([np.arange(num, dtype=np.uint64), np.array([0], np.uint64)])
    with pytest.raises(IdError, match=r"key 0x0000000000000000 is given 2 times; give every key once"):
        MinimalPerfectHash.build(keys)


def test_one_key_repeated_beyond_a_part_is_named_too() -> None:
    with pytest.raises(IdError, match=r"key 0x0000000000000007 is given 70000 times"):
        MinimalPerfectHash.build(np.full(70_000, 7, np.uint64))


def test_a_large_function_takes_less_than_2_7_bits_a_key() -> None:
    keys = np.random.default_rng(3).integers(0, MAX_KEY, 300_000, np.uint64)
    assert MinimalPerfectHash.build(keys).bits_per_key < 2.7


def test_many_python_threads_may_query_at_once() -> None:
    keys = np.random.default_rng(4).integers(0, MAX_KEY, 150_000, np.uint64)
    function = MinimalPerfectHash.build(keys)
    answers: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: answers.append(function.query(keys))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 4
    assert all((a == answers[0]).all() for a in answers)
    assert is_permutation(answers[0])


def test_keys_with_strides_are_read_rightly() -> None:
    keys = np.arange(2000, dtype=np.uint64)
    function = MinimalPerfectHash.build(keys[::2])
    assert is_permutation(function.query(keys[::2]))
