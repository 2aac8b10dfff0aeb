"""Impressions and actions as Spark DataFrames: checked, repeats dropped, labels joined, laid down in partitions.

What needs a shuffle is Spark's. The result is a folder of parquet files, each one partition of one day, of at most so
many rows, in the order of the logs; whatever reads it finds the same rows in the same files, also when a task is run
again, which a DataFrame that is computed anew does not promise.

Both tables have a column `day`: the day of the impression, and the day of the action (docs/contracts/logs.md). Times
stay Spark's timestamps, or integers, until `parquet.milliseconds` reads them, so no time zone of a session shifts them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from sparsefeed.errors import DataError, did_you_mean
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.logs import MEANING, Kinds, Partition, Piece, action_columns, impression_columns
from sparsefeed.etl.pipeline import partition_rows, split_days
from sparsefeed.etl.spec import Actions, FeedSpec
from sparsefeed.etl.stored_file import StoredFile

__all__ = ["DAY", "PLACE", "Laid", "Tables", "acted_columns", "settings"]

DAY = "day"
PLACE = "_place"  # int64, of a row laid down: ascending in the order of the logs, without a gap within a file
_INTEGERS = {"tinyint", "smallint", "int", "bigint"}
_NUMBERS = _INTEGERS | {"float", "double"}
_TYPES = {
    "string": {"string"},
    "strings": {"array<string>"},
    "id": _INTEGERS | {"string"},
    "integer": _INTEGERS,
    "number": _NUMBERS,
    "label": _NUMBERS | {"boolean"},
    "time": {"timestamp", "timestamp_ntz", "bigint"},
}


@contextmanager
def settings(spark: Any, values: Mapping[str, str]) -> Iterator[None]:
    """Settings of a session while this is open; afterwards they are what they were."""
    before = {name: spark.conf.get(name, None) for name in values}
    try:
        for name, value in values.items():
            spark.conf.set(name, value)
        yield
    finally:
        for name, old in before.items():
            spark.conf.unset(name) if old is None else spark.conf.set(name, old)


def acted_columns(spec: FeedSpec) -> dict[str, str]:
    """By response that comes from actions, the column with the time of its first action; null for none."""
    return {response.name: f"_acted_{i}" for i, response in enumerate(spec.responses) if response.column is None}


@dataclass(frozen=True)
class Laid:
    """Impressions laid down.

    Attributes:
        partitions: by day and place; a piece is a file, its `first_row` the place of its first row.
        schema: Spark's, of the files.
        num_logged: rows there were, repeated ones with them.
        text_impressions: whether ids of impressions are strings.
        digest: of all rows, whatever their order.
    """

    partitions: tuple[Partition, ...]
    schema: Any
    num_logged: int
    text_impressions: bool
    digest: int


@dataclass(frozen=True)
class Tables:
    """Impressions and actions as Spark has them.

    Attributes:
        spec: the declaration.
        impressions: a DataFrame with the columns of the contract and `day`, a date or its text.
        actions: likewise; None where the spec declares none.
        order: columns of the impressions that put a day's rows in order: the first of those that repeat an id stays.
            Empty: by time, equal ones by a hash of the row.
    """

    spec: FeedSpec
    impressions: Any
    actions: Any | None
    order: Sequence[str] = ()

    def __post_init__(self) -> None:
        """DataError: a column is missing or of another type, or actions are there or not against the spec."""
        declared = self.spec.logs.actions
        if (self.actions is None) != (declared is None):
            raise DataError(
                "actions: the spec declares logs.actions, but got None; give a DataFrame of them, or drop logs.actions"
                if declared
                else "actions: got a DataFrame, but the spec declares no logs.actions; declare them, or give None"
            )
        wanted = impression_columns(self.spec)
        types = _checked("impressions", self.impressions, wanted, self.order)
        if declared:
            of_actions = _checked("actions", self.actions, action_columns(declared))
            id_types = types[self.spec.logs.impression], of_actions[declared.impression]
            if len({kind == "string" for kind in id_types}) > 1:
                raise DataError(
                    f"ids of impressions are {id_types[0]} in the impressions, {id_types[1]} in the actions; "
                    "write them alike"
                )

    def lay_down(self, config: EtlConfig, folder: Path) -> Laid:
        """Drop repeats, join labels and write the partitions into a folder, which Spark makes.

        Three jobs: rows per day are counted, the joined rows are written, the files are counted.

        Raises:
            DataError: no day, no row, a null where none may be, too few days.
        """
        from pyspark.sql import Observation
        from pyspark.sql import functions as F

        impressions, num_logged = self._within(config)
        days = sorted(num_logged)
        train_days = split_days(days, config, "impressions").train
        rows = partition_rows(sum(num_logged[day] for day in train_days), config)
        order = list(self.order)
        if not order:
            hashed = F.xxhash64(*[_column(name) for name in impression_columns(self.spec)])
            impressions, order = impressions.withColumn("_hash", hashed), [self.spec.logs.time, "_hash"]
        joined = self._with_actions(_without_repeats(impressions, self.spec.logs.impression, order), days)
        names = [*impression_columns(self.spec), *acted_columns(self.spec).values()]
        num_parts = sum(-(-num // rows) for num in num_logged.values())
        by = [F.col(DAY), *map(_column, order)]
        laid = joined.repartitionByRange(num_parts, *by).sortWithinPartitions(*by)
        laid = laid.select(*map(_column, names), DAY).withColumn(PLACE, F.monotonically_increasing_id())
        seen = Observation()
        digest = F.bit_xor(F.xxhash64(*map(_column, [*names, DAY]))).alias("digest")
        observed = laid.observe(seen, digest)
        # Not by as_uri: Hadoop takes a path as it is written, spaces and all.
        observed.write.option("maxRecordsPerFile", rows).partitionBy(DAY).parquet(f"file://{folder}")
        text = dict(impressions.dtypes)[self.spec.logs.impression] == "string"
        schema = laid.drop(DAY).schema
        partitions = _files(impressions.sparkSession.read.parquet(f"file://{folder}"), folder)
        return Laid(partitions, schema, sum(num_logged.values()), text, int(seen.get["digest"] or 0))

    def _within(self, config: EtlConfig) -> tuple[Any, dict[date, int]]:
        """The impressions of the days that are asked for, and how many rows each has."""
        from pyspark.sql import functions as F

        needed = dict.fromkeys((*impression_columns(self.spec), DAY, *self.order))
        impressions = _of_days(self.impressions.select(*map(_column, needed)))
        counts = _counts("impressions", impressions, [self.spec.logs.impression])
        first, last = config.since or date.min, config.until or date.max
        kept = {day: num for day, num in counts.items() if first <= day <= last}
        if not counts:
            raise DataError("impressions: the DataFrame has no row; give one with a day's impressions at least")
        if not kept:
            raise DataError(
                f"impressions: none from {config.since or 'the first day'} to {config.until or 'the last'}; there are "
                f"days {min(counts)} to {max(counts)}; mend etl.since and etl.until"
            )
        return impressions.where(F.col(DAY).between(min(kept), max(kept))), kept

    def _with_actions(self, impressions: Any, days: Sequence[date]) -> Any:
        """A column of `acted_columns` per response that comes from actions."""
        from pyspark.sql import functions as F

        declared, acted = self.spec.logs.actions, acted_columns(self.spec)
        if declared is None or not acted:
            return impressions
        actions = _of_days(self.actions).where(_column(declared.impression).isNotNull())
        _counts("actions", actions, [declared.time])
        first = _first_times(actions, declared, acted)
        first = first.where(F.col("_day").between(min(days), max(days)))
        same = (_column(self.spec.logs.impression) == F.col("_of")) & (F.col(DAY) == F.col("_day"))
        return impressions.join(first, same, "left").drop("_of", "_day")


def _first_times(actions: Any, declared: Actions, acted: Mapping[str, str]) -> Any:
    """Per impression (`_of`) and day it may be of (`_day`), the first action's time of each response.

    An action of a day belongs to the impressions with its id of that day and of the `attribution_days` before it.
    """
    from pyspark.sql import functions as F

    action, moment = _column(declared.action), _column(declared.time)
    of_days = F.sequence(F.date_sub(DAY, declared.attribution_days), F.col(DAY))
    return (
        actions.where(action.isin(*acted))
        .select(_column(declared.impression).alias("_of"), action, moment, F.explode(of_days).alias("_day"))
        .groupBy("_of", "_day")
        .agg(*[F.min(F.when(action == response, moment)).alias(name) for response, name in acted.items()])
    )


def _without_repeats(impressions: Any, impression: str, order: Sequence[str]) -> Any:
    """The first row of each id of a day."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    of_id = Window.partitionBy(DAY, _column(impression)).orderBy(*map(_column, order))
    return impressions.withColumn("_nth", F.row_number().over(of_id)).where("_nth = 1").drop("_nth")


def _of_days(table: Any) -> Any:
    """The table with `day` as a date."""
    return table.withColumn(DAY, table[DAY].cast("date"))


def _counts(where: str, table: Any, needed: Sequence[str]) -> dict[date, int]:
    """Rows by day; DataError where a day or a value that every row needs is null."""
    from pyspark.sql import functions as F

    values = [F.count(_column(name)).alias(f"_{i}") for i, name in enumerate(needed)]
    found = table.groupBy(DAY).agg(F.count(F.lit(1)).alias("_rows"), *values).collect()
    for row in found:
        if row[DAY] is None:
            raise DataError(
                f'{where}: column "{DAY}" is null, or no date, in {row["_rows"]} rows; write it as YYYY-MM-DD'
            )
        for i, name in enumerate(needed):
            if nulls := row["_rows"] - row[f"_{i}"]:
                raise DataError(
                    f'{where}, day {row[DAY]}: column "{name}" has {nulls} nulls of {row["_rows"]} rows; '
                    "every row needs one"
                )
    return {row[DAY]: row["_rows"] for row in found}


def _files(laid: Any, folder: Path) -> tuple[Partition, ...]:
    """The files laid down as partitions, in the order of their rows."""
    from pyspark.sql import functions as F

    place = F.col(PLACE)
    name = F.col("_metadata.file_name").alias("name")
    found = laid.groupBy(F.col(DAY).cast("string").alias(DAY), name)
    rows = found.agg(F.min(place).alias("first"), F.max(place).alias("last"), F.count(place).alias("num")).collect()
    partitions = []
    for number, row in enumerate(sorted(rows, key=lambda row: row["first"])):
        path = folder / f"{DAY}={row[DAY]}" / row["name"]
        if row["last"] - row["first"] + 1 != row["num"]:
            raise DataError(
                f"{path}: Spark did not write the rows in the order it was told; run it with the version that is pinned"
            )
        piece = Piece(StoredFile.at(str(path)), (0,), row["first"])
        partitions.append(Partition(number, date.fromisoformat(row[DAY]), (piece,), row["num"]))
    return tuple(partitions)


def _checked(where: str, table: Any, wanted: Kinds, others: Sequence[str] = ()) -> dict[str, str]:
    """Spark's name of the type of each column; DataError where one is missing or cannot be meant."""
    types = dict(table.dtypes)
    for name in (*wanted, DAY, *others):
        if name not in types:
            raise DataError(
                f'{where}: column "{name}" is missing{did_you_mean(name, types)}; mend the DataFrame or the spec'
            )
    for name, kind in wanted.items():
        if types[name] not in _TYPES[kind]:
            raise DataError(f'{where}: column "{name}" is {types[name]}; it must be {MEANING[kind]}; cast it')
    if types[DAY] not in ("date", "string"):
        raise DataError(f'{where}: column "{DAY}" is {types[DAY]}; it must be a date, or its text; cast it')
    return types


def _column(name: str) -> Any:
    """A column by a name that may hold anything."""
    from pyspark.sql import functions as F

    return F.col(f"`{name}`")
