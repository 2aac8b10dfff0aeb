"""Runs the history kernels under numba's CUDA simulator: python simulated_history.py FOLDER (see test_history_device).

The simulator is chosen before numba is imported, so it needs a process of its own. It takes numpy's arrays for
device arrays and copies them to and fro, so the lines around the kernels run as they do with CuPy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numba import config

from sparsefeed.etl.kernels import history_device
from sparsefeed.etl.kernels.history import Events, found_by

assert config.ENABLE_CUDASIM and config.DISABLE_JIT
history_device._MOST_THREADS = 7  # so that a thread takes several rows

folder = Path(sys.argv[1])
inputs = dict(np.load(folder / "inputs.npz"))
events = Events(inputs["event_member"], inputs["event_time"], inputs["event_item"])
results: dict[str, np.ndarray] = {}
for window_ms in (0, 9):
    for frequent in (False, True):
        for num in (len(inputs["member"]), 0):
            rows = inputs["member"][:num], inputs["time_ms"][:num]
            found = found_by(history_device.ON_DEVICE, np, events, *rows, 3, window_ms or None, frequent)
            for name, column in zip(("offsets", "items"), found, strict=True):
                results[f"{window_ms} {frequent} {num} {name}"] = column
np.savez(folder / "results.npz", **results)
