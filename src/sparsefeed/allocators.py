"""Environment of processes by what they allocate: the same again for every batch, or large requests now and then."""

from __future__ import annotations

__all__ = ["GIVE_BACK", "KEEP_FREED"]

# Memory that went back to the kernel comes as a page fault for every 4 KiB: more than a quarter of an ETL's fit. Dask
# itself has workers give back whatever they free.
KEEP_FREED = {
    "MIMALLOC_PURGE_DELAY": "-1",  # Arrow's allocator
    "MALLOC_MMAP_THRESHOLD_": str(1 << 28),  # numpy's and torch's: no mapping of its own for an array of less
    "MALLOC_TRIM_THRESHOLD_": str(1 << 28),
}

# glibc raises its threshold to the largest block that was freed, up to 32 MiB, and from then on such blocks lie in
# heaps that do not shrink: a server that was sent a few huge requests held twice the memory ever after. One that is
# given stays as it is.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # above the tensors of a request that is served
