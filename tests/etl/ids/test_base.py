from __future__ import annotations

import numpy as np
import pytest

from sparsefeed.etl.ids.base import Base

BITS = [8, 16, 32, 64]


@pytest.fixture(scope="module")
def keys() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**64, 70_000, np.uint64)


@pytest.mark.parametrize("bits", BITS)
def test_rows_are_the_function_where_the_fingerprint_agrees_and_the_tail_elsewhere(keys: np.ndarray, bits: int) -> None:
    base = Base.build(keys, bits)
    asked = np.concatenate([keys, np.random.default_rng(1).integers(0, 2**64, 80_001, np.uint64)])
    positions = base.function.query(asked)
    agree = base.fingerprints[positions] == asked.astype(base.fingerprints.dtype)
    expected = np.where(agree, positions + 100, 2 + (asked % np.uint64(7)).astype(np.int64))
    assert (base.rows(asked, 100, 2, 7) == expected).all()
    assert agree[: len(keys)].all()


@pytest.mark.parametrize("bits", BITS)
def test_exact_positions_take_no_stranger_in(keys: np.ndarray, bits: int) -> None:
    base = Base.build(keys, bits)
    assert (base.keys[base.positions(keys)] == keys).all()
    assert (base.positions(np.setdiff1d(np.arange(50_000, dtype=np.uint64), keys)) == -1).all()


def test_fingerprints_of_64_bits_are_the_keys_and_not_written_twice(keys: np.ndarray) -> None:
    base = Base.build(keys, 64)
    assert base.fingerprints is base.keys
    assert "fingerprints" not in base.arrays()
    again = Base.from_arrays(base.arrays(), base.function.seed, 64)
    assert (again.rows(keys, 9, 2, 7) == base.rows(keys, 9, 2, 7)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.zeros(3, np.uint64)},
        {"fingerprints": np.zeros(100, np.uint8)},
        {"pilots": np.zeros(7, np.uint16)},
        {"spill": np.zeros(0, np.uint16)},
        {"parts": np.zeros((1, 3), np.uint64)},
        {"parts": np.array([[200, 0, 0], [100, 3, 0]], np.uint64)},
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(change: dict[str, np.ndarray]) -> None:
    base = Base.build(np.arange(100, dtype=np.uint64), 16)
    with pytest.raises(ValueError, match="do not fit"):
        Base.from_arrays({**base.arrays(), **change}, 0, 16)


def test_a_base_of_no_keys_sends_all_to_the_tail() -> None:
    base = Base.build(np.empty(0, np.uint64), 16)
    assert base.rows(np.array([0, 8, 2**64 - 1], np.uint64), 9, 2, 7).tolist() == [2, 3, 2 + (2**64 - 1) % 7]
    assert base.positions(np.array([1], np.uint64)).tolist() == [-1]
