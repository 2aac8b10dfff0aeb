"""NVIDIA HPS 24.06: sparse folders (the exchange format of HugeCTR, HPS and TorchRec) and ps.json.

HPS's own parser accepts nearly anything: unknown keys, lists of different lengths, names it throws at later.
So everything here is typed, and refused where it is made. Field names are NVIDIA's
(HugeCTR/include/hps/inference_utils.hpp), defaults are ours where theirs are traps.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.models.store.table import NAME_PATTERN

__all__ = ["HpsModel", "HpsTable", "ParameterServer", "VolatileDatabase", "export_hps", "ps_json", "read_hps"]


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


def _check_name(kind: str, name: str) -> None:
    _check(re.fullmatch(NAME_PATTERN, name) is not None, f'{kind} "{name}": not a name; must match {NAME_PATTERN}')


def _check(holds: bool, message: str) -> None:
    if not holds:
        raise BundleError(f"ps.json: {message}")


@dataclass(frozen=True)
class HpsTable:
    """One table as HPS serves it.

    Attributes:
        name: the table's name.
        dim: floats per row.
        sparse_file: its sparse folder on the GPU host.
        max_keys_per_sample: keys one candidate asks of it at most: the sum of its features' lengths.
    """

    name: str
    dim: int
    sparse_file: str
    max_keys_per_sample: int

    def __post_init__(self) -> None:
        _check_name("table", self.name)
        _check(self.dim > 0, f'table "{self.name}": dim: got {self.dim}; must be at least 1')
        _check(
            bool(self.sparse_file), f'table "{self.name}": sparse_file: empty; must be the path of its sparse folder'
        )
        keys = self.max_keys_per_sample
        _check(keys > 0, f'table "{self.name}": max_keys_per_sample: got {keys}; must be at least 1')


@dataclass(frozen=True)
class HpsModel:
    """One entry of `models`: one bundle. HPS keys tables by model name, so each bundle has a name of its own.

    Lists run over tables in the spec's order. Missing keys, the padding key 0 among them, give zero vectors.
    """

    model: str
    sparse_files: tuple[str, ...]
    embedding_table_names: tuple[str, ...]
    embedding_vecsize_per_table: tuple[int, ...]
    maxnum_catfeature_query_per_table_per_sample: tuple[int, ...]
    default_value_for_each_table: tuple[float, ...]
    max_batch_size: int
    num_of_worker_buffer_in_pool: int = 4  # at least the instances of the Triton model
    deployed_device_list: tuple[int, ...] = (0,)
    gpucache: bool = True
    gpucacheper: float = 0.5  # share of a table's rows held on the GPU
    hit_rate_threshold: float = 0.9  # above it HPS answers at once and fills its cache behind
    embedding_cache_type: str = "dynamic"

    def __post_init__(self) -> None:
        _check_name("model", self.model)
        lists = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        lengths = {
            name: len(value)
            for name, value in lists.items()
            if isinstance(value, tuple) and name != "deployed_device_list"
        }
        _check(len(set(lengths.values())) == 1, f'model "{self.model}": lists of different lengths: {lengths}')
        _check(bool(self.sparse_files), f'model "{self.model}": has no table; give one at least')
        names = self.embedding_table_names
        _check(len(set(names)) == len(names), f'model "{self.model}": a table name occurs twice: {list(names)}')
        for field in ("max_batch_size", "num_of_worker_buffer_in_pool"):
            got = getattr(self, field)
            _check(got > 0, f'model "{self.model}": {field}: got {got}; must be at least 1')
        for field in ("gpucacheper", "hit_rate_threshold"):
            got = getattr(self, field)
            _check(0 < got <= 1, f'model "{self.model}": {field}: got {got}; must be in (0, 1]')
        types = ("dynamic", "static", "uvm")
        got = self.embedding_cache_type
        _check(got in types, f'model "{self.model}": embedding_cache_type: got "{got}"; allowed: {", ".join(types)}')


@dataclass(frozen=True)
class VolatileDatabase:
    """The CPU memory tier. `type` is always stated: a block without one is disabled, in silence."""

    type: str = "parallel_hash_map"
    num_partitions: int = 8
    overflow_margin: int = 2**63 - 1  # rows per partition before eviction: none
    update_filters: tuple[str, ...] = (".+",)  # NVIDIA's default, ^hps_.+$, never matches

    def __post_init__(self) -> None:
        types = ("hash_map", "parallel_hash_map", "multi_process_hash_map")
        _check(self.type in types, f'volatile_db.type: got "{self.type}"; allowed: {", ".join(types)}')
        _check(self.num_partitions > 0, f"volatile_db.num_partitions: got {self.num_partitions}; must be at least 1")


@dataclass(frozen=True)
class ParameterServer:
    """ps.json. `supportlonglong` is always true: the Triton backend takes int64 keys only."""

    models: tuple[HpsModel, ...]
    volatile_db: VolatileDatabase = VolatileDatabase()
    supportlonglong: bool = True

    def __post_init__(self) -> None:
        names = [model.model for model in self.models]
        _check(bool(names), "models: empty; give one at least")
        _check(len(set(names)) == len(names), f"models: a name occurs twice: {names}")
        _check(self.supportlonglong, "supportlonglong: got false; keys are int64")

    def dump(self) -> str:
        """Return the JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1) + "\n"


def ps_json(model: str, tables: Sequence[HpsTable], max_batch_size: int) -> str:
    """ps.json of one bundle on one GPU.

    Args:
        model: the Triton model's name, `feed_hps_<bundle>`.
        tables: in the spec's order.
        max_batch_size: candidates per request at most.

    Raises:
        BundleError: a name, a length or a number that HPS would take without a word and misuse.
    """
    entry = HpsModel(
        model=model,
        sparse_files=tuple(table.sparse_file for table in tables),
        embedding_table_names=tuple(table.name for table in tables),
        embedding_vecsize_per_table=tuple(table.dim for table in tables),
        maxnum_catfeature_query_per_table_per_sample=tuple(table.max_keys_per_sample for table in tables),
        default_value_for_each_table=(0.0,) * len(tables),
        max_batch_size=max_batch_size,
    )
    return ParameterServer((entry,)).dump()
