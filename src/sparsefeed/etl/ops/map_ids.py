"""MapIds: string id columns -> rows of their tables, collision-free (docs/contracts/ids.md).

One operator fits the maps of all tables in one pass. Partitions count their distinct strings with Arrow;
only distinct strings travel. A fitted map lies on disk and workers open it by mmap.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags
from numpy.typing import NDArray
from nvtabular.ops import StatOperator

from sparsefeed.errors import DataError, DataWarning
from sparsefeed.etl import frame
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.inverse import Inverse
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.ops.reduce import tree_reduce
from sparsefeed.etl.spec import FeedSpec, IdFeature, IdListFeature

__all__ = ["MapIds", "count_ids", "merge_counts"]

Counts = dict[str, pa.Table]  # table -> (id string, count int64)


def count_ids(part: DataFrameType, columns: Mapping[str, Sequence[str]]) -> tuple[Counts, dict[str, tuple[int, int]]]:
    """Count a partition's ids per table, and per column (nulls or empties, values).

    Args:
        part: a frame.
        columns: table -> its id columns.
    """
    counts: Counts = {}
    nulls: dict[str, tuple[int, int]] = {}
    for table, names in columns.items():
        parts = []
        for name in names:
            _, values = frame.strings(part[name])
            counted = pc.value_counts(values.cast(pa.string()))
            ids, number = counted.field("values"), counted.field("counts")
            real = pc.and_(pc.is_valid(ids), pc.not_equal(ids, "")).fill_null(False)
            nulls[name] = (len(values) - (pc.sum(number.filter(real)).as_py() or 0), len(values))
            parts.append(pa.table({"id": ids.filter(real), "count": number.filter(real)}))
        counts[table] = _sum_counts(parts)
    return counts, nulls


def _sum_counts(parts: Sequence[pa.Table]) -> pa.Table:
    summed = pa.concat_tables(parts).group_by("id").aggregate([("count", "sum")])
    return pa.table({"id": summed["id"].combine_chunks(), "count": summed["count_sum"].combine_chunks()})


def merge_counts(
    parts: Sequence[tuple[Counts, dict[str, tuple[int, int]]]],
) -> tuple[Counts, dict[str, tuple[int, int]]]:
    """Sum the counts of several partitions; order does not matter."""
    counts = {table: _sum_counts([part[0][table] for part in parts]) for table in parts[0][0]}
    nulls = {name: (sum(p[1][name][0] for p in parts), sum(p[1][name][1] for p in parts)) for name in parts[0][1]}
    return counts, nulls


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
        """Count every table's ids over the partitions of `ddf`."""
        columns = {t.name: [f.name for f in self.features if f.table == t.name] for t in self.spec.tables}
        return tree_reduce(ddf, count_ids, merge_counts, columns)

    def fit_finalize(self, dask_stats: tuple[Counts, dict[str, tuple[int, int]]]) -> None:
        """Build, save and reopen one map per table."""
        counts, nulls = dask_stats
        self._check_nulls(nulls)
        for table in self.spec.tables:
            # Sorted by string, so that neither the order of files nor of partitions moves a row.
            counted = counts[table.name].sort_by("id")
            strings = counted["id"].combine_chunks()
            keys, _ = hash_strings(strings, self.spec.key_seed)
            built = IdMap.build(
                keys,
                counted["count"].to_numpy().astype(np.int64),
                table=table.name,
                key_seed=self.spec.key_seed,
                tail_rows=table.tail_rows,
                min_count=table.min_count,
                max_ids=table.max_ids,
                fingerprint_bits=table.fingerprint_bits,
                strings=strings,
            )
            path = self.folder / "ids" / table.name
            built.save(path)
            Inverse.build(built, strings).save(self.folder / "inverse" / table.name)
            self.maps[table.name] = IdMap.load(path)

    def _check_nulls(self, nulls: Mapping[str, tuple[int, int]]) -> None:
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
            offsets, values = frame.strings(df[feature.name])
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
