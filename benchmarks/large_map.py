"""A map of many keys, in processes of its own: one builds and saves it, others open it.

python benchmarks/large_map.py build|open FOLDER NUM_KEYS      what such a process runs; prints JSON
"""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from keys import BATCH, alike_or_lost, keys_of
from results import Recorder, Row

from sparsefeed.etl.ids import IdMap

__all__ = ["measure_large"]


def measure_large(record: Recorder, case: str, folder: Path, num_keys: int, num_opened: int = 5) -> list[Row]:
    """Memory and time of the build, and how long opening takes a fresh process (the files may be in the page cache)."""

    def run(what: str) -> dict[str, float]:
        command = [sys.executable, __file__, what, str(folder), str(num_keys)]
        return dict(json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout))

    try:
        built = run("build")
        disk_bytes = sum(path.stat().st_size for path in folder.iterdir())
        opened = [run("open") for _ in range(num_opened)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    wrong = built["alike_or_lost"] + sum(one["lost"] for one in opened)
    return [
        record.row(case, "peak memory of build and save", built["peak_bytes"] / 1e9, "GB"),
        record.row(case, "of which keys and counts, given", built["given_bytes"] / 1e9, "GB"),
        record.row(case, "map build, 2 threads", 1e9 * built["build_s"] / num_keys, "ns/id"),
        record.row(case, "save", built["save_s"], "s"),
        record.row(case, "map bits per id", 8 * built["lookup_bytes"] / num_keys, "bits"),
        record.row(case, "bytes on disk, per id", disk_bytes / num_keys, "B"),
        record.row(case, "open in a fresh process", 1e3 * statistics.median(one["open_s"] for one in opened), "ms"),
        record.row("wrong answers", case, wrong, "ids"),
    ]


def peak_bytes() -> int:
    """Most memory this process ever had in RAM, the interpreter and its libraries included.

    Not `resource.getrusage`: its ru_maxrss is inherited from the process that started this one.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text("utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def build(folder: Path, num_keys: int) -> dict[str, float]:
    """Build over real counts, save, and look every key up."""
    small = keys_of(0, 100_000)  # what numba compiles or reads from its cache is not the build's
    IdMap.build(small, np.ones(len(small), np.int64), table="large", key_seed=0, tail_rows=64).lookup(small)
    keys, counts = keys_of(0, num_keys), np.ones(num_keys, np.int64)
    given_bytes = keys.nbytes + counts.nbytes
    started = time.perf_counter()
    id_map = IdMap.build(keys, counts, table="large", key_seed=0, tail_rows=1024)
    build_s = time.perf_counter() - started
    del keys, counts
    started = time.perf_counter()
    id_map.save(folder)
    save_s = time.perf_counter() - started
    return {
        "peak_bytes": peak_bytes(),
        "given_bytes": given_bytes,
        "build_s": build_s,
        "save_s": save_s,
        "lookup_bytes": id_map.lookup_bytes,
        "alike_or_lost": alike_or_lost(id_map, num_keys),
    }


def open_(folder: Path, num_keys: int) -> dict[str, float]:
    """Open by memory map, then look one batch up."""
    started = time.perf_counter()
    id_map = IdMap.load(folder)
    open_s = time.perf_counter() - started
    rows = id_map.lookup(keys_of(0, min(BATCH, num_keys)))
    return {"open_s": open_s, "lost": int(np.count_nonzero(~id_map.known(rows)))}


def main() -> None:
    """Build or open."""
    what, folder, num_keys = sys.argv[1:]
    print(json.dumps({"build": build, "open": open_}[what](Path(folder), int(num_keys))))


if __name__ == "__main__":
    main()
