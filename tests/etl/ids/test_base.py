from __future__ import annotations

import numpy as np
import pytest

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


def test_a_base_of_no_keys_knows_none() -> None:
    assert Base.build(np.empty(0, np.uint64), 16).positions(np.array([1], np.uint64)).tolist() == [-1]
