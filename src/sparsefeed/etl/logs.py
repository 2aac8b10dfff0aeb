"""A folder of logs: its files by day, their footers checked, and how they are cut into partitions.

Nothing but footers is read here (docs/contracts/logs.md says what must be in them).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import groupby
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from sparsefeed.errors import BadFileError, DataError, did_you_mean
from sparsefeed.etl.spec import Actions, FeedSpec, IdFeature, IdListFeature
from sparsefeed.etl.stored_file import StoredFile, find_files, is_remote, root_of, side_by_side

__all__ = [
    "MEANING",
    "Kinds",
    "LogFile",
    "LogFolder",
    "Partition",
    "Piece",
    "action_columns",
    "days_of",
    "impression_columns",
]


@dataclass(frozen=True)
class LogFile:
    """One parquet file of a day.

    Attributes:
        stored: where it lies, and what it was when it was listed.
        day: of its folder.
        row_groups: rows of each row group.
    """

    stored: StoredFile
    day: date
    row_groups: tuple[int, ...]

    @property
    def path(self) -> str:
        """Its path or URL."""
        return self.stored.url

    @property
    def num_rows(self) -> int:
        """Rows of all its row groups."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class Piece:
    """Row groups of one file that follow each other.

    Attributes:
        stored: the file.
        row_groups: their indices.
        first_row: the first row's place in the file.
    """

    stored: StoredFile
    row_groups: tuple[int, ...]
    first_row: int

    @property
    def path(self) -> str:
        """Of the file, or its URL."""
        return self.stored.url


@dataclass(frozen=True)
class Partition:
    """What one task reads: pieces of files of one kind and day.

    Attributes:
        number: counts the partitions of a folder's files of that kind, in the order of days, names and rows.
        day: of the files.
        pieces: in order.
        num_rows: of all pieces.
    """

    number: int
    day: date
    pieces: tuple[Piece, ...]
    num_rows: int


@dataclass(frozen=True)
class LogFolder:
    """The files of a logs folder, by day (docs/contracts/logs.md); its root is a path or URL."""

    root: str
    impressions: tuple[LogFile, ...]
    actions: tuple[LogFile, ...]
    text_impressions: bool = False  # impression ids are strings, not integers

    @classmethod
    def open(
        cls,
        where: Path | str,
        spec: FeedSpec,
        skipped: frozenset[str] = frozenset(),
        since: date | None = None,
        until: date | None = None,
    ) -> LogFolder:
        """Find the files of some days and check their footers: names, types, readability. Nothing is read or written.

        Args:
            where: the folder: a path, or a URL of any fsspec driver.
            spec: the declaration.
            skipped: paths or URLs of files that are left out.
            since: the first day of impressions; None: the first there is.
            until: the last; None: the last there is. Actions are those that may belong to these impressions.

        Raises:
            BadFileError: a file is not readable as parquet.
            DataError: a file or the folder breaks the contract, no impression is left, or a store refuses or is silent.
            ToolError: the package that reads such URLs is not installed.
        """
        root = root_of(where)
        found = _files(f"{root}/impressions", skipped)
        if not found:
            raise DataError(
                f"{root}/impressions: no day=YYYY-MM-DD/*.parquet, or no such place; point --logs at a folder with "
                "impressions/ in it"
            )
        first, last = since or date.min, until or date.max
        impressions = [(path, day) for path, day in found if first <= day <= last]
        if not impressions:
            raise DataError(
                f"{root}: no impressions from {since or 'the first day'} to {until or 'the last'}; there are days "
                f"{min(day for _, day in found)} to {max(day for _, day in found)}; mend etl.since and etl.until"
            )
        actions = []
        if spec.logs.actions:
            within = timedelta(days=spec.logs.actions.attribution_days)
            # Not by adding to `last`, which may be the last day there can be.
            of_actions = _files(f"{root}/actions", skipped)
            actions = [(path, day) for path, day in of_actions if day >= first and day - within <= last]
        checked = [*_checked(impressions, impression_columns(spec), spec.logs.impression)]
        types = [dtype for _, dtype in checked]
        checked_actions: list[tuple[LogFile, pa.DataType]] = []
        if spec.logs.actions:
            checked_actions = [*_checked(actions, action_columns(spec.logs.actions), spec.logs.actions.impression)]
            types += [dtype for _, dtype in checked_actions]
        text = [not pa.types.is_integer(dtype) for dtype in types]
        if any(text) and not all(text):
            raise DataError(
                f'{root}: column "{spec.logs.impression}" is text in some files and integer in others; write them alike'
            )
        # Spark and others leave parts without a row; there is nothing in them to check or to read.
        filled = tuple(file for file, _ in checked if file.num_rows)
        if not filled:
            raise DataError(f"{root}/impressions: {len(impressions)} files, and not one row in them")
        return cls(root, filled, tuple(file for file, _ in checked_actions if file.num_rows), any(text))

    @property
    def days(self) -> tuple[date, ...]:
        """Days with impressions, ascending."""
        return tuple(sorted({file.day for file in self.impressions}))

    def of_days(self, days: Sequence[date]) -> tuple[LogFile, ...]:
        """Impression files of these days, by day and name."""
        return tuple(file for file in self.impressions if file.day in set(days))

    def partitions(self, rows: int) -> tuple[Partition, ...]:
        """The impressions cut into partitions of at most `rows` rows, or one row group where that has more."""
        return _partitions(self.impressions, rows)

    def action_partitions(self, rows: int) -> tuple[Partition, ...]:
        """The actions, likewise."""
        return _partitions(self.actions, rows)


def days_of(where: Path | str, since: date = date.min, until: date = date.max, skip: bool = False) -> list[date]:
    """Days of a folder of logs that have an impression, ascending.

    Args:
        where: the folder, or its URL.
        since: the first day that is looked at.
        until: the last.
        skip: a file that cannot be read has no impression; else it is a BadFileError.
    """
    found: set[date] = set()
    for file, day in _files(f"{root_of(where)}/impressions"):
        if since <= day <= until and day not in found:
            with suppress(BadFileError) if skip else nullcontext(), file.reading("not readable as parquet"):
                if file.footer().num_rows:
                    found.add(day)
    return sorted(found)


def _files(folder: str, skipped: frozenset[str] = frozenset()) -> list[tuple[StoredFile, date]]:
    files = []
    for file in find_files(folder, "day=*/*.parquet"):
        of_day = unquote(file.url.rsplit("/", 1)[0]) if is_remote(file.url) else file.url.rsplit("/", 1)[0]
        try:
            day = date.fromisoformat(of_day.rsplit("day=", 1)[1])
        except ValueError as error:
            raise DataError(f"{of_day}: not a day=YYYY-MM-DD folder ({error}); rename it") from error
        if file.url not in skipped:
            files.append((file, day))
    return files


def _partitions(files: Sequence[LogFile], rows: int) -> tuple[Partition, ...]:
    partitions: list[Partition] = []
    for day, of_day in groupby(files, lambda file: file.day):
        pieces: list[Piece] = []
        num_rows = 0
        for file in of_day:
            first_row = 0
            for group, size in enumerate(file.row_groups):
                if pieces and num_rows + size > rows:
                    partitions.append(Partition(len(partitions), day, tuple(pieces), num_rows))
                    pieces, num_rows = [], 0
                if pieces and pieces[-1].stored == file.stored:
                    pieces[-1] = Piece(file.stored, (*pieces[-1].row_groups, group), pieces[-1].first_row)
                else:
                    pieces.append(Piece(file.stored, (group,), first_row))
                first_row += size
                num_rows += size
        partitions.append(Partition(len(partitions), day, tuple(pieces), num_rows))
    return tuple(partitions)


Kinds = dict[str, str]  # column -> "string" | "strings" | "number" | "integer" | "time" | "label" | "id"


def impression_columns(spec: FeedSpec) -> Kinds:
    """What kind of column each raw column of the impressions must be."""
    columns: Kinds = {spec.logs.impression: "id", spec.logs.time: "time"}
    if spec.logs.position:
        columns[spec.logs.position] = "integer"
    if spec.logs.surface:
        columns[spec.logs.surface] = "string"
    if spec.sessions:
        columns[spec.sessions.column] = "string"
    if spec.logs.session:
        columns[spec.logs.session] = "id"
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


def action_columns(actions: Actions) -> Kinds:
    """What kind of column each column of the actions must be."""
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


MEANING = {  # of each kind, in errors
    "string": "string",
    "strings": "list<string>",
    "id": "int64 or string",
    "integer": "an integer type",
    "number": "a number type",
    "label": "bool, or 0 and 1",
    "time": "timestamp, or int64 milliseconds since the epoch",
}


def _checked(
    files: Sequence[tuple[StoredFile, date]], wanted: Kinds, impression: str
) -> Iterator[tuple[LogFile, pa.DataType]]:
    """The files with their row groups, and the type of the impression's id in each."""

    def check(file_and_day: tuple[StoredFile, date]) -> tuple[LogFile, pa.DataType]:
        file, day = file_and_day
        schema, row_groups = _check(file, wanted)
        return LogFile(file, day, row_groups), schema.field(impression).type

    return side_by_side(check, files)


def _check(path: StoredFile, wanted: Kinds) -> tuple[pa.Schema, tuple[int, ...]]:
    with path.reading("not readable as parquet"):
        footer = path.footer()
        schema = footer.schema.to_arrow_schema()
        row_groups = tuple(footer.row_group(i).num_rows for i in range(footer.num_row_groups))
    for name, kind in wanted.items():
        if schema.names.count(name) > 1:
            raise DataError(f'{path}: column "{name}" is there {schema.names.count(name)} times; write it once')
        if name not in schema.names:
            raise DataError(
                f'{path}: column "{name}" is missing{did_you_mean(name, schema.names)}; mend the file or the recipe'
            )
        if not _is(kind, schema.field(name).type):
            raise DataError(f'{path}: column "{name}" is {schema.field(name).type}; it must be {MEANING[kind]}')
    return schema, row_groups
