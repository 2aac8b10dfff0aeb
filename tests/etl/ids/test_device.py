"""The device kernels where no GPU is: under numba's simulator, compiled for the CPU, and compiled to PTX."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
from numba import njit, typeof, types

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, device, hash_ints, hash_strings
from sparsefeed.etl.ids.device import Listed, key_of_string, row_told_apart
from sparsefeed.etl.ids.device_strings import DeviceStrings, is_on_device
from sparsefeed.etl.ids.probe import NULL_ROW, row_of_key
from tests.id_columns import EQUAL_KEYS, KEY_SEED, TAIL_ROWS, changed_map, column, random_strings
from tests.ptx import ptx_of

WIDTHS = (8, 16, 32, 64)
INTS = [np.iinfo(kind) for kind in ("int8", "int32", "int64", "uint16", "uint64")]


@pytest.fixture(scope="module")
def maps() -> dict[str, IdMap]:
    """A changed map of every fingerprint width, one as it was built, and one of no ids at all."""
    strings = random_strings(400, 0)
    built, _ = changed_map(strings, 16).fold()
    empty = IdMap.build(
        np.empty(0, np.uint64), np.empty(0, np.int64), table="post", key_seed=KEY_SEED, tail_rows=TAIL_ROWS
    )
    return {**{f"{bits} bits": changed_map(strings, bits) for bits in WIDTHS}, "built": built, "empty": empty}


@pytest.fixture(scope="module")
def ids() -> pa.Array:
    return column(random_strings(400, 0), 1)


@pytest.fixture(scope="module")
def ints() -> dict[str, np.ndarray]:
    """The ends of each type's range and what lies around 0."""
    return {
        str(info.dtype): np.array([info.min, info.min + 1, 0, 1, 2, info.max - 1, info.max], info.dtype)
        for info in INTS
    }


@pytest.fixture(scope="module")
def simulated(
    maps: dict[str, IdMap], ids: pa.Array, ints: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, np.ndarray]:
    """What simulated_device.py found."""
    folder = tmp_path_factory.mktemp("simulated")
    pyarrow.feather.write_feather(pa.table({"id": ids}), folder / "strings.feather")
    np.savez(folder / "inputs.npz", seed=np.uint64(KEY_SEED), **ints)
    for name, id_map in maps.items():
        id_map.save(folder / "maps" / name)
    script = Path(__file__).with_name("simulated_device.py")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return dict(np.load(folder / "results.npz"))


def same(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


def test_three_strings_share_one_key_and_two_of_them_have_rows(maps: dict[str, IdMap]) -> None:
    keys, _ = hash_strings(EQUAL_KEYS, KEY_SEED)
    assert len(set(keys.tolist())) == 1
    rows = maps["16 bits"].encode(list(EQUAL_KEYS))
    assert len(set(rows.tolist())) == 3
    assert (rows >= 2 + TAIL_ROWS).tolist() == [True, True, False]


@pytest.mark.parametrize("layout", ["sliced", "bare", "large"])
def test_a_simulated_gpu_hashes_strings_of_every_layout_as_the_cpu(
    layout: str, simulated: dict[str, np.ndarray], ids: pa.Array
) -> None:
    keys, valid = hash_strings(ids if layout == "large" else ids.slice(3), KEY_SEED)
    same(simulated[f"keys {layout}"], keys)
    same(simulated[f"valid {layout}"], valid)


@pytest.mark.parametrize("kind", [str(info.dtype) for info in INTS])
def test_a_simulated_gpu_hashes_integers_of_every_width_as_the_cpu(
    kind: str, simulated: dict[str, np.ndarray], ints: dict[str, np.ndarray]
) -> None:
    same(simulated[f"keys {kind}"], hash_ints(ints[kind], KEY_SEED))


@pytest.mark.parametrize("name", [*(f"{bits} bits" for bits in WIDTHS), "built", "empty"])
def test_a_simulated_gpu_finds_the_rows_of_the_cpu(
    name: str, simulated: dict[str, np.ndarray], maps: dict[str, IdMap], ids: pa.Array, ints: dict[str, np.ndarray]
) -> None:
    keys, valid = hash_strings(ids, KEY_SEED)
    same(simulated[f"{name} by key"], maps[name].lookup(keys))
    same(simulated[f"{name} by valid key"], maps[name].lookup(keys, valid))
    same(simulated[f"{name} by string"], maps[name].encode(ids))
    same(simulated[f"{name} by int"], maps[name].lookup(hash_ints(ints["int32"], KEY_SEED)))
    assert simulated[f"{name} of none"].tolist() == []


@njit
def rows_of_threads(data, offsets, mask, probe, listed, rows):  # type: ignore[no-untyped-def]
    """`device._rows_of_strings`, one thread after the other."""
    for i in range(len(rows)):
        rows[i] = NULL_ROW
        is_id, key = key_of_string(data, offsets, mask, i, probe.key_seed)
        if is_id:
            row = row_of_key(key, probe)
            rows[i] = row_told_apart(key, row, data, np.int64(offsets[i]), np.int64(offsets[i + 1]), listed)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("bits", WIDTHS)
def test_what_a_thread_does_compiled_for_the_cpu_finds_the_rows_of_the_blocked_kernels(bits: int, paired: bool) -> None:
    strings = random_strings(20_000, 2)
    id_map, ids = replace(changed_map(strings, bits), paired_tail=paired), column(strings, 3)
    _, offsets, data = ids.buffers()
    rows = np.empty(len(ids), np.int64)
    rows_of_threads(
        np.frombuffer(data, np.uint8),
        np.frombuffer(offsets, np.int32),
        np.packbits(ids.is_valid().to_numpy(zero_copy_only=False), bitorder="little"),
        id_map.probe,
        Listed.of(id_map.exceptions, id_map.tail),
        rows,
    )
    same(rows, id_map.encode(ids))


KERNELS = {
    "keys of strings": device._keys_of_strings,
    "keys of ints": device._keys_of_ints,
    "rows of keys": device._rows_of_keys,
    "rows of ints": device._rows_of_ints,
    "rows of strings": device._rows_of_strings,
}


def launched_with(name: str, id_map: IdMap) -> types.Type:
    """The types a kernel is launched with."""
    u64, i64, u8, flag = types.uint64[::1], types.int64[::1], types.uint8[::1], types.boolean[::1]
    probe, listed = typeof(id_map.probe), typeof(Listed.of(id_map.exceptions, id_map.tail))
    strings = (u8, types.int32[::1], u8)
    return {
        "keys of strings": types.void(*strings, types.uint64, u64, flag),
        "keys of ints": types.void(types.int32[::1], types.uint64, u64),
        "rows of keys": types.void(u64, flag, probe, i64),
        "rows of ints": types.void(i64, probe, i64),
        "rows of strings": types.void(*strings, probe, listed, i64),
    }[name]


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_becomes_integer_ptx_that_loads_bytes_one_by_one(
    name: str, maps: dict[str, IdMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    ptx = ptx_of(KERNELS[name], launched_with(name, maps["16 bits"]), monkeypatch)
    if name == "keys of strings":
        loads = set(re.findall(r"ld\.global\.(\w+)", ptx))
        assert loads <= {"u8", "s32", "u32"}, "characters lie at any address: a wider load of them would fault"


def test_an_array_in_host_memory_is_refused_with_the_way_out() -> None:
    with pytest.raises(IdError, match=r"ids is a ndarray in host memory; allowed: .*__cuda_array_interface__"):
        device.hash_ints(np.arange(3), 0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("narrow keys", "ids: keys is int32 of shape (7,); allowed: one dimension of uint64; cast it on the device"),
        ("short out", "ids: out has 1 entries for "),
        ("signed bytes", "ids: data is int8 of shape (1,); allowed: one dimension of uint8; cast it on the device"),
    ],
)
def test_an_array_that_a_kernel_would_misread_is_refused(
    name: str, message: str, simulated: dict[str, np.ndarray]
) -> None:
    assert str(simulated[f"refused {name}"]).startswith(message)


def test_a_column_of_another_type_is_not_uploaded() -> None:
    with pytest.raises(IdError, match=r"got a column of int64; allowed: string"):
        DeviceStrings.upload(pa.array([1]))


def test_only_what_lies_on_the_device_is_taken_for_it() -> None:
    class OnDevice:
        @property
        def __cuda_array_interface__(self) -> dict[str, object]:
            raise NotImplementedError  # as a cuDF column of strings does

    buffers = np.empty(0, np.uint8), np.zeros(1, np.int32)
    assert is_on_device(OnDevice()) and is_on_device(DeviceStrings(*buffers))
    assert not is_on_device(np.arange(3)) and not is_on_device(pa.array(["a"])) and not is_on_device(["a"])
    assert len(DeviceStrings(*buffers)) == 0
