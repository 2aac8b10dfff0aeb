"""MapIds: string id columns -> rows of their tables, collision-free (docs/contracts/ids.md).

One operator fits the maps of all tables. Each task leaves the distinct strings of its ids and their counts as
a run by key; a job per table then merges the runs range by range and drops what is too rare, so no worker holds the
strings of the many ids that are seen once. A fitted map lies on disk and workers open it by mmap.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags
from numpy.typing import NDArray

from sparsefeed.errors import DataError, DataWarning, IdError
from sparsefeed.etl import frame
from sparsefeed.etl.ids.admission import admit
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.inverse import Inverse
from sparsefeed.etl.ids.string_counts import StringCounter, StringCounts
from sparsefeed.etl.ops.statistic import Collector, Job, Statistic
from sparsefeed.etl.runs import Runs
from sparsefeed.etl.segments import Segments, rows_of
from sparsefeed.etl.spec import FeedSpec, IdFeature, IdListFeature, Table

__all__ = ["MapIds", "rare_counts", "rows_schema"]

Nulls = dict[str, tuple[int, int]]  # column -> (nulls or empties, values)
Counted = tuple[Nulls, dict[str, int]]  # and table -> runs
_MOST_COUNTED = 1_000_000  # distinct strings of a table that are counted before they are written as a run
_ROWS_AT_ONCE = 150_000  # distinct strings of runs that a job merges at a time; more leave the caches


@dataclass(frozen=True)
class BuildMap:
    """Make, save and count the map of one table and its inverse, from what the partitions left.

    Ids that are too rare are kept with their counts for the next day. A day that is added gives rows to the ids that
    are frequent enough by now, beside those that the map of the day before has, which stay where they are.

    Attributes:
        table: the map's.
        key_seed: of the keys.
        folder: of the result.
        runs: of the partitions' distinct strings.
        num_runs: one a partition.
        previous: result that this one adds a day to; None: none.
        ids_from: a part of that day, beside whose ids rows are given; None: beside those of `previous`.
    """

    table: Table
    key_seed: int
    folder: Path
    runs: Runs
    num_runs: int
    previous: Path | None
    ids_from: Path | None

    def __call__(self) -> int:
        """Ids admitted."""
        name, previous, ids_from = self.table.name, self.previous, self.ids_from or self.previous
        before = IdMap.load(ids_from / "ids" / name) if ids_from else None
        earlier = rare_counts(previous, name) if previous else None
        admitted: list[StringCounts] = []

        def rare() -> Iterator[pa.Table]:
            for counted in self._counted(before):
                total = counted.merge(*_of_same_keys(earlier, counted.keys)) if earlier else counted
                frequent, rest = total.split(self.table.min_count)
                admitted.append(frequent)
                if self.table.max_ids is not None and sum(map(len, admitted)) > 2 * self.table.max_ids:
                    admitted[:] = [self._most_frequent(admitted, before)]
                yield (counted.without(frequent) if earlier else rest).to_arrow()

        rare_counts(self.folder, name).grow(earlier, rare(), partial(_merged, before))
        chosen = self._most_frequent(admitted, before)
        if before:
            made, _ = before.add(chosen.keys, chosen.strings)
        else:
            made = IdMap.build(
                chosen.keys,
                chosen.counts,
                table=name,
                key_seed=self.key_seed,
                tail_rows=self.table.tail_rows,
                paired_tail=self.table.paired_tail,
                fingerprint_bits=self.table.fingerprint_bits,
                strings=chosen.strings,
            )
        made.save(self.folder / "ids" / name)
        first_row, strings = before.num_rows if before else made.first_row, chosen.strings
        if self.ids_from and before:  # of its ids the whole day's inverse has the strings, too
            earlier_ids = Inverse.load(self.ids_from / "inverse" / name)
            rows = np.arange(earlier_ids.first_row, first_row)
            first_row, strings = earlier_ids.first_row, pa.chunked_array([earlier_ids.decode(rows), strings])
        Inverse.build(made, strings, first_row).save(self.folder / "inverse" / name)
        return made.num_admitted

    def _counted(self, before: IdMap | None) -> Iterator[StringCounts]:
        """What was counted, range by range of the keys, without the ids that have a row."""
        for tables in self.runs.ranges(_ROWS_AT_ONCE, self.num_runs):
            some = [StringCounts.from_arrow(table) for table in tables]
            counted = some[0].merge(*some[1:])
            yield _without_rows(counted, before) if before else counted

    def _most_frequent(self, parts: Sequence[StringCounts], before: IdMap | None) -> StringCounts:
        """All of them, or as many of the most frequent as `max_ids` leaves room for."""
        counted, most = parts[0] if len(parts) == 1 else StringCounts.concatenate(parts), self.table.max_ids
        if most is not None and before:
            most = max(0, most - before.num_admitted)
        if most == 0:
            return counted.take(np.empty(0, np.int64))
        if most is None or len(counted) <= most:
            return counted
        return counted.take(np.sort(admit(counted.keys, counted.counts, 1, most, counted.strings)))


def rare_counts(result: Path, table: str) -> Segments:
    """Counts of the ids of a table that have no row, as of the last day of a result."""
    return Segments(result / "state" / f"counts-{table}", StringCounts.SCHEMA)


def _of_same_keys(segments: Segments, keys: NDArray[np.uint64]) -> list[StringCounts]:
    """What segments have of some keys, ascending ones that may repeat."""
    keys = np.unique(keys)
    return [StringCounts.from_arrow(rows_of(table, keys)) for table in segments.tables()]


def _without_rows(counted: StringCounts, id_map: IdMap) -> StringCounts:
    return counted.take(np.flatnonzero(id_map.own_rows(counted.strings) < 0))


def _merged(before: IdMap | None, newer: pa.Table, older: pa.Table) -> pa.Table:
    """Sum up counts, and forget the ids that have a row by now."""
    counted = StringCounts.from_arrow(newer).merge(StringCounts.from_arrow(older))
    return (_without_rows(counted, before) if before else counted).to_arrow()


class MapIds(Statistic):
    """Map every `id` and `ids` column of the spec to rows of its table.

    Args:
        spec: the declaration.
        folder: where the fitted maps go: `folder/ids/<table>` and `folder/inverse/<table>`; runs lie in
            `folder/runs` meanwhile. What the next day goes on from: `folder/state/counts-<table>`.
        previous: result that this one adds a day to; None: none.
        ids_from: a part of that day, whose ids keep their rows; None: there is none.
    """

    def __init__(
        self, spec: FeedSpec, folder: Path, previous: Path | None = None, ids_from: Path | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.folder = folder
        self.previous = previous
        self.ids_from = ids_from
        self.features: tuple[IdFeature | IdListFeature, ...] = spec.of_kind("id", "ids")
        self.runs = {table.name: Runs(folder / "runs" / f"ids-{table.name}") for table in spec.tables}
        self.maps: dict[str, IdMap] = {}

    @property
    def columns(self) -> list[str]:
        """The raw columns the operator reads."""
        return [feature.name for feature in self.features]

    def collect(self, part: DataFrameType, number: int) -> Counted:
        """Leave the counts of a partition's ids as runs; give the nulls of each column, and the runs of each table."""
        collector = self.collector()
        collector.add(part, number)
        return collector.result()

    def collector(self) -> CountIds:
        """Count over all partitions of a task, so that it leaves one run."""
        return CountIds(self)

    def merge(self, parts: Sequence[Counted]) -> Counted:
        """Sum what several partitions gave."""
        nulls = {n: (sum(p[0][n][0] for p in parts), sum(p[0][n][1] for p in parts)) for n in parts[0][0]}
        return nulls, {name: sum(part[1][name] for part in parts) for name in parts[0][1]}

    def jobs(self, merged: Counted, num_partitions: int) -> list[Job]:
        """A map per table, the one that takes longest first, once the nulls are few enough."""
        nulls, num_runs = merged
        self._check_nulls(nulls)
        seed, folder, previous = self.spec.key_seed, self.folder, self.previous
        tables = sorted(self.spec.tables, key=lambda table: -self.runs[table.name].num_bytes)
        return [BuildMap(t, seed, folder, self.runs[t.name], num_runs[t.name], previous, self.ids_from) for t in tables]

    def fit_finalize(self, dask_stats: tuple[Counted, list[int]]) -> None:
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
            columns.append(rows_schema(feature.name, isinstance(feature, IdListFeature), self.maps.get(feature.table)))
        return Schema(columns)

    def clear(self) -> None:
        """Forget the fitted maps (their files stay)."""
        self.maps = {}


class CountIds(Collector):
    """Counts the ids of a task's partitions; a run of each table at the end, and whenever there are many."""

    def __init__(self, operator: MapIds) -> None:
        super().__init__(operator)
        self._runs = operator.runs
        self._columns = {table: [f.name for f in operator.features if f.table == table] for table in operator.runs}
        self._seed = operator.spec.key_seed
        self._counters = {name: StringCounter(self._seed) for name in operator.columns}
        self._nulls = dict.fromkeys(operator.columns, (0, 0))
        self._num_runs = dict.fromkeys(operator.runs, 0)
        self._number = 0

    def add(self, part: DataFrameType, number: int) -> None:
        """Count the ids of partition `number`; DataError names the column of what is no id."""
        self._number = number
        for table, columns in self._columns.items():
            for name in columns:
                _, values = frame.strings(part[name])
                with _named(name):
                    counted = self._counters[name].add(values)
                nulls, total = self._nulls[name]
                self._nulls[name] = nulls + len(values) - counted, total + len(values)
            if sum(len(self._counters[name]) for name in columns) > _MOST_COUNTED:
                self._write(table)

    def result(self) -> Counted:
        """Nulls of each column, and how many runs each table has got."""
        for table, columns in self._columns.items():
            if any(len(self._counters[name]) for name in columns):
                self._write(table)
        return self._nulls, self._num_runs

    def _write(self, table: str) -> None:
        """Write a run; a task that is made again writes the same ones."""
        counts = []
        for name in self._columns[table]:
            with _named(name):
                counts.append(self._counters[name].counts())
            self._counters[name] = StringCounter(self._seed)
        self._runs[table].write(self._number, counts[0].merge(*counts[1:]).to_arrow())
        self._num_runs[table] += 1


@contextmanager
def _named(column: str) -> Iterator[None]:
    try:
        yield
    except IdError as error:
        raise DataError(f'column "{column}": {error}') from error


def rows_schema(name: str, is_list: bool, id_map: IdMap | None) -> ColumnSchema:
    """The Merlin schema of a column of table rows; of a fitted map with their bounds."""
    least = min(0, id_map.tail.first) if id_map else 0
    properties = {"domain": {"min": least, "max": id_map.capacity_rows - 1, "name": name}} if id_map else {}
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
