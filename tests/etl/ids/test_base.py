from __future__ import annotations

import numpy as np
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.base import Base

BITS = [8, 16, 32, 64]


@pytest.fixture(scope="module")
def keys() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**64, 70_000, np.uint64)


@pytest.mark.parametrize("bits", BITS)
def test_exact_positions_take_no_stranger_in(keys: np.ndarray, bits: int) -> None:
    base = Base.build(keys, bits)
    assert (base.keys[base.positions(keys)] == keys).all()
    assert (base.positions(np.setdiff1d(np.arange(50_000, dtype=np.uint64), keys)) == -1).all()


def test_fingerprints_of_64_bits_are_the_keys_and_not_written_twice(keys: np.ndarray) -> None:
    base = Base.build(keys, 64)
    assert base.fingerprints is base.keys
    assert "fingerprints" not in base.arrays()
    again = Base.load(base.header(), base.arrays(), 64)
    assert (again.positions(keys) == base.positions(keys)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.zeros(3, np.uint64)},
        {"fingerprints": np.zeros(100, np.uint8)},
        {"fingerprints": np.zeros((100, 1), np.uint16)},
        {"pilots": np.zeros(7, np.uint16)},
        {"pilots": np.zeros(0, np.uint8)},
        {"spill": np.zeros(0, np.uint16)},
        {"spill_bases": np.zeros(0, np.uint64)},
        {"rows": np.zeros(99, np.uint32)},
        {"rows": np.zeros(100, np.int64)},
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(change: dict[str, np.ndarray]) -> None:
    base = Base.build(np.arange(100, dtype=np.uint64), 16)
    with pytest.raises(ValueError, match="do not fit"):
        Base.load(base.header(), {**base.arrays(), **change}, 16)


@pytest.mark.parametrize("change", [{"num_keys": 99}, {"num_parts": 0}, {"slots_per_part": 64}, {"seed": -1}])
def test_numbers_that_do_not_fit_the_arrays_are_refused(change: dict[str, int]) -> None:
    base = Base.build(np.arange(100, dtype=np.uint64), 16)
    with pytest.raises(ValueError, match="do not fit"):
        Base.load({**base.header(), **change}, base.arrays(), 16)


def test_rows_are_kept_and_beyond_32_bits_refused() -> None:
    keys, rows = np.array([7, 8, 9], np.uint64), np.array([2**32 - 1, 5, 17])
    base = Base.build(keys, 16)
    kept = base.with_rows(keys, rows)
    assert kept.rows_of(np.append(keys, np.uint64(1)), 6).tolist() == [*rows.tolist(), -1]
    assert base.rows_of(keys, 6).tolist() == (base.positions(keys) + 6).tolist()
    again = Base.load(kept.header(), kept.arrays(), 16)
    assert again.all_rows(6).tolist() == kept.rows.tolist()
    assert kept.nbytes == base.nbytes + 12
    with pytest.raises(IdError, match=r"row 4294967296 cannot be kept; allowed: rows below 2\^32; fold\(\) the map"):
        base.with_rows(keys, rows + 1)


def test_a_base_of_no_keys_knows_none() -> None:
    assert Base.build(np.empty(0, np.uint64), 16).positions(np.array([1], np.uint64)).tolist() == [-1]
