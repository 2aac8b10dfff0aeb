"""ReadImpressions: a partition of the impression log as one frame, repeated rows dropped, labels joined.

Columns of a frame: the spec's raw id and dense columns, then `y_<response>` float32, `t_<response>` int64 (event
time in ms, 0 for none), and `TIME`, `POSITION`, `SURFACE`, `RANDOM`, `IMPRESSION`. Only what is asked for is read.
What a file has as the frame needs it stays in Arrow's memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sparsefeed.errors import DataError
from sparsefeed.etl import frame
from sparsefeed.etl.actions import ActionIndex
from sparsefeed.etl.cluster import compute, num_slots
from sparsefeed.etl.engaged import EngagedSessions
from sparsefeed.etl.kernels.sampling import kept, strata, stratum_of
from sparsefeed.etl.logs import LogFolder, Partition, Piece, impression_columns
from sparsefeed.etl.parquet import event_keys, milliseconds, no_nulls, read_pieces
from sparsefeed.etl.repeats import Repeats
from sparsefeed.etl.spec import FeedSpec

__all__ = [
    "IMPRESSION",
    "POSITION",
    "RANDOM",
    "STRATUM",
    "SURFACE",
    "TIME",
    "Frames",
    "ReadImpressions",
    "columns_of",
    "event_time",
    "label",
]

TIME, POSITION, SURFACE, RANDOM, IMPRESSION = "_time", "_position", "_surface", "_random", "impression_id"
STRATUM = "_stratum"  # of the rate that a row was kept with, 0 where all are (kernels.sampling)
_EPOCH, _DAY_MS, _FAR_DAYS = date(1970, 1, 1), 86_400_000, 366
Column = Any  # numpy [n], or Arrow's array of strings or lists
Result = TypeVar("Result")
Frames = Iterable[tuple[int, frame.Frame]]  # and the number of each among the partitions


def label(response: str) -> str:
    """Name of a response's label column."""
    return f"y_{response}"


def event_time(response: str) -> str:
    """Name of the column with the moment of a response, int64 ms; 0 for none."""
    return f"t_{response}"


def columns_of(spec: FeedSpec) -> tuple[str, ...]:
    """Columns of a frame, in order."""
    features = [feature.name for feature in spec.of_kind("id", "ids", "dense")]
    responses = [name for r in spec.responses for name in (label(r.name), event_time(r.name))]
    return (*features, *responses, TIME, POSITION, SURFACE, RANDOM, STRATUM, IMPRESSION)


@dataclass(frozen=True)
class ReadImpressions:
    """One partition -> one frame; picklable, for `dask.dataframe.from_map`.

    Attributes:
        spec: the declaration.
        columns: those of the frame.
        repeats: rows to drop; None: none.
        actions: where labels that have no column come from; None: the spec declares none.
        cudf: whether frames are cuDF's. Files are read by Arrow on the CPU all the same: what a row needs of joins,
            repeats and sampling lies in host memory.
        sample: whether to leave rows out as the spec's `sampling` says.
        engaged: sessions to keep then; None: all.
        until_ms: rows of that moment and later are left out; None: none is.
    """

    spec: FeedSpec
    columns: tuple[str, ...]
    repeats: Repeats | None = None
    actions: ActionIndex | None = None
    cudf: bool = False
    sample: bool = False
    engaged: EngagedSessions | None = None
    until_ms: int | None = None

    @classmethod
    def prepare(
        cls,
        spec: FeedSpec,
        logs: LogFolder,
        rows: int,
        scratch: Path,
        cudf: bool = False,
        until_ms: int | None = None,
    ) -> ReadImpressions:
        """Find repeated rows and index the actions, on the cluster; what readers need of it stays in `scratch`."""
        scratch.mkdir(parents=True, exist_ok=True)
        before = None if until_ms is None else (spec.logs.time, until_ms)
        path = scratch / "repeats.npy"
        repeats = Repeats.find(logs.partitions(rows), spec.logs.impression, scratch, path, before)
        index = None
        if spec.logs.actions:
            names = [response.name for response in spec.responses if response.column is None]
            index = ActionIndex.build(logs.action_partitions(rows), spec.logs.actions, names, scratch / "actions")
        return cls(spec, columns_of(spec), repeats, index, cudf, until_ms=until_ms)

    def sampling(self, partitions: Sequence[Partition], scratch: Path) -> ReadImpressions:
        """A reader of the rows that the spec's sampling keeps of these partitions; this one where it keeps all."""
        sampling = self.spec.sampling
        if sampling is None:
            return self
        engaged = None
        if sampling.sessions == "engaged":
            labels = tuple(label(response.name) for response in self.spec.responses)
            over = partial(replace(self, columns=(*labels, _SESSION)).over, partitions)
            engaged = EngagedSessions.find(over, partial(_engaged, labels), scratch, scratch / "engaged.npy")
        return replace(self, sample=True, engaged=engaged)

    def project_columns(self, columns: Sequence[str]) -> ReadImpressions:
        """The same reader for fewer columns (Dask's column projection)."""
        return replace(self, columns=tuple(columns))

    def over(
        self, partitions: Sequence[Partition], work: Callable[[Frames], Result], most_per_task: int = 1
    ) -> list[Result]:
        """Read partitions and work on them where they are read, on the cluster; what each task gave, in order.

        A task reads one partition when it is asked for it, so a worker that lets go of one holds one at a time.

        Args:
            partitions: to be read.
            work: given the frames of a task's partitions.
            most_per_task: partitions of a task at most; so many only if all slots of the cluster have as many.
        """
        numbered, slots = list(enumerate(partitions)), num_slots()
        num_tasks = min(len(numbered), slots * -(-len(numbered) // (slots * most_per_task)))
        batches = [
            numbered[len(numbered) * i // num_tasks : len(numbered) * (i + 1) // num_tasks] for i in range(num_tasks)
        ]
        return compute([partial(_read_and_work, self, batch, work) for batch in batches])

    @property
    def meta(self) -> frame.Frame:
        """An empty frame with the right columns; of `cudf` not run."""
        empty = pd.DataFrame({name: np.zeros(0, np.float32) for name in self.columns})
        if self.cudf:
            import cudf

            return cudf.DataFrame.from_pandas(empty)
        return empty

    def __call__(self, partition: Partition) -> frame.Frame:
        """Read, check, join and sample one partition, in host memory; for `cudf` upload it then (not run)."""
        raw, kinds = self.raw_columns(), impression_columns(self.spec)
        texts = [name for name in raw if kinds[name] in ("string", "strings")]
        parts = [self._columns(piece, raw, table) for piece, table in read_pieces(partition.pieces, raw, texts)]
        columns = {name: _joined([part[name] for part in parts]) for name in parts[0]}
        if TIME in columns:
            self._must_be_near(columns[TIME], partition)
        dropped = self.repeats.rows(partition) if self.repeats else ()
        if len(dropped):
            first = np.ones(partition.num_rows, np.bool_)
            first[dropped] = False
            columns = _filtered(columns, first)
        if self.until_ms is not None:
            columns = _filtered(columns, columns[TIME] < self.until_ms)
        joined = self.actions.first_times(partition.day, columns[_KEYS]) if self.actions and self.joins else {}
        return self._frame(columns, joined)

    def _must_be_near(self, time_ms: NDArray[np.int64], partition: Partition) -> None:
        """DataError where no time is within a year of its folder's day: of another unit, as a rule."""
        of_day = (partition.day - _EPOCH).days * _DAY_MS
        if len(time_ms) and np.abs(time_ms - of_day).min() > _FAR_DAYS * _DAY_MS:
            raise DataError(
                f'{partition.pieces[0].path}: column "{self.spec.logs.time}": every time is more than {_FAR_DAYS} days '
                f"from {partition.day}, the first is {time_ms[0]} ms; write timestamps, or milliseconds since the epoch"
            )

    def of_table(self, table: pa.Table, where: Piece, acted: Mapping[str, NDArray[np.int64]]) -> frame.Frame:
        """A frame of rows that were read, cleared of repeats and joined with their actions elsewhere.

        Args:
            table: with the columns of `raw_columns`.
            where: names the rows in errors.
            acted: per response, the time in ms of the first action of each row, 0 for none.
        """
        return self._frame(self._columns(where, self.raw_columns(), table), acted)

    def _frame(self, columns: dict[str, Column], acted: Mapping[str, NDArray[np.int64]]) -> frame.Frame:
        """Labels, the sampling and the order of columns: what there is to do with rows wherever they come from."""
        keys = columns.pop(_KEYS, None)
        for response, first in acted.items():
            # A clock may say that the action came before the impression; it did not.
            moment = np.where(first > 0, np.maximum(first, columns[TIME]), 0)
            columns |= {label(response): (moment > 0).astype(np.float32), event_time(response): moment}
        columns[STRATUM] = np.zeros(len(columns[RANDOM]), np.int8)
        if self.sample and self.spec.sampling:
            columns = _sampled(columns, keys, self.spec, self.engaged)
        return frame.from_arrow({name: columns[name] for name in self.columns}, self.cudf)

    def _columns(self, piece: Piece, raw: list[str], table: pa.Table) -> dict[str, Column]:
        """The columns of one piece, of which `raw` were read, and what joining needs."""
        spec, logs = self.spec, self.spec.logs
        columns: dict[str, Column] = {}
        for feature in spec.of_kind("id", "ids", "dense"):
            if feature.name in raw:
                column = table[feature.name]
                columns[feature.name] = _numbers(column) if feature.kind == "dense" else column
        if logs.time in raw:
            columns[TIME] = no_nulls(piece, logs.time, milliseconds, table)
        if logs.impression in raw:
            ids = no_nulls(piece, logs.impression, lambda column: column, table)
            columns[IMPRESSION] = ids.to_numpy() if pa.types.is_integer(ids.type) else ids
            if self.joins or self.sample:
                columns[_KEYS] = event_keys(ids)
        for response in spec.responses:
            if response.column in raw:
                y = _labels(piece, response.column, table)
                columns[label(response.name)] = y
                if TIME in columns:
                    columns[event_time(response.name)] = np.where(y > 0, columns[TIME], 0)
        num = len(table)
        columns[POSITION] = _positions(piece, logs.position, table) if logs.position in raw else np.zeros(num, np.int32)
        if logs.surface in raw:
            columns[SURFACE] = no_nulls(piece, logs.surface, lambda column: column, table)
        elif logs.surface is None:
            columns[SURFACE] = pa.chunked_array(
                [pa.DictionaryArray.from_arrays(pa.array(np.zeros(num, np.int32)), pa.array(["all"]))]
            )
        if logs.session in raw:
            # One key of the two: of texts that differ, one pair in 2^64 passes for one session.
            columns[_SESSION] = no_nulls(piece, logs.session, event_keys, table)[:, 0]
        asked = spec.sessions is not None and spec.sessions.column in raw
        columns[RANDOM] = _random(piece, spec, table) if asked else np.zeros(num, np.int8)
        return columns

    @property
    def joins(self) -> bool:
        """Whether a label is asked for that comes from actions."""
        responses = [r.name for r in self.spec.responses if r.column is None]
        wanted = any(name in self.columns for r in responses for name in (label(r), event_time(r)))
        return bool(responses) and (wanted or self.sample)

    def raw_columns(self) -> list[str]:
        """Columns of the file that the frame's need."""
        logs, sessions, asked = self.spec.logs, self.spec.sessions, set(self.columns)
        needs: dict[str | None, bool] = {f.name: f.name in asked for f in self.spec.of_kind("id", "ids", "dense")}
        needs[logs.time] = TIME in asked or self.joins or self.until_ms is not None
        for response in self.spec.responses:
            if response.column:
                timed = event_time(response.name) in asked
                wanted = timed or self.sample or label(response.name) in asked
                needs[response.column] = needs.get(response.column, False) or wanted
                needs[logs.time] = needs[logs.time] or timed
        needs[logs.impression] = IMPRESSION in asked or self.joins or self.sample
        needs[logs.session] = _SESSION in asked or self.engaged is not None
        needs[logs.position] = POSITION in asked
        needs[logs.surface] = SURFACE in asked
        needs[sessions.column if sessions else None] = RANDOM in asked or self.sample
        return [name for name, needed in needs.items() if needed and name is not None]


_SESSION = "_session"  # key of a row's session, uint64
_KEYS = "_keys"  # of impressions, uint64 [n, 2], until labels are joined


def _filtered(columns: dict[str, Column], kept: NDArray[np.bool_]) -> dict[str, Column]:
    return {
        name: column[kept] if isinstance(column, np.ndarray) else column.filter(pa.array(kept))
        for name, column in columns.items()
    }


def _read_and_work(
    read: ReadImpressions, batch: Sequence[tuple[int, Partition]], work: Callable[[Frames], Result]
) -> Result:
    return work((number, read(partition)) for number, partition in batch)


def _engaged(labels: Sequence[str], part: frame.Frame) -> NDArray[np.uint64]:
    """Keys of the sessions of rows that have a response."""
    responses = [frame.numpy(part[name]) > 0 for name in labels]
    return np.asarray(frame.numpy(part[_SESSION])[np.logical_or.reduce(responses)], np.uint64)


def _sampled(
    columns: dict[str, Column], keys: NDArray[np.uint64], spec: FeedSpec, engaged: EngagedSessions | None
) -> dict[str, Column]:
    """Leave rows out, and note the stratum of those that stay."""
    sampling = spec.sampling
    assert sampling is not None
    labels = {response.name: columns[label(response.name)] > 0 for response in spec.responses}
    stratum = stratum_of(labels, columns[RANDOM] > 0, sampling.rates, sampling.others)
    rate = strata(sampling.rates, sampling.others)[stratum]
    stays = kept(keys[:, 0] ^ keys[:, 1], rate, sampling.seed)
    if engaged is not None:
        stays &= engaged.has(columns[_SESSION])
    return _filtered({**columns, STRATUM: stratum}, stays)


def _joined(parts: list[Column]) -> Column:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    plain = {part.type for part in parts}
    if len(plain) > 1:  # a dictionary in one file, plain in another
        parts = [part.cast(_value_type(part.type)) for part in parts]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], parts[0].type)


def _value_type(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries, large."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_value_type(kind.value_type))
    return pa.large_string() if not pa.types.is_dictionary(kind) else _value_type(kind.value_type)


def _numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dense feature, float32; infinities are no numbers and read as null."""
    column = column.cast(pa.float32(), safe=False)
    if any(np.isinf(frame.with_nulls(chunk)).any() for chunk in column.chunks):
        return pc.if_else(pc.is_inf(column), pa.scalar(None, pa.float32()), column)
    return column


def _labels(piece: Piece, name: str, table: pa.Table) -> NDArray[np.float32]:
    y = no_nulls(piece, name, lambda c: np.asarray(c.cast(pa.float32()).to_numpy()), table)
    wrong = (y != 0) & (y != 1)
    if wrong.any():
        row = piece.first_row + int(np.argmax(wrong))
        raise DataError(f'{piece.path}: label "{name}" is {y[wrong][0]} in row {row}; it must be 0 or 1')
    return y


def _positions(piece: Piece, name: str, table: pa.Table) -> NDArray[np.int32]:
    position = no_nulls(piece, name, lambda c: c.to_numpy(), table)
    if len(position) and position.min() < 1:
        row = int(np.argmin(position))
        raise DataError(
            f'{piece.path}: column "{name}" is {position[row]} in row {piece.first_row + row}; positions count from 1'
        )
    return np.asarray(position, np.int32)


def _random(piece: Piece, spec: FeedSpec, table: pa.Table) -> NDArray[np.int8]:
    assert spec.sessions is not None
    column = table[spec.sessions.column]
    known = {spec.sessions.random, spec.sessions.production}
    for value in sorted({v for chunk in column.chunks for v in chunk.unique().to_pylist()}, key=str):
        if value not in known:
            raise DataError(
                f'{piece.path}: column "{spec.sessions.column}" holds {value!r}; allowed: {sorted(known)} '
                "(recipe: sessions)"
            )
    kind = column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
    return np.asarray(pc.equal(kind, spec.sessions.random).to_numpy()).astype(np.int8)
