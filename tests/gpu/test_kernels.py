"""Kernels given CuPy's arrays against the same given numpy's, on a real GPU (tests/etl/kernels needs none).

Run on one H100 with driver 580.159.04, CuPy 14.2.0 and numba-cuda 0.30.4.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsefeed.etl.kernels import dense, ips, sampling
from sparsefeed.etl.kernels.arrays import array_module, to_host
from sparsefeed.etl.kernels.history import Events, as_of, latest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning"),  # of grids as small as a test's
]
cupy = pytest.importorskip("cupy")
NUM = 10_000


def on_device(array: np.ndarray) -> Any:
    return cupy.asarray(array)


def same(found: Any, expected: np.ndarray) -> None:
    """On the device, of the same type, bit for bit."""
    assert array_module(found) is cupy
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(to_host(found), expected)


@pytest.fixture
def column() -> np.ndarray:
    values = np.random.default_rng(0).normal(3, 10, NUM).astype(np.float32)
    values[::9] = np.nan
    return values


def test_standardised_values_have_the_bits_of_the_cpu(column: np.ndarray) -> None:
    for std in (2.0, 0.0):
        same(
            dense.standardise(on_device(column), 1.5, False, 0.3, std), dense.standardise(column, 1.5, False, 0.3, std)
        )


def test_values_under_the_logarithm_have_its_digits(column: np.ndarray) -> None:
    found = dense.standardise(on_device(column), 1.5, True, 0.3, 2.0)
    np.testing.assert_allclose(to_host(found), dense.standardise(column, 1.5, True, 0.3, 2.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("log", [False, True])
def test_moments_have_the_digits_of_the_cpu(column: np.ndarray, log: bool) -> None:
    for part in (column, column[:1], column[:0]):
        expected, found = dense.Moments.of(part, 1.5, log), dense.Moments.of(on_device(part), 1.5, log)
        assert found.num == expected.num
        assert (found.mean, found.std) == pytest.approx((expected.mean, expected.std), rel=2e-7)


@pytest.mark.parametrize("num", [NUM, 0])
def test_buckets_counts_and_cells_are_those_of_the_cpu(num: int) -> None:
    random = np.random.default_rng(1)
    position, edges = random.integers(0, 30, num), np.array([1, 3, 10])
    surface, is_random, y = random.integers(0, 2, num), random.random(num) < 0.3, random.random(num) < 0.1
    stratum, covered = random.integers(0, 3, num).astype(np.int8), np.array([[True, False, True], [True, True, False]])
    bucket = ips.position_buckets(position, edges)
    same(ips.position_buckets(on_device(position), edges), bucket)
    rows = surface, bucket, is_random, y
    counts = ips.count(*map(on_device, rows), 2, 3)
    assert type(counts) is np.ndarray
    np.testing.assert_array_equal(counts, ips.count(*rows, 2, 3))
    surface[::5] = -1
    for table in (covered, covered[:0]):
        cell = ips.cells(*rows, table)
        same(ips.cells(*map(on_device, rows), table), cell)
        same(ips.strata_cells(on_device(cell), on_device(stratum), 3), ips.strata_cells(cell, stratum, 3))


def test_the_same_rows_are_kept_as_on_the_cpu() -> None:
    random = np.random.default_rng(2)
    labels = {name: random.random(NUM) < 0.2 for name in ("click", "like", "share")}
    is_random, rates = random.random(NUM) < 0.1, {"click": 0.5, "like": 0.8}
    stratum = sampling.stratum_of(labels, is_random, rates, 0.1)
    on_gpu = {name: on_device(y) for name, y in labels.items()}
    same(sampling.stratum_of(on_gpu, on_device(is_random), rates, 0.1), stratum)
    keys, rate = random.integers(0, 2**64, NUM, np.uint64), sampling.strata(rates, 0.1)[stratum]
    same(sampling.kept(on_device(keys), on_device(rate), 7), sampling.kept(keys, rate, 7))


def test_events_are_sorted_and_the_last_found_as_on_the_cpu() -> None:
    random = np.random.default_rng(3)
    key = np.uint64(2**63) + random.integers(0, 100, NUM).astype(np.uint64)
    time_ms, item = random.integers(-50, 50, NUM), random.integers(0, 2**64, NUM, np.uint64)
    expected, found = Events.sort(key, time_ms, item), Events.sort(*map(on_device, (key, time_ms, item)))
    for name in ("member", "time_ms", "item"):
        same(getattr(found, name), getattr(expected, name))
    tie = np.arange(NUM)
    for part in (slice(None), slice(0)):
        columns = key[part], time_ms[part], tie[part]
        for ours, theirs in zip(latest(*map(on_device, columns)), latest(*columns), strict=True):
            same(ours, theirs)


@pytest.mark.parametrize("num", [NUM, 0])
@pytest.mark.parametrize("frequent", [False, True])
@pytest.mark.parametrize("window_ms", [None, 200])
def test_histories_are_those_of_the_cpu(window_ms: int | None, frequent: bool, num: int) -> None:
    random = np.random.default_rng(4)
    columns = random.integers(1, 50, 40_000).astype(np.uint64), random.integers(0, 1000, 40_000)
    events = Events.sort(*columns, random.integers(1, 99, 40_000).astype(np.uint64))
    rows = random.integers(0, 55, num).astype(np.uint64), random.integers(0, 1100, num)
    there = Events(*map(on_device, (events.member, events.time_ms, events.item)))
    expected = as_of(events, *rows, 20, window_ms, frequent)
    for ours, theirs in zip(as_of(there, *map(on_device, rows), 20, window_ms, frequent), expected, strict=True):
        same(ours, theirs)
    # Rows on the device, events in host memory: computed there.
    for ours, theirs in zip(as_of(events, *map(on_device, rows), 20, window_ms, frequent), expected, strict=True):
        assert type(ours) is np.ndarray
        np.testing.assert_array_equal(ours, theirs)
