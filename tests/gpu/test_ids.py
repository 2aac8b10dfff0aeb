"""The device's lookups against the CPU's, on a real GPU (tests/etl/ids/test_device.py needs none).

Run on one H100 with driver 580.159.04, numba 0.68.0, numba-cuda 0.30.4 and CuPy 14.2.0; cuDF was not there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numba import cuda

from sparsefeed.etl import frame
from sparsefeed.etl.ids import IdMap, device, hash_ints, hash_strings
from sparsefeed.etl.ids.device import DeviceMap
from sparsefeed.etl.ids.device_strings import DeviceStrings
from tests.id_columns import KEY_SEED, TAIL_ROWS, changed_map, column, random_strings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from clock import on_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::numba.core.errors.NumbaPerformanceWarning"),  # of grids as small as a test's
]


def same(found: object, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(found.copy_to_host(), expected)  # type: ignore[attr-defined]


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_strings_of_every_length_and_kind_get_the_rows_of_the_cpu(bits: int) -> None:
    strings = random_strings(20_000, 2)
    id_map, ids = changed_map(strings, bits), column(strings, 3)
    lookups = DeviceMap.of(id_map)
    for array in (ids, ids.slice(5, 9_999), ids.cast(pa.large_string()), ids.slice(0, 0)):
        same(lookups.encode(DeviceStrings.upload(array)), id_map.encode(array))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_million_strings_hash_to_the_bits_of_the_cpu(kind: pa.DataType, capsys: pytest.CaptureFixture[str]) -> None:
    ids = pa.array([None if i % 1000 == 0 else f"{i:x}" * (i % 9) for i in range(1_000_000)], kind)
    strings = DeviceStrings.upload(ids)
    for found, expected in zip(device.hash_strings(strings, KEY_SEED), hash_strings(ids, KEY_SEED), strict=True):
        same(found, expected)
    with capsys.disabled():
        print(f"\nhash of {kind}: {1e3 * on_device(lambda: device.hash_strings(strings, KEY_SEED)):.3f} ns/id")


def test_ten_million_keys_seen_and_unseen_get_the_rows_of_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    values = np.arange(10_000_000)
    keys = hash_ints(values, KEY_SEED)
    admitted = keys[: len(keys) // 2]
    id_map = IdMap.build(
        admitted, np.ones(len(admitted), np.int64), table="post", key_seed=KEY_SEED, tail_rows=TAIL_ROWS
    )
    lookups, there = DeviceMap.of(id_map), cuda.to_device(keys)
    expected = id_map.lookup(keys)
    same(lookups.lookup(there), expected)
    same(lookups.encode(cuda.to_device(values)), expected)
    out = cuda.device_array(len(keys), np.int64)
    with capsys.disabled():
        print(f"\nlookup by key: {100 * on_device(lambda: lookups.lookup(there, out=out)):.3f} ns/id")


def test_cupy_arrays_are_read_and_written_where_they_lie() -> None:
    cupy = pytest.importorskip("cupy")
    strings = random_strings(1000, 4)
    id_map = changed_map(strings, 16)
    keys, valid = hash_strings([*strings, None], KEY_SEED)
    out = cupy.empty(len(keys), cupy.int64)
    assert DeviceMap.of(id_map).lookup(cupy.asarray(keys), cupy.asarray(valid), out) is out
    np.testing.assert_array_equal(cupy.asnumpy(out), id_map.lookup(keys, valid))
    np.testing.assert_array_equal(
        cupy.asnumpy(cupy.asarray(device.hash_ints(cupy.arange(-5, 5), KEY_SEED))),
        hash_ints(np.arange(-5, 5), KEY_SEED),
    )


def test_a_cudf_column_of_strings_is_looked_up_where_it_lies() -> None:
    cudf = pytest.importorskip("cudf")
    strings = random_strings(1000, 5)
    id_map, ids = changed_map(strings, 16), column(strings, 6)
    series = cudf.Series.from_arrow(ids)
    for whole, array in ((series, ids), (series[7:500], ids[7:500]), (series.dropna(), ids.drop_null())):
        found = frame.device_strings(whole)
        assert found is not None
        same(DeviceMap.of(id_map).encode(found), id_map.encode(array))
    keys, valid = hash_strings(ids, KEY_SEED)
    theirs = series.hash_values(method="xxhash64", seed=KEY_SEED).to_numpy()
    np.testing.assert_array_equal(theirs[valid], keys[valid])
    assert frame.device_strings(cudf.Series([1, 2])) is None
    assert frame.device_strings(cudf.Series([["a"], ["b"]])) is None
