"""Hash and lookup of ids on a GPU beside the CPU of the same machine; appends to benchmarks/results.csv.

    python benchmarks/gpu_ids.py [--keys 1000000 10000000 100000000] [--queries 10000000]

Needs a CUDA device, numpy, pyarrow, numba with its CUDA target (or numba-cuda) and this source tree; without a device
it says so and exits with 1.

Ids are strings of 16 hexadecimal digits in random order. Device times are of CUDA events, the best of five after
one warm-up, what Python takes to launch (some 0.2 ms a call) included; "from host memory" also uploads the column and
brings the rows back. The CPU's are the best of three.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numba import cuda

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from clock import on_device
from results import Recorder, Row, append, machine

from sparsefeed.etl.ids import IdMap, device, hash_strings
from sparsefeed.etl.ids.device import DeviceMap
from sparsefeed.etl.ids.device_strings import DeviceStrings

SEED = 0
AT_ONCE = 10_000_000  # strings in memory while the keys of a map are made


def strings_of(numbers: np.ndarray) -> pa.Array:
    """16 hexadecimal digits of each number's bytes, as Arrow strings."""
    raw = numbers.astype(np.uint64).view(np.uint8)
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    text = np.column_stack([digits[raw >> 4], digits[raw & 15]])
    offsets = np.arange(0, 16 * len(numbers) + 1, 16, dtype=np.int64)
    return pa.Array.from_buffers(
        pa.large_string(), len(numbers), [None, pa.py_buffer(offsets.tobytes()), pa.py_buffer(text.tobytes())]
    )


def on_clock(call: Callable[[], Any], times: int = 3) -> float:
    """Seconds on the clock."""
    call()
    found = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def measure(num_keys: int, num_queries: int, record: Recorder) -> Iterator[Row]:
    """Rows of one size of map."""
    parts = range(0, num_keys, AT_ONCE)
    keys = np.concatenate(
        [hash_strings(strings_of(np.arange(at, min(at + AT_ONCE, num_keys))), SEED)[0] for at in parts]
    )
    id_map = IdMap.build(keys, np.ones(num_keys, np.int64), table="post", key_seed=SEED, tail_rows=64)
    ids = strings_of(np.random.default_rng(0).integers(0, num_keys, num_queries))
    queries, _ = hash_strings(ids, SEED)
    lookups, strings, query_keys = DeviceMap.of(id_map), DeviceStrings.upload(ids), cuda.to_device(queries)
    out, rows = cuda.device_array(num_queries, np.int64), np.empty(num_queries, np.int64)
    expected = id_map.encode(ids)
    if not np.array_equal(lookups.encode(strings).copy_to_host(), expected):
        raise SystemExit("the device gives other rows than the CPU: nothing is measured")

    def through_host() -> None:
        lookups.encode(DeviceStrings.upload(ids), out).copy_to_host(rows)

    both = {
        "hash strings": (
            on_device(lambda: device.hash_strings(strings, SEED)),
            on_clock(lambda: hash_strings(ids, SEED)),
        ),
        "look up keys": (
            on_device(lambda: lookups.lookup(query_keys, out=out)),
            on_clock(lambda: id_map.lookup(queries, out=rows)),
        ),
        "hash and look up strings": (
            on_device(lambda: lookups.encode(strings, out)),
            on_clock(lambda: id_map.encode(ids, out=rows)),
        ),
        "hash and look up strings from host memory": (
            on_clock(through_host),
            on_clock(lambda: id_map.encode(ids, out=rows)),
        ),
    }
    for what, (gpu_s, cpu_s) in both.items():
        ns = 1e9 / num_queries
        print(f"{num_keys:>11,} keys, {what}: {gpu_s * ns:.3f} ns/id on the GPU, {cpu_s * ns:.2f} on the CPU")
        yield record.row(f"{num_keys} keys, {what}", "time per id", gpu_s * ns, "ns", "CPU", cpu_s * ns)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[10**6, 10**7, 10**8])
    parser.add_argument("--queries", type=int, default=10**7)
    options = parser.parse_args()
    if not cuda.is_available():
        raise SystemExit("no CUDA device here: nothing measured")
    name = cuda.get_current_device().name
    name = name.decode() if isinstance(name, bytes) else name  # numba gives bytes, numba-cuda may give str
    command = " ".join(["python", "benchmarks/gpu_ids.py", *sys.argv[1:]])
    record = Recorder("gpu_ids", command, machine=f"{machine()}, {name}")
    for num_keys in options.keys:
        append(measure(num_keys, options.queries, record))


if __name__ == "__main__":
    main()
