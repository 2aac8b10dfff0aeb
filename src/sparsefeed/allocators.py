"""Environment of processes that allocate the same again for every partition or batch."""

from __future__ import annotations

__all__ = ["KEEP_FREED"]

# Memory that went back to the kernel comes as a page fault for every 4 KiB: more than a quarter of an ETL's fit. Dask
# itself has workers give back whatever they free.
KEEP_FREED = {
    "MIMALLOC_PURGE_DELAY": "-1",  # Arrow's allocator
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),  # numpy's and torch's: no mapping of its own for an array of less
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
}
