"""MapIds: string id columns -> rows of their tables, collision-free (docs/contracts/ids.md).

One operator fits the maps of all tables. A table that leaves ids out (min_count, max_ids) counts 64-bit keys
first; a second read then gathers the strings of those keys alone that may be admitted, so no worker ever holds the
strings of the many rare ids. A fitted map lies on disk and workers open it by mmap.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask import delayed
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags
from numpy.typing import NDArray
from nvtabular.ops import StatOperator

from sparsefeed.errors import DataError, DataWarning
from sparsefeed.etl import frame
from sparsefeed.etl.ids.admission import admit, candidates
from sparsefeed.etl.ids.counts import KeyCounts
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.inverse import Inverse
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.ids.sorted_keys import places
from sparsefeed.etl.ops.reduce import tree_reduce
from sparsefeed.etl.spec import FeedSpec, IdFeature, IdListFeature

__all__ = ["MapIds", "count_keys", "count_strings", "merge_keys", "merge_strings", "rows_schema"]

KeyCountsOf = dict[str, KeyCounts]  # by table
Candidates = Mapping[str, NDArray[np.uint64]]  # table -> keys, ascending
StringCounts = dict[str, pa.Table]  # table -> (id large_string, unique; count int64)
Nulls = dict[str, tuple[int, int]]  # column -> (nulls or empties, values)


def count_keys(part: DataFrameType, columns: Mapping[str, Sequence[str]], seed: int) -> KeyCountsOf:
    """Count the keys of a partition's ids.

    Args:
        part: a frame.
        columns: table -> its id columns.
        seed: the spec's `key_seed`.
    """
    counts = {}
    for table, names in columns.items():
        hashed = [hash_strings(frame.strings(part[name])[1], seed) for name in names]
        counts[table] = KeyCounts.from_keys(np.concatenate([keys[valid] for keys, valid in hashed]))
    return counts


def merge_keys(parts: Sequence[KeyCountsOf]) -> KeyCountsOf:
    """Sum the counts of several partitions; order does not matter."""
    return {table: parts[0][table].merge(*(part[table] for part in parts[1:])) for table in parts[0]}


def choose(counts: KeyCountsOf, spec: FeedSpec) -> Candidates:
    """Choose the keys whose strings may be admitted, per table."""
    return {
        name: candidates(counted, spec.table_by_name[name].min_count, spec.table_by_name[name].max_ids)
        for name, counted in counts.items()
    }


def count_strings(
    part: DataFrameType, columns: Mapping[str, Sequence[str]], seed: int, chosen: Candidates
) -> tuple[StringCounts, Nulls]:
    """Count the strings of a partition's ids, and per column its nulls.

    Args:
        part: a frame.
        columns: table -> its id columns.
        seed: the spec's `key_seed`.
        chosen: keys whose strings to count; of a table that is not among them, all.
    """
    counts: StringCounts = {}
    nulls: Nulls = {}
    for table, names in columns.items():
        parts = []
        for name in names:
            _, values = frame.strings(part[name])
            counted = pc.value_counts(values)  # of a dictionary by its codes
            ids, number = counted.field("values"), counted.field("counts").to_numpy()
            keys, wanted = hash_strings(ids, seed)
            nulls[name] = (int(number[~wanted].sum()), len(values))
            if table in chosen:
                wanted = wanted & (places(chosen[table], keys) >= 0)
            parts.append(
                pa.table({"id": ids.filter(pa.array(wanted)).cast(pa.large_string()), "count": number[wanted]})
            )
        counts[table] = _sum_counts(parts)
    return counts, nulls


def merge_strings(parts: Sequence[tuple[StringCounts, Nulls]]) -> tuple[StringCounts, Nulls]:
    """Sum the counts of several partitions; order does not matter."""
    counts = {table: _sum_counts([part[0][table] for part in parts]) for table in parts[0][0]}
    nulls = {name: (sum(p[1][name][0] for p in parts), sum(p[1][name][1] for p in parts)) for name in parts[0][1]}
    return counts, nulls


def _sum_counts(parts: Sequence[pa.Table]) -> pa.Table:
    # Arrow's group_by takes four times as long over large_string, and string ends at 2 GiB.
    counted = pa.concat_tables(parts)
    ids = counted["id"].combine_chunks().dictionary_encode()
    summed = np.bincount(ids.indices.to_numpy(), weights=counted["count"].to_numpy(), minlength=len(ids.dictionary))
    return pa.table({"id": ids.dictionary, "count": summed.astype(np.int64)})


class MapIds(StatOperator):
    """Map every `id` and `ids` column of the spec to rows of its table.

    Args:
        spec: the declaration.
        folder: where the fitted maps go: `folder/ids/<table>` and `folder/inverse/<table>`.
    """

    def __init__(self, spec: FeedSpec, folder: Path) -> None:
        super().__init__()
        self.spec = spec
        self.folder = folder
        self.features: tuple[IdFeature | IdListFeature, ...] = spec.of_kind("id", "ids")
        self.maps: dict[str, IdMap] = {}

    @property
    def columns(self) -> list[str]:
        """The raw columns the operator reads."""
        return [feature.name for feature in self.features]

    def fit(self, col_selector: ColumnSelector, ddf: Any) -> Any:
        """Count every table's ids over the partitions of `ddf`: keys first where some are left out, then strings."""
        columns = {t.name: [f.name for f in self.features if f.table == t.name] for t in self.spec.tables}
        limited = {t.name: columns[t.name] for t in self.spec.tables if t.min_count > 1 or t.max_ids is not None}
        chosen: Any = {}
        if limited:
            counts = tree_reduce(ddf, count_keys, merge_keys, limited, self.spec.key_seed)
            chosen = delayed(choose)(counts, self.spec)
        return tree_reduce(ddf, count_strings, merge_strings, columns, self.spec.key_seed, chosen, anew=bool(limited))

    def fit_finalize(self, dask_stats: tuple[StringCounts, Nulls]) -> None:
        """Build, save and reopen one map per table."""
        counts, nulls = dask_stats
        self._check_nulls(nulls)
        for table in self.spec.tables:
            # Sorted by string, so that neither the order of files nor of partitions moves a row.
            counted = counts[table.name].sort_by("id")
            keys, _ = hash_strings(counted["id"], self.spec.key_seed)
            # Again, string by string: a key's count was that of all its strings.
            admitted = np.sort(admit(keys, counted["count"].to_numpy(), table.min_count, table.max_ids))
            strings = counted["id"].take(admitted).combine_chunks()
            built = IdMap.build(
                keys[admitted],
                counted["count"].to_numpy()[admitted],
                table=table.name,
                key_seed=self.spec.key_seed,
                tail_rows=table.tail_rows,
                fingerprint_bits=table.fingerprint_bits,
                strings=strings,
            )
            path = self.folder / "ids" / table.name
            built.save(path)
            Inverse.build(built, strings).save(self.folder / "inverse" / table.name)
            self.maps[table.name] = IdMap.load(path)

    def _check_nulls(self, nulls: Nulls) -> None:
        allowed = self.spec.logs.max_null_share
        for name, (number, total) in nulls.items():
            if number > allowed * total:
                raise DataError(
                    f'column "{name}": {number} of {total} ids are null or empty, {number / total:.2%}; '
                    f"logs.max_null_share allows {allowed:.2%}; mend the logs or raise it in the recipe"
                )
            if number:
                warnings.warn(
                    f'column "{name}": {number} of {total} ids are null or empty; they read row 1',
                    DataWarning,
                    stacklevel=2,
                )

    def transform(self, col_selector: ColumnSelector, df: DataFrameType) -> DataFrameType:
        """Rows of every id column, int64; list columns cut at `max_length`."""
        out: dict[str, Any] = {}
        for feature in self.features:
            on_device = frame.device_strings(df[feature.name])
            offsets, values = frame.strings(df[feature.name]) if on_device is None else (None, on_device)
            rows = self.maps[feature.table].encode(values)
            if offsets is None:
                out[feature.name] = rows
            else:
                assert isinstance(feature, IdListFeature)
                out[feature.name] = frame.ragged(*_cut(offsets, rows, feature.max_length))
        return frame.like(df, out)

    def compute_output_schema(
        self, input_schema: Schema, col_selector: ColumnSelector, prev_output_schema: Any = None
    ) -> Schema:
        """int64 rows: scalar, or list for `ids` features; the domain is the map's capacity once fitted."""
        columns = []
        for feature in self.features:
            size = self.maps[feature.table].capacity_rows if self.maps else None
            columns.append(rows_schema(feature.name, isinstance(feature, IdListFeature), size))
        return Schema(columns)

    def clear(self) -> None:
        """Forget the fitted maps (their files stay)."""
        self.maps = {}


def rows_schema(name: str, is_list: bool, capacity_rows: int | None) -> ColumnSchema:
    """The Merlin schema of a column of table rows."""
    properties = {"domain": {"min": 0, "max": capacity_rows - 1, "name": name}} if capacity_rows else {}
    return ColumnSchema(
        name, tags=[Tags.CATEGORICAL], dtype=np.int64, is_list=is_list, is_ragged=is_list, properties=properties
    )


def _cut(
    offsets: NDArray[np.int64], values: NDArray[np.int64], max_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep the first `max_length` values of every row of a ragged column."""
    lengths = np.diff(offsets)
    if not len(lengths) or lengths.max() <= max_length:
        return offsets, values
    place = np.arange(len(values)) - np.repeat(offsets[:-1] - offsets[0], lengths)
    return np.r_[0, np.cumsum(np.minimum(lengths, max_length))], values[place < max_length]
