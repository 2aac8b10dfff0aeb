"""Impression and action logs as one Dask dataset: labels joined, columns checked, ids kept as dictionaries.

Reading is a map over files: a partition is one impression file joined with the action files of its own
and the next `attribution_days` days, so nothing is shuffled and nothing is written.

Columns of a partition: the spec's raw id and dense columns, then `y_<response>` float32, `t_<response>`
int64 (event time in ms, 0 for none), and of `TIME`, `POSITION`, `SURFACE`, `RANDOM`, `IMPRESSION` those declared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparsefeed.errors import BadFileError, DataError, did_you_mean
from sparsefeed.etl.spec import Actions, FeedSpec, IdFeature, IdListFeature

__all__ = [
    "IMPRESSION",
    "POSITION",
    "RANDOM",
    "SURFACE",
    "TIME",
    "LogFile",
    "LogFolder",
    "ReadImpressions",
    "event_time",
    "label",
]

TIME, POSITION, SURFACE, RANDOM, IMPRESSION = "_time", "_position", "_surface", "_random", "impression_id"


def label(response: str) -> str:
    """Name of a response's label column."""
    return f"y_{response}"


def event_time(response: str) -> str:
    """Name of the column with the moment of a response, int64 ms; 0 for none."""
    return f"t_{response}"


@dataclass(frozen=True)
class LogFile:
    """One parquet file of a day."""

    path: Path
    day: date


@dataclass(frozen=True)
class LogFolder:
    """The files of a logs folder, by day (docs/contracts/logs.md)."""

    root: Path
    impressions: tuple[LogFile, ...]
    actions: tuple[LogFile, ...]
    text_impressions: bool = False  # impression ids are strings, not integers

    @classmethod
    def open(cls, root: Path, spec: FeedSpec) -> LogFolder:
        """Find the files and check every footer: names, types, readability. Nothing is read or written."""
        impressions = _files(root / "impressions")
        actions = _files(root / "actions") if spec.logs.actions else ()
        if not impressions:
            raise DataError(
                f"{root / 'impressions'}: no day=YYYY-MM-DD/*.parquet; point --logs at a folder with impressions/ in it"
            )
        types = {_check(file.path, _impression_columns(spec)).field(spec.logs.impression).type for file in impressions}
        if spec.logs.actions:
            for file in actions:
                types.add(
                    _check(file.path, _action_columns(spec.logs.actions)).field(spec.logs.actions.impression).type
                )
        text = [not pa.types.is_integer(dtype) for dtype in types]
        if any(text) and not all(text):
            raise DataError(
                f'{root}: column "{spec.logs.impression}" is text in some files and integer in others; write them alike'
            )
        # Spark and others leave parts without a row; there is nothing in them to check or to read.
        filled = tuple(file for file in impressions if pq.read_metadata(file.path).num_rows)
        if not filled:
            raise DataError(f"{root / 'impressions'}: {len(impressions)} files, and not one row in them")
        return cls(root, filled, actions, any(text))

    @property
    def days(self) -> tuple[date, ...]:
        """Days with impressions, ascending."""
        return tuple(sorted({file.day for file in self.impressions}))

    def of_days(self, days: Sequence[date]) -> tuple[LogFile, ...]:
        """Impression files of these days, by day and name."""
        return tuple(file for file in self.impressions if file.day in set(days))


def _files(folder: Path) -> tuple[LogFile, ...]:
    files = []
    for path in sorted(folder.glob("day=*/*.parquet")):
        try:
            files.append(LogFile(path, date.fromisoformat(path.parent.name.removeprefix("day="))))
        except ValueError as error:
            raise DataError(f"{path.parent}: not a day=YYYY-MM-DD folder ({error}); rename it") from error
    return tuple(files)


Kinds = dict[str, str]  # column -> "string" | "strings" | "number" | "integer" | "time" | "label" | "id"


def _impression_columns(spec: FeedSpec) -> Kinds:
    columns: Kinds = {spec.logs.impression: "id", spec.logs.time: "time"}
    if spec.logs.position:
        columns[spec.logs.position] = "integer"
    if spec.logs.surface:
        columns[spec.logs.surface] = "string"
    if spec.sessions:
        columns[spec.sessions.column] = "string"
    for feature in spec.features:
        if isinstance(feature, IdFeature):
            columns[feature.name] = "string"
        elif isinstance(feature, IdListFeature):
            columns[feature.name] = "strings"
        elif feature.kind == "dense":
            columns[feature.name] = "number"
    for response in spec.responses:
        if response.column:
            columns[response.column] = "label"
    return columns


def _action_columns(actions: Actions) -> Kinds:
    return {actions.impression: "id", actions.action: "string", actions.time: "time"}


def _is(kind: str, dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    text = pa.types.is_string(dtype) or pa.types.is_large_string(dtype)
    whole = pa.types.is_integer(dtype)
    if kind == "strings":
        return bool(pa.types.is_list(dtype) or pa.types.is_large_list(dtype)) and _is("string", dtype.value_type)
    allowed: dict[str, bool] = {
        "string": text,
        "id": text or whole,
        "integer": whole,
        "number": whole or pa.types.is_floating(dtype),
        "label": pa.types.is_boolean(dtype) or whole or pa.types.is_floating(dtype),
        "time": pa.types.is_timestamp(dtype) or pa.types.is_int64(dtype),
    }
    return allowed[kind]


_MEANING = {
    "string": "string",
    "strings": "list<string>",
    "id": "int64 or string",
    "integer": "an integer type",
    "number": "a number type",
    "label": "bool, or 0 and 1",
    "time": "timestamp, or int64 milliseconds since the epoch",
}


def _check(path: Path, wanted: Kinds) -> pa.Schema:
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise BadFileError(path, f"not readable as parquet ({error}); write the file again or take it out") from error
    for name, kind in wanted.items():
        if schema.names.count(name) > 1:
            raise DataError(f'{path}: column "{name}" is there {schema.names.count(name)} times; write it once')
        if name not in schema.names:
            raise DataError(
                f'{path}: column "{name}" is missing{did_you_mean(name, schema.names)}; mend the file or the recipe'
            )
        if not _is(kind, schema.field(name).type):
            raise DataError(f'{path}: column "{name}" is {schema.field(name).type}; it must be {_MEANING[kind]}')
    return schema


def read_parquet(path: Path, columns: list[str], dictionaries: list[str]) -> pa.Table:
    """Some columns of one file, string ids dictionary-encoded; BadFileError names a file that breaks off."""
    try:
        with pq.ParquetFile(path, read_dictionary=dictionaries) as file:
            return file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise BadFileError(path, f"breaks off or is damaged ({error}); write the file again or take it out") from error


def milliseconds(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Timestamps of any unit, or int64 milliseconds, as int64 milliseconds; null is an error of the caller's."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False).cast(pa.int64())
    return np.asarray(column.to_numpy())


@dataclass(frozen=True)
class ReadImpressions:
    """One impression file -> one partition; picklable, for `dask.dataframe.from_map`.

    `columns` are those of the partition to keep (None: all); cuDF frames where `cudf` is true.
    """

    spec: FeedSpec
    actions: tuple[LogFile, ...]
    columns: tuple[str, ...] | None = None
    cudf: bool = False

    def project_columns(self, columns: Sequence[str]) -> ReadImpressions:
        """The same reader for fewer columns (Dask's column projection)."""
        return ReadImpressions(self.spec, self.actions, tuple(columns), self.cudf)

    @property
    def meta(self) -> pd.DataFrame:
        """An empty partition with the right columns and types."""
        spec = self.spec
        frame: dict[str, Any] = {}
        for feature in spec.features:
            if isinstance(feature, IdFeature):
                frame[feature.name] = pd.Categorical([])
            elif isinstance(feature, IdListFeature):
                frame[feature.name] = np.zeros(0, object)
            elif feature.kind == "dense":
                frame[feature.name] = np.zeros(0, np.float32)
        for response in spec.responses:
            frame[label(response.name)] = np.zeros(0, np.float32)
            frame[event_time(response.name)] = np.zeros(0, np.int64)
        frame |= {TIME: np.zeros(0, np.int64), POSITION: np.zeros(0, np.int32), SURFACE: pd.Categorical([])}
        frame |= {RANDOM: np.zeros(0, np.int8), IMPRESSION: np.zeros(0, np.int64)}
        out = pd.DataFrame(frame)
        return out[list(self.columns)] if self.columns else out

    def __call__(self, file: LogFile) -> Any:
        """Read, check, join and convert one file."""
        spec, logs = self.spec, self.spec.logs
        kinds = _impression_columns(spec)
        text = [name for name, kind in kinds.items() if kind == "string"]
        table = read_parquet(file.path, list(kinds), text)
        table = _first_of_repeated(file.path, table, logs.impression)
        time_ms = _no_nulls(file.path, logs.time, milliseconds, table)
        frame: dict[str, Any] = {}
        for feature in spec.features:
            if isinstance(feature, (IdFeature, IdListFeature)):
                frame[feature.name] = table.column(feature.name).to_pandas()
            elif feature.kind == "dense":
                frame[feature.name] = _numbers(table.column(feature.name))
        impression = table.column(logs.impression)
        joined = _join(impression, time_ms, self.actions, file.day, spec) if logs.actions else {}
        for response in spec.responses:
            if response.column:
                y = _labels(file.path, response.column, table)
                frame[label(response.name)] = y
                frame[event_time(response.name)] = np.where(y > 0, time_ms, 0)
            else:
                moment = joined[response.name]
                frame[label(response.name)] = (moment > 0).astype(np.float32)
                frame[event_time(response.name)] = moment
        frame[TIME] = time_ms
        frame[POSITION] = (
            _positions(file.path, logs.position, table) if logs.position else np.zeros(len(table), np.int32)
        )
        frame[SURFACE] = (
            _no_nulls(file.path, logs.surface, lambda c: c.to_pandas(), table)
            if logs.surface
            else pd.Categorical.from_codes(np.zeros(len(table), np.int8), ["all"])
        )
        frame[RANDOM] = _random(file.path, spec, table)
        frame[IMPRESSION] = impression.to_pandas()
        out = pd.DataFrame(frame)
        if self.columns:
            out = out[list(self.columns)]
        if self.cudf:
            import cudf

            return cudf.DataFrame.from_pandas(out)
        return out


def _first_of_repeated(path: Path, table: pa.Table, impression: str) -> pa.Table:
    ids = pd.Series(_no_nulls(path, impression, lambda c: c.to_pandas(), table))
    repeated = ids.duplicated().to_numpy()
    return table.filter(pa.array(~repeated)) if repeated.any() else table


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """A dense feature; infinities are no numbers and read as null."""
    values = column.cast(pa.float32(), safe=False).to_numpy()
    return np.where(np.isfinite(values), values, np.float32(np.nan))


def _no_nulls(path: Path, name: str, convert: Any, table: pa.Table) -> Any:
    column = table.column(name)
    if column.null_count:
        raise DataError(
            f'{path}: column "{name}" has {column.null_count} nulls of {len(column)} rows; every impression needs one'
        )
    return convert(column)


def _labels(path: Path, name: str, table: pa.Table) -> NDArray[np.float32]:
    y = _no_nulls(path, name, lambda c: c.cast(pa.float32()).to_numpy(), table)
    wrong = (y != 0) & (y != 1)
    if wrong.any():
        raise DataError(f'{path}: label "{name}" is {y[wrong][0]} in row {int(np.argmax(wrong))}; it must be 0 or 1')
    return np.asarray(y, np.float32)


def _positions(path: Path, name: str, table: pa.Table) -> NDArray[np.int32]:
    position = _no_nulls(path, name, lambda c: c.to_numpy(), table)
    if len(position) and position.min() < 1:
        row = int(np.argmin(position))
        raise DataError(f'{path}: column "{name}" is {position[row]} in row {row}; positions count from 1')
    return np.asarray(position, np.int32)


def _random(path: Path, spec: FeedSpec, table: pa.Table) -> NDArray[np.int8]:
    if spec.sessions is None:
        return np.zeros(len(table), np.int8)
    column = table.column(spec.sessions.column)
    known = {spec.sessions.random, spec.sessions.production}
    for value in pc.unique(column.cast(pa.string())).to_pylist():
        if value not in known:
            raise DataError(
                f'{path}: column "{spec.sessions.column}" holds {value!r}; allowed: {sorted(known)} (recipe: sessions)'
            )
    return np.asarray(pc.equal(column.cast(pa.string()), spec.sessions.random).to_numpy()).astype(np.int8)


def _join(
    impression: pa.ChunkedArray, time_ms: NDArray[np.int64], files: Sequence[LogFile], day: date, spec: FeedSpec
) -> dict[str, NDArray[np.int64]]:
    """Per action response, the first action's time of each impression in ms, 0 for none.

    A clock may say that the action came before the impression; it did not, and its time is the impression's.
    """
    actions = spec.logs.actions
    assert actions is not None
    responses = [response.name for response in spec.responses if response.column is None]
    found = {name: np.zeros(len(impression), np.int64) for name in responses}
    row_of = pd.Index(impression.to_pandas())
    last = day + timedelta(days=actions.attribution_days)
    for file in files:
        if not day <= file.day <= last:
            continue
        table = read_parquet(file.path, [actions.impression, actions.action, actions.time], [])
        table = table.filter(pc.is_valid(table.column(actions.impression)))  # a null would turn integers into floats
        row = row_of.get_indexer(table.column(actions.impression).to_pandas())
        moment = _no_nulls(file.path, actions.time, milliseconds, table)
        kind = table.column(actions.action)
        for name in responses:
            chosen = np.asarray(pc.equal(kind, name).fill_null(False).to_numpy()) & (row >= 0)
            first = found[name]
            earlier = np.full(len(first), np.iinfo(np.int64).max)
            np.minimum.at(earlier, row[chosen], moment[chosen])
            hit = earlier < np.iinfo(np.int64).max
            first[hit] = np.where(first[hit] > 0, np.minimum(first[hit], earlier[hit]), earlier[hit])
    return {name: np.where(first > 0, np.maximum(first, time_ms), 0) for name, first in found.items()}
