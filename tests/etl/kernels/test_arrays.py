"""Which library an array is of, and the same lines under numpy that a device runs under CuPy (tests/gpu)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from sparsefeed.etl.kernels import dense, history, sampling
from sparsefeed.etl.kernels.arrays import array_module, to_host


def test_what_is_not_of_cupy_is_computed_by_numpy() -> None:
    for array in (np.zeros(1), pa.array([1]), [1], np.float32(1)):
        assert array_module(array) is np


def test_an_array_in_host_memory_is_not_copied() -> None:
    array = np.arange(3)
    assert to_host(array) is array


def test_moments_of_a_whole_column_are_those_of_one_value_after_the_other() -> None:
    values = np.random.default_rng(0).normal(1e4, 3, 10_001).astype(np.float32)
    values[::7] = np.nan
    for part in (values, values[:1], values[:0]):
        for log in (False, True):
            one, all_at_once = (
                dense._moments(part, np.float32(2), log),
                dense._moments_at_once(part, np.float32(2), log),
            )
            assert one[0] == all_at_once[0]
            assert all_at_once[1:] == pytest.approx(one[1:], rel=1e-9)
            exact, found = dense.Moments(*one), dense.Moments(*all_at_once)
            assert (exact.mean, exact.std) == (found.mean, found.std)  # float32: the order of sums does not show


def test_keys_mixed_as_arrays_are_those_mixed_one_by_one() -> None:
    keys = np.r_[np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64), np.uint64(0), np.uint64(2**64 - 1)]
    for seed in (0, 1, 2**64 - 1):
        np.testing.assert_array_equal(sampling._mixed_at_once(keys, seed), sampling._mixed(keys, np.uint64(seed)))


def test_stable_sorts_one_after_the_other_are_a_lexical_sort_of_keys_that_floats_do_not_tell_apart() -> None:
    random = np.random.default_rng(0)
    key = np.uint64(2**63) + random.integers(0, 4, 500).astype(np.uint64)
    time_ms, tie = random.integers(-3, 3, 500), random.integers(0, 3, 500)
    columns = (tie, time_ms, key)
    np.testing.assert_array_equal(history._order_by_sorts(columns), np.lexsort(columns))
