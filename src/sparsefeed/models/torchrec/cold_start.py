"""Cold start: first values of the rows that a day's new ids get, as the recipe says (`train.cold_start`).

Until an id is seen often enough it reads a row of the table's tail, so that is what it is known by; `tail` goes on from
there. `features` takes the rows of other ids in its impressions, as of a new post those of its creator and its
hashtags. `similar` takes the rows of its own table whose ids share such a feature, as of a new member those of members
who were shown the same creators. An id without any of these starts from its tail row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.errors import DataError, SpecError, did_you_mean
from sparsefeed.etl.ids import IdMap, Inverse
from sparsefeed.etl.ids.codes import vectors_of
from sparsefeed.etl.spec import FeedSpec, HistoryFeature, IdFeature
from sparsefeed.models.config import ColdStart
from sparsefeed.models.torchrec.checkpoint import load_tables
from sparsefeed.models.torchrec.columns import capacity_rows, jagged, num_rows, open_split, read_part

__all__ = ["check_cold_start", "first_rows"]

Rows = NDArray[np.float32]


def check_cold_start(spec: FeedSpec, cold_start: Mapping[str, ColdStart]) -> None:
    """SpecError where a recipe's `cold_start` cannot be meant."""
    names = [table.name for table in spec.tables]
    for table, start in cold_start.items():
        where = f"train.cold_start.{table}"
        if table not in names:
            raise SpecError(f'{where}: "{table}" is not a table{did_you_mean(table, names)}')
        if (start.start in ("features", "similar")) != bool(start.features):
            raise SpecError(
                f"{where}: features go with `features` and `similar`, one at least, and with no other start"
            )
        lookups = {feature.name: feature for feature in spec.lookups}
        ids = [f for f in spec.lookups_of(table) if isinstance(f, IdFeature)]
        for name in start.features:
            if name not in lookups:
                raise SpecError(f'{where}: "{name}" is no id, ids or history feature{did_you_mean(name, lookups)}')
            of = spec.table_of(lookups[name])
            if of.name == table:
                raise SpecError(f'{where}: "{name}" reads the table itself; allowed: features of other tables')
            dim = next(one.dim for one in spec.tables if one.name == table)
            if start.start == "features" and of.dim != dim:
                raise SpecError(f'{where}: "{name}" has rows of dim {of.dim}; allowed: {dim}, the table\'s')
            if not ids and not isinstance(lookups[name], IdFeature):
                raise SpecError(f'{where}: "{name}" and the table\'s features are all lists; name an `id` feature')


def first_rows(
    spec: FeedSpec, cold_start: Mapping[str, ColdStart], day: Path, previous: Path, checkpoint: Path
) -> dict[str, tuple[int, Rows]]:
    """The first new row of each table that has some and is not to start at random, and their values [n, dim].

    Args:
        spec: the declaration.
        cold_start: by table; others start from the tail.
        day: ETL result of the day.
        previous: ETL result that the day was added to.
        checkpoint: trained on `previous`.

    Raises:
        DataError: the day's ids are fewer than those before.
    """
    before, after, tables = num_rows(spec, previous), num_rows(spec, day), load_tables(checkpoint)
    found = {}
    tails = {table.name: table.tail_rows for table in spec.tables}
    for name, first in before.items():
        start, last = cold_start.get(name, ColdStart()), after[name]
        if last < first:
            raise DataError(f'{day}: table "{name}" has {last} rows, {previous} has {first}; rows never go away')
        if last == first or start.start == "random":
            continue
        values = _of_tail(day, previous, name, first, last, tables[name], tails[name])
        if start.start != "tail":
            near = _Neighbours(spec, day, name, before, last, start.features)
            means, known = near.of_features(tables) if start.start == "features" else near.of_similar(tables[name])
            values[known] = means[known]
        found[name] = first, values
    return found


def _of_tail(day: Path, previous: Path, table: str, first: int, last: int, values: Rows, tail_rows: int) -> Rows:
    """What each new id read until now."""
    strings = Inverse.load(day / "inverse" / table).decode(np.arange(first, last))
    return vectors_of(values, IdMap.load(previous / "ids" / table).encode(strings), tail_rows)


class _Neighbours:
    """The ids that stand beside a table's ids in a day's impressions."""

    def __init__(
        self, spec: FeedSpec, day: Path, table: str, before: Mapping[str, int], last: int, features: tuple[str, ...]
    ) -> None:
        self._spec, self._day, self._table = spec, day, table
        self._first, self._last, self._features = before[table], last, features
        self._before = before
        self._table_of = {feature.name: spec.table_of(feature).name for feature in spec.lookups}
        self._tails = {table.name: table.tail_rows for table in spec.tables}

    def of_features(self, tables: Mapping[str, Rows]) -> tuple[Rows, NDArray[np.bool_]]:
        """Mean over the ids of these features, not new themselves, beside each new id, and which new ids have one."""
        sums = _Sums(self._last - self._first, tables[self._table].shape[1])
        for feature, keys, ids in self._pairs():
            other = self._table_of[feature]
            pairs = (keys >= self._first) & (ids < self._before[other])
            vectors = vectors_of(tables[other], ids[pairs], self._tails[other])
            sums.add(keys[pairs] - self._first, vectors)
        return sums.means()

    def of_similar(self, values: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """Mean over these features' ids beside each new id, of the mean of the known ids beside that one."""
        capacities = capacity_rows(self._spec, self._day)
        sums = _Sums(self._last - self._first, values.shape[1])
        for feature in self._features:
            beside = _Sums(capacities[self._table_of[feature]], values.shape[1])
            # Codes of a tail are no rows to sum by, and say of whom an id is like no more than a null does.
            for _, keys, ids in self._pairs(feature):
                known = (keys < self._first) & (ids > 0)
                beside.add(ids[known], vectors_of(values, keys[known], self._tails[self._table]))
            means, have = beside.means()
            for _, keys, ids in self._pairs(feature):
                new = (keys >= self._first) & (ids > 0) & have[ids]
                sums.add(keys[new] - self._first, means[ids[new]])
        return sums.means()

    def _pairs(self, only: str | None = None) -> Iterator[tuple[str, NDArray[np.int64], NDArray[np.int64]]]:
        """Feature, ids of the table, and as many ids of the feature beside them, row group by row group."""
        spec, capacities = self._spec, capacity_rows(self._spec, self._day)
        own = [f.name for f in spec.lookups_of(self._table) if not isinstance(f, HistoryFeature)]
        wanted = self._features if only is None else (only,)
        for part in open_split(spec, self._day, "train", [*own, *wanted]):
            table = read_part(spec, part, [*own, *wanted], capacities)
            columns = {name: table.column(name).combine_chunks() for name in (*own, *wanted)}
            for name in own:
                for feature in wanted:
                    (keys, key_offsets), (ids, offsets) = jagged(columns[name]), jagged(columns[feature])
                    if not pa.types.is_list(columns[name].type):
                        yield feature, np.repeat(keys, np.diff(offsets)), ids
                    elif not pa.types.is_list(columns[feature].type):
                        yield feature, keys, np.repeat(ids, np.diff(key_offsets))


class _Sums:
    """Sums of vectors by number."""

    def __init__(self, num: int, dim: int) -> None:
        self._sums, self._counts = np.zeros((num, dim)), np.zeros(num, np.int64)

    def add(self, numbers: NDArray[np.int64], vectors: Rows) -> None:
        """Add vectors [n, dim] to those of these numbers [n]."""
        num = len(self._counts)
        self._counts += np.bincount(numbers, minlength=num)
        for i in range(vectors.shape[1]):
            self._sums[:, i] += np.bincount(numbers, vectors[:, i], num)

    def means(self) -> tuple[Rows, NDArray[np.bool_]]:
        """Means [num, dim], 0 where there is none, and where there is one."""
        return (self._sums / np.maximum(self._counts, 1)[:, None]).astype(np.float32), self._counts > 0
