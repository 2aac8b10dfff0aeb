"""Sparse folders: a table as HugeCTR, NVIDIA HPS 24.06 and TorchRec exchange it (ps.json is in ps_json)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.models.store.table import TableFile

__all__ = ["export_hps", "read_hps", "write_sparse"]

_CHUNK_ROWS = 1 << 16  # rows decoded at a time: the memory of a write


def export_hps(folder: Path, tables: Mapping[str, NDArray[np.float32]]) -> None:
    """Write `<table>/key` and `<table>/emb_vector` per table: raw, little endian, no header, keys ascending.

    Args:
        folder: made when it is not there.
        tables: float32 [n, d] by name; the key of a row is its number.

    Raises:
        BundleError: row 0 of a table is not zero.
    """
    for name, values in tables.items():
        if values[:1].any():
            raise BundleError(f'table "{name}": row 0 (padding) is not zero; set it to zero before the export')
        place = Path(folder) / name
        place.mkdir(parents=True)
        np.arange(len(values), dtype="<i8").tofile(place / "key")
        values.astype("<f4", copy=False).tofile(place / "emb_vector")


def write_sparse(folder: Path, table: TableFile) -> int:
    """Write the sparse folder of a stored table, decoded to float32; return how many keys it holds.

    It holds every row that is not zero, and row 0: padding is the key that is asked most and has to be a hit. The rows
    left out are answered by the default vector, which is zero. Memory: 2^16 rows, whatever the table's size.

    Args:
        folder: made by this call; it must not exist.
        table: of any row format; its overlay wins.

    Raises:
        BundleError: row 0 is not zero.
    """
    folder.mkdir(parents=True)
    num_keys = 0
    # Plain writes, not tofile: on a full disk they raise ENOSPC, which the command line tells of.
    with (folder / "key").open("xb") as keys, (folder / "emb_vector").open("xb") as vectors:
        for start in range(0, table.rows, _CHUNK_ROWS):
            rows = np.arange(start, min(start + _CHUNK_ROWS, table.rows), dtype=np.int64)
            values = table.lookup(rows)
            kept = values.any(axis=1)
            if start == 0:
                if kept[0]:
                    raise BundleError(f'table "{table.name}": row 0 (padding) is not zero; export the bundle again')
                kept[0] = True
            keys.write(rows[kept].astype("<i8", copy=False).data)
            vectors.write(values[kept].astype("<f4", copy=False).data)
            num_keys += int(kept.sum())
    return num_keys


def read_hps(folder: Path, dim: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Memory-map one table's sparse folder: keys int64 [n] and vectors float32 [n, dim].

    Raises:
        BundleError: a file is missing, or its size is not n keys or n vectors of `dim` floats.
    """
    key_path, vector_path = Path(folder) / "key", Path(folder) / "emb_vector"
    try:
        key_bytes, vector_bytes = key_path.stat().st_size, vector_path.stat().st_size
    except OSError as error:
        raise BundleError(f"{folder}: not a sparse folder: {error}; it must hold key and emb_vector") from error
    num_keys = key_bytes // 8
    if key_bytes % 8 or vector_bytes != num_keys * dim * 4:
        raise BundleError(
            f"{folder}: key has {key_bytes} bytes, emb_vector {vector_bytes}; {num_keys} keys of dim {dim} need "
            f"{num_keys * 8} and {num_keys * dim * 4}; give the table's dim, or export it again"
        )
    if not num_keys:
        return np.empty(0, np.int64), np.empty((0, dim), np.float32)
    return np.memmap(key_path, "<i8", "r"), np.memmap(vector_path, "<f4", "r", shape=(num_keys, dim))
