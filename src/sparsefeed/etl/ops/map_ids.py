"""MapIds: string id columns -> rows of their tables, collision-free (docs/contracts/ids.md).

One operator fits the maps of all tables. Each partition leaves the distinct strings of its ids and their counts as
a run by key; a job per table then merges the runs range by range and drops what is too rare, so no worker holds the
strings of the many ids that are seen once. A fitted map lies on disk and workers open it by mmap.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags
from numpy.typing import NDArray

from sparsefeed.errors import DataError, DataWarning, IdError
from sparsefeed.etl import frame
from sparsefeed.etl.ids.admission import admit
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.inverse import Inverse
from sparsefeed.etl.ids.string_counts import StringCounts
from sparsefeed.etl.ops.statistic import Job, Statistic
from sparsefeed.etl.runs import Runs
from sparsefeed.etl.spec import FeedSpec, IdFeature, IdListFeature, Table

__all__ = ["MapIds", "rows_schema"]

Nulls = dict[str, tuple[int, int]]  # column -> (nulls or empties, values)
_ROWS_AT_ONCE = 2_000_000  # distinct strings of partitions that a job merges at a time


@dataclass(frozen=True)
class BuildMap:
    """Build, save and count the map of one table and its inverse, from what the partitions left."""

    table: Table
    key_seed: int
    folder: Path
    runs: Runs
    num_runs: int

    def __call__(self) -> int:
        """Ids admitted."""
        counted = self._admitted()
        built = IdMap.build(
            counted.keys,
            counted.counts,
            table=self.table.name,
            key_seed=self.key_seed,
            tail_rows=self.table.tail_rows,
            fingerprint_bits=self.table.fingerprint_bits,
            strings=counted.strings,
        )
        built.save(self.folder / "ids" / self.table.name)
        Inverse.build(built, counted.strings).save(self.folder / "inverse" / self.table.name)
        return built.num_admitted

    def _admitted(self) -> StringCounts:
        """The ids that are frequent enough, of more than `max_ids` the most frequent."""
        kept: list[StringCounts] = []
        for tables in self.runs.ranges(_ROWS_AT_ONCE, self.num_runs):
            some = [StringCounts.from_arrow(table) for table in tables]
            kept.append(some[0].merge(*some[1:]).at_least(self.table.min_count))
            if self.table.max_ids is not None and sum(map(len, kept)) > 2 * self.table.max_ids:
                kept = [self._most_frequent(StringCounts.concatenate(kept))]
        return self._most_frequent(StringCounts.concatenate(kept))

    def _most_frequent(self, counted: StringCounts) -> StringCounts:
        min_count, max_ids = self.table.min_count, self.table.max_ids
        return counted.take(np.sort(admit(counted.keys, counted.counts, min_count, max_ids, counted.strings)))


class MapIds(Statistic):
    """Map every `id` and `ids` column of the spec to rows of its table.

    Args:
        spec: the declaration.
        folder: where the fitted maps go: `folder/ids/<table>` and `folder/inverse/<table>`; runs lie in
            `folder/runs` meanwhile.
    """

    def __init__(self, spec: FeedSpec, folder: Path) -> None:
        super().__init__()
        self.spec = spec
        self.folder = folder
        self.features: tuple[IdFeature | IdListFeature, ...] = spec.of_kind("id", "ids")
        self.runs = {table.name: Runs(folder / "runs" / f"ids-{table.name}") for table in spec.tables}
        self.maps: dict[str, IdMap] = {}

    @property
    def columns(self) -> list[str]:
        """The raw columns the operator reads."""
        return [feature.name for feature in self.features]

    def collect(self, part: DataFrameType, number: int) -> Nulls:
        """Leave the counts of a partition's ids as runs; give the nulls of each column."""
        nulls: Nulls = {}
        for table, runs in self.runs.items():
            counted = []
            for name in (feature.name for feature in self.features if feature.table == table):
                _, values = frame.strings(part[name])
                try:
                    counted.append(StringCounts.of(values, self.spec.key_seed))
                except IdError as error:
                    raise DataError(f'column "{name}": {error}') from error
                nulls[name] = (len(values) - int(counted[-1].counts.sum()), len(values))
            runs.write(number, counted[0].merge(*counted[1:]).to_arrow())
        return nulls

    def merge(self, parts: Sequence[Nulls]) -> Nulls:
        """Sum the nulls of several partitions."""
        return {name: (sum(p[name][0] for p in parts), sum(p[name][1] for p in parts)) for name in parts[0]}

    def jobs(self, merged: Nulls, num_partitions: int) -> list[Job]:
        """A map per table, once the nulls are few enough."""
        self._check_nulls(merged)
        seed, folder = self.spec.key_seed, self.folder
        return [BuildMap(t, seed, folder, self.runs[t.name], num_partitions) for t in self.spec.tables]

    def fit_finalize(self, dask_stats: tuple[Nulls, list[int]]) -> None:
        """Open the maps, and remove the runs: only now no job can be made again."""
        for runs in self.runs.values():
            runs.remove()
        self.maps = {table.name: IdMap.load(self.folder / "ids" / table.name) for table in self.spec.tables}

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
