"""The history's CUDA kernels where no GPU is: under numba's simulator, and compiled to PTX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import types

from sparsefeed.etl.kernels import history_device
from sparsefeed.etl.kernels.history import Events, as_of
from tests.ptx import ptx_of

NUM_ROWS = 60


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """Few members and items, so that all of them repeat; member keys above what a float tells apart."""
    random = np.random.default_rng(0)

    def members(num: int) -> np.ndarray:
        return np.uint64(2**63) + random.integers(0, 6, num).astype(np.uint64)

    columns = members(300), random.integers(0, 40, 300), random.integers(1, 8, 300).astype(np.uint64)
    events = Events.sort(*columns)
    return {
        "event_member": events.member,
        "event_time": events.time_ms,
        "event_item": events.item,
        "member": np.r_[members(NUM_ROWS - 1), np.uint64(3)],
        "time_ms": random.integers(0, 45, NUM_ROWS),
    }


@pytest.fixture(scope="module")
def simulated(inputs: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What simulated_history.py found."""
    folder = tmp_path_factory.mktemp("simulated")
    np.savez(folder / "inputs.npz", **inputs)
    script = Path(__file__).with_name("simulated_history.py")
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_DISABLE_JIT": "1"}
    run = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return dict(np.load(folder / "results.npz"))


@pytest.mark.parametrize("num", [NUM_ROWS, 0])
@pytest.mark.parametrize("frequent", [False, True])
@pytest.mark.parametrize("window_ms", [0, 9])
def test_a_simulated_gpu_finds_the_histories_of_the_cpu(
    window_ms: int, frequent: bool, num: int, simulated: dict[str, np.ndarray], inputs: dict[str, np.ndarray]
) -> None:
    events = Events(inputs["event_member"], inputs["event_time"], inputs["event_item"])
    offsets, items = as_of(events, inputs["member"][:num], inputs["time_ms"][:num], 3, window_ms or None, frequent)
    assert num == 0 or 0 < len(items) < 3 * num
    for name, expected in (("offsets", offsets), ("items", items)):
        found = simulated[f"{window_ms} {frequent} {num} {name}"]
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


U64, I64, U64_ROWS, I64_ROWS = types.uint64[::1], types.int64[::1], types.uint64[:, ::1], types.int64[:, ::1]
KERNELS = {
    "ends": (history_device._ends, types.void(U64, I64, U64, I64, I64, I64)),
    "walk back": (history_device._walk_back, types.void(U64, I64, I64, U64)),
    "most frequent": (history_device._most_frequent, types.void(U64, I64, I64, U64_ROWS, I64_ROWS, U64_ROWS, I64)),
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_becomes_integer_ptx(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "ld.global" in ptx_of(*KERNELS[name], monkeypatch)
