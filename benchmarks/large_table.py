"""A table of 50 million rows of 32 floats in int8: how soon it opens, and what a process that serves it holds.

    python benchmarks/large_table.py FOLDER

The file is sparse: rows nobody wrote are zero and take no disk; those that are looked up are mapped all the same.
Prints JSON: seconds to open, microseconds a lookup of 4,000 rows, and megabytes that are the process's own (what it
maps of the file the kernel takes back when it needs memory).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from sparsefeed.models.store.store import ParameterStore, write_index

ROWS, DIM, KEYS, CALLS = 50_000_000, 32, 4_000, 100
NAME = "post"


def write(folder: Path) -> None:
    """Write the table into a folder that is not there."""
    folder.mkdir(parents=True)
    with (folder / f"{NAME}.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (ROWS, DIM + 8)}
        np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
        file.truncate(file.tell() + ROWS * (DIM + 8))
    write_index(folder, {NAME: ROWS})


def main(folder: Path) -> dict[str, float]:
    """Open it, look rows up, and see what is held."""
    ids = np.random.default_rng(0).integers(1, ROWS, (CALLS, KEYS))
    counts, out = np.array([KEYS], np.int32), np.empty(KEYS * DIM, np.float32)
    started = time.perf_counter()
    store = ParameterStore.open(folder)
    opened = time.perf_counter()
    store.lookup(ids[0], counts, out)  # compiled, or read from numba's cache
    before, at = _own_bytes(), time.perf_counter()
    for keys in ids:
        store.lookup(keys, counts, out)
    lookup_s = (time.perf_counter() - at) / CALLS
    return {"open_s": opened - started, "lookup_us": 1e6 * lookup_s, "grown_mb": (_own_bytes() - before) / 1e6,
            "own_mb": _own_bytes() / 1e6, "file_mb": store.bytes_by_table[NAME] / 1e6}  # fmt: skip


def _own_bytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text("ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


if __name__ == "__main__":
    place = Path(sys.argv[1])
    if not place.exists():
        write(place)
    print(json.dumps(main(place)))
