"""The training parquet as arrays (docs/contracts/training.md).

Notable: `open_split` reads every file's footer and refuses a missing column, a wrong type or a truncated file
before any training begins; `Rows` then turns Arrow into numpy without going through pandas, and a slice of
`Rows` into one `Batch` of torch tensors.

Shapes: N rows of a buffer, B of a batch, R responses, M and C dense features of member and candidate,
F lookup features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from sparsefeed.errors import BadFileError, DataError, TrainError, did_you_mean
from sparsefeed.etl.ids.codes import num_codes
from sparsefeed.etl.kernels.ragged import gather_lists, list_lengths
from sparsefeed.etl.spec import FeedSpec, IdFeature
from sparsefeed.models.torchrec.lookup_keys import lists_of

__all__ = [
    "Batch",
    "Part",
    "Rows",
    "capacity_rows",
    "check_trained_on",
    "etl_fingerprint",
    "held_out_parts",
    "ids_fingerprint",
    "jagged",
    "num_rows",
    "open_split",
    "parts_digest",
    "previous_fingerprint",
    "read_part",
]


@dataclass(frozen=True)
class Part:
    """One row group of one file: the unit that is shuffled and split over ranks."""

    path: Path
    row_group: int
    num_rows: int
    first_row: int = 0  # of the file


@dataclass(frozen=True)
class Batch:
    """Rows as the model takes them; free of position, cell and id."""

    labels_BR: Tensor
    weights_BR: Tensor
    member_dense_BM: Tensor
    candidate_dense_BC: Tensor
    lookups: KeyedJaggedTensor  # keys in lookup_order; unpadded rows of the tables, no 0

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`; from pinned memory the copy does not keep the host waiting."""
        return self if self.labels_BR.device == device else self._each(lambda part: part.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The batch in memory that a GPU can copy from by itself."""
        return self._each(lambda part: part.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell CUDA's allocator that `stream` reads the batch, which another one made."""
        for field in fields(self):
            getattr(self, field.name).record_stream(stream)

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        return Batch(**{field.name: change(getattr(self, field.name)) for field in fields(self)})


def capacity_rows(spec: FeedSpec, data: Path) -> dict[str, int]:
    """Rows to allocate per table, from `etl.json`; DataError when the folder is unfinished or of another spec."""
    return _rows_by_table(spec, data, "capacity_rows")


def num_rows(spec: FeedSpec, data: Path) -> dict[str, int]:
    """Rows per table that there are ids for, from `etl.json`; errors as of `capacity_rows`."""
    return _rows_by_table(spec, data, "num_rows")


def etl_fingerprint(data: Path) -> str:
    """What the ETL run in this folder was made from, as `etl.json` says; "" where it does not."""
    return str(_summary(data).get("fingerprint", ""))


def previous_fingerprint(data: Path) -> str | None:
    """Of the ETL result that the day in this folder was added to; None: it is no day."""
    found = _summary(data).get("previous")
    return None if found is None else str(found)


def ids_fingerprint(data: Path) -> str | None:
    """Of the ETL result whose ids the one in this folder went on from: a part of its day, or the day before."""
    found = _summary(data).get("ids_from")
    return previous_fingerprint(data) if found is None else str(found)


def _rows_by_table(spec: FeedSpec, data: Path, key: str) -> dict[str, int]:
    try:
        rows = {str(name): int(number) for name, number in _summary(data)[key].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise BadFileError(data / "etl.json", f"not readable: {error!r}; run `sparsefeed etl` again") from error
    for table in spec.tables:
        if table.name not in rows:
            raise DataError(f'{data / "etl.json"}: {key} has no table "{table.name}"; it was made for another spec')
    return {table.name: rows[table.name] for table in spec.tables}


def _summary(data: Path) -> dict[str, Any]:
    path = data / "etl.json"
    if not path.is_file():
        raise DataError(f"{data}: no etl.json, so this ETL run is unfinished; run `sparsefeed etl` again")
    try:
        summary = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadFileError(path, f"not readable: {error!r}; run `sparsefeed etl` again") from error
    if not isinstance(summary, dict):
        raise BadFileError(path, f"holds {type(summary).__name__}, not names and values; run `sparsefeed etl` again")
    return summary


def parts_digest(parts: Sequence[Part]) -> str:
    """Which files and rows a training reads, whatever their folder."""
    names = json.dumps([(part.path.name, part.row_group, part.num_rows) for part in parts])
    return hashlib.sha256(names.encode()).hexdigest()[:16]


def check_trained_on(checkpoint: Path, etl: str, data: Path) -> None:
    """Refuse rows whose ids are not the checkpoint's: another ETL run gives the same string another row."""
    got = etl_fingerprint(data)
    if got != etl:
        raise TrainError(
            f"{checkpoint}: was trained on ETL run {etl or 'unknown'}, {data} holds run {got or 'unknown'}, whose ids "
            "have other rows; run `sparsefeed train` again"
        )


def open_split(spec: FeedSpec, data: Path, split: str, columns: Sequence[str]) -> tuple[Part, ...]:
    """Row groups of `data/<split>/*.parquet` in the order of their names, every file's columns checked.

    Raises:
        BadFileError: A file cannot be read as parquet; the error names it.
        DataError: There is no row, or a column is missing or of another type; the error names file and column.
    """
    parts = []
    for path in sorted((data / split).glob("*.parquet")):
        try:
            footer = pq.ParquetFile(path)
        except (OSError, pa.ArrowException) as error:
            raise BadFileError(path, f"not readable as parquet: {error}; run `sparsefeed etl` again") from error
        with footer:
            _check_schema(spec, path, footer.schema_arrow, columns)
            groups = [footer.metadata.row_group(g).num_rows for g in range(footer.metadata.num_row_groups)]
        parts += [Part(path, g, rows, sum(groups[:g])) for g, rows in enumerate(groups) if rows]
    if not parts and (data / f"{split}.bin").exists():
        raise DataError(
            f"{data}: holds the rows HugeCTR reads; run `sparsefeed etl` for this trainer, or train with HugeCTR and "
            "take its run by `sparsefeed export --from hugectr DIR`"
        )
    if not parts:
        raise DataError(
            f"{data / split}: no parquet file with a row; run `sparsefeed etl` on days that have impressions"
        )
    return tuple(parts)


def held_out_parts(parts: Sequence[Part], rows: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Parts to train on, and the last ones, of so many rows at least, to watch; TrainError where none is left."""
    held, number = 0, len(parts)
    while held < rows and number:
        number -= 1
        held += parts[number].num_rows
    if not number:
        total = sum(part.num_rows for part in parts)
        raise TrainError(
            f"validation.rows: got {rows}; of {total} rows in {len(parts)} row groups none is left to train on; "
            "take fewer, or write smaller row groups (etl.row_group_rows)"
        )
    return tuple(parts[:number]), tuple(parts[number:])


def read_part(spec: FeedSpec, part: Part, columns: Sequence[str], capacities: dict[str, int]) -> pa.Table:
    """Read these columns of one row group, checked.

    Raises:
        BadFileError: The file cannot be read.
        DataError: A column holds a null, a number that is none, or an id outside [1, capacity of its table); names
            file and column.
    """
    try:
        with pq.ParquetFile(part.path, memory_map=True) as file:
            table = file.read_row_group(part.row_group, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise BadFileError(part.path, f"row group {part.row_group}: {error}; run `sparsefeed etl` again") from error
    for name in columns:
        if nulls := table.column(name).null_count:
            raise DataError(f'{part.path}: column "{name}": {nulls} of {part.num_rows} values are null; none may be')
        if pa.types.is_floating(table.column(name).type):
            numbers = _one_chunk(table, name).to_numpy()
            if not np.isfinite(numbers).all():
                row = int(np.argmin(np.isfinite(numbers)))
                raise DataError(
                    f'{part.path}: column "{name}" is {numbers[row]} in row {part.first_row + row}; it must be a number'
                )
    for feature in (feature for feature in spec.lookups if feature.name in columns):
        column = _one_chunk(table, feature.name)
        ids = column.flatten() if pa.types.is_list(column.type) else column
        found, of = pc.min_max(ids), spec.table_of(feature)
        least, most, capacity = found["min"].as_py(), found["max"].as_py(), capacities[of.name]
        codes = num_codes(of.tail_rows) if of.paired_tail else 0
        zero = bool(codes) and bool(pc.any(pc.equal(ids, 0)).as_py())
        if least is not None and (zero or not (-codes or 1) <= least <= most < capacity):
            got = 0 if zero else least if least < (-codes or 1) else most
            also = f", or {-codes} to -1, its tail's codes" if codes else ""
            raise DataError(
                f'{part.path}: column "{feature.name}": got id {got}; allowed: 1 to {capacity - 1}, its table\'s '
                f"rows{also}"
            )
    return table


@dataclass(frozen=True)
class Rows:
    """Rows of the training parquet as numpy arrays.

    A lookup's key (models.torchrec.lookup_keys) is (values int64, offsets int64 [N+1]); an `id` feature's offsets are
    0, 1, ..., N.
    """

    labels_NR: npt.NDArray[np.float32]
    weights_NR: npt.NDArray[np.float32]
    member_dense_NM: npt.NDArray[np.float32]
    candidate_dense_NC: npt.NDArray[np.float32]
    lookups: dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]

    def __len__(self) -> int:
        return len(self.labels_NR)

    @staticmethod
    def columns(spec: FeedSpec, weights: bool = True) -> tuple[str, ...]:
        """Name the columns `from_arrow` reads: all of the contract's that the model may see."""
        names = [f"y_{response.name}" for response in spec.responses]
        names += [feature.name for feature in (*spec.dense, *spec.lookups)]
        if weights and spec.weighted:
            names += [f"w_{response.name}" for response in spec.responses]
        return tuple(names)

    @classmethod
    def from_arrow(
        cls, spec: FeedSpec, table: pa.Table, earlier: Mapping[str, npt.NDArray[np.int64]] | None = None
    ) -> Rows:
        """Decode the columns of `Rows.columns`, as `read_part` gives them; without `w_` columns every weight is 1.

        Per table named in `earlier`, row i is read as earlier[i] (models.torchrec.earlier_ids).
        """

        def matrix(names: Sequence[str]) -> npt.NDArray[np.float32]:
            out = np.empty((table.num_rows, len(names)), np.float32)
            for i, name in enumerate(names):
                out[:, i] = _one_chunk(table, name).to_numpy()
            return out

        labels_NR = matrix([f"y_{response.name}" for response in spec.responses])
        weighted = f"w_{spec.responses[0].name}" in table.column_names
        return cls(
            labels_NR,
            matrix([f"w_{response.name}" for response in spec.responses]) if weighted else np.ones_like(labels_NR),
            matrix([feature.name for feature in spec.of_kind("dense", side="member")]),
            matrix([feature.name for feature in spec.of_kind("dense", side="candidate")]),
            {
                key: lists
                for feature in spec.lookups
                for key, lists in lists_of(spec, feature, _joined(table.column(feature.name)), earlier or {})
            },
        )

    def batch(self, order: Sequence[str], start: int, stop: int) -> Batch:
        """Rows [start, stop) as tensors; `order` is `lookup_order(spec)`."""
        values, lengths = [], []
        for name in order:
            ids, offsets = self.lookups[name]
            values.append(ids[offsets[start] : offsets[stop]])
            lengths.append(np.diff(offsets[start : stop + 1]))
        return Batch(
            torch.from_numpy(self.labels_NR[start:stop]),
            torch.from_numpy(self.weights_NR[start:stop]),
            torch.from_numpy(self.member_dense_NM[start:stop]),
            torch.from_numpy(self.candidate_dense_NC[start:stop]),
            KeyedJaggedTensor(
                keys=list(order),
                values=torch.from_numpy(np.concatenate(values)),
                lengths=torch.from_numpy(np.concatenate(lengths)),
            ),
        )

    def take(self, order: Sequence[str], rows: npt.NDArray[np.int64]) -> Batch:
        """Some rows in any order as tensors; `order` is `lookup_order(spec)`."""
        lengths = np.empty((len(order), len(rows)), np.int64)
        totals = [list_lengths(self.lookups[name][1], rows, own) for name, own in zip(order, lengths, strict=True)]
        values, start = np.empty(sum(totals), np.int64), 0
        for name, total in zip(order, totals, strict=True):
            gather_lists(*self.lookups[name], rows, values[start : start + total])
            start += total
        return Batch(
            torch.from_numpy(self.labels_NR.take(rows, axis=0)),
            torch.from_numpy(self.weights_NR.take(rows, axis=0)),
            torch.from_numpy(self.member_dense_NM.take(rows, axis=0)),
            torch.from_numpy(self.candidate_dense_NC.take(rows, axis=0)),
            KeyedJaggedTensor(
                keys=list(order),
                values=torch.from_numpy(values),
                lengths=torch.from_numpy(lengths.reshape(-1)),
                stride=len(rows),
                length_per_key=totals,  # known here; a GPU would be asked for it at every step
            ),
        )


def _check_schema(spec: FeedSpec, path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    for name in columns:
        if name not in schema.names:
            raise DataError(f'{path}: no column "{name}"{did_you_mean(name, schema.names)}')
        feature = spec.feature_by_name.get(name)
        got = schema.field(name).type
        if feature is None or feature.kind == "dense":
            wanted, fits = "float32", got == pa.float32()
        elif isinstance(feature, IdFeature):
            wanted, fits = "int64", got == pa.int64()
        else:
            wanted, fits = "list<int64>", pa.types.is_list(got) and got.value_type == pa.int64()
        if not fits:
            raise DataError(f'{path}: column "{name}" is {got}; it must be {wanted} (docs/contracts/training.md)')


def _one_chunk(table: pa.Table, name: str) -> Any:
    column = table.column(name)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # which would copy


def _joined(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """`jagged` of all chunks, in numpy's memory, whose pages are large: rows are gathered from all over it."""
    # Of a table whose rows were all filtered out there is no chunk.
    parts = [jagged(chunk) for chunk in column.chunks or [column.combine_chunks()]]
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(values) for values, _ in parts)])
    offsets = [offsets[:-1] + start for (_, offsets), start in zip(parts, starts, strict=False)]
    return np.concatenate([values for values, _ in parts]), np.concatenate([*offsets, starts[-1:]])


def jagged(column: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Values and offsets [n + 1] of an array of lists; of one without lists 0, 1, ..., n."""
    if not pa.types.is_list(column.type):
        return column.to_numpy(), np.arange(len(column) + 1, dtype=np.int64)
    offsets = column.offsets.to_numpy().astype(np.int64)
    # `flatten` honours a slice, whose offsets begin elsewhere than at 0.
    return column.flatten().to_numpy(), offsets - offsets[0]
