"""Runs the device kernels under numba's CUDA simulator: python simulated_device.py FOLDER (see test_device).

The simulator is chosen before numba is imported, so it needs a process of its own. Functions that kernels call are
plain Python here (NUMBA_DISABLE_JIT): one source, a third way to run it.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
from numba import config, cuda

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.ids.device import hash_ints, hash_strings
from sparsefeed.etl.ids.device_strings import DeviceStrings

assert config.ENABLE_CUDASIM and config.DISABLE_JIT
warnings.simplefilter("ignore", RuntimeWarning)  # numpy's scalars tell when a product wraps, as hashes' do

folder = Path(sys.argv[1])
array = pyarrow.feather.read_table(folder / "strings.feather")["id"].combine_chunks()
inputs = dict(np.load(folder / "inputs.npz"))
seed = int(inputs.pop("seed"))
results: dict[str, np.ndarray] = {}

# As Arrow has it, in the middle of a larger column, and with wide offsets.
small, large = array.slice(3), array.cast(pa.large_string())
_, offsets, data = small.buffers()
bare = DeviceStrings(
    cuda.to_device(np.frombuffer(data, np.uint8)),
    cuda.to_device(np.frombuffer(offsets, np.int32)[small.offset : small.offset + len(small) + 1]),
    cuda.to_device(np.packbits(small.is_valid().to_numpy(zero_copy_only=False), bitorder="little")),
)
columns = {"sliced": DeviceStrings.upload(small), "bare": bare, "large": DeviceStrings.upload(large)}
for name, strings in columns.items():
    keys, valid = hash_strings(strings, seed)
    results[f"keys {name}"], results[f"valid {name}"] = keys.copy_to_host(), valid.copy_to_host()
for name, values in inputs.items():
    results[f"keys {name}"] = hash_ints(cuda.to_device(values), seed).copy_to_host()

for path in sorted((folder / "maps").iterdir()):
    lookups = IdMap.load(path)  # which sends what lies on the device to its DeviceMap
    keys, valid = cuda.to_device(results["keys large"]), cuda.to_device(results["valid large"])
    results[f"{path.name} by key"] = lookups.lookup(keys).copy_to_host()
    out = cuda.device_array(len(keys), np.int64)
    assert lookups.lookup(keys, valid, out) is out
    results[f"{path.name} by valid key"] = out.copy_to_host()
    results[f"{path.name} by string"] = lookups.encode(columns["large"]).copy_to_host()
    results[f"{path.name} by int"] = lookups.encode(cuda.to_device(inputs["int32"])).copy_to_host()
    results[f"{path.name} of none"] = lookups.lookup(keys[:0]).copy_to_host()

refused = {
    "narrow keys": lambda: lookups.lookup(cuda.to_device(inputs["int32"])),
    "short out": lambda: lookups.lookup(keys, valid, cuda.device_array(1, np.int64)),
    "signed bytes": lambda: hash_strings(DeviceStrings(cuda.to_device(np.zeros(1, np.int8)), bare.offsets), seed),
}
for name, call in refused.items():
    try:
        call()
    except IdError as error:
        results[f"refused {name}"] = np.array(str(error))
np.savez(folder / "results.npz", **results)
