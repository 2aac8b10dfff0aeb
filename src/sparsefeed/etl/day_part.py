"""DayPart: which partitions of a day have rows before a moment, found by reading their times alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

from sparsefeed.errors import DataError
from sparsefeed.etl.cluster import compute
from sparsefeed.etl.logs import Partition
from sparsefeed.etl.moment import Moment
from sparsefeed.etl.parquet import milliseconds, no_nulls, read_pieces

__all__ = ["DayPart"]

Seen = tuple[int, int, int]  # rows before the moment, the first time and the last, ms


@dataclass(frozen=True)
class DayPart:
    """The partitions that a part is read from.

    Attributes:
        partitions: with a row before the moment, as they were cut, so that places of rows are the day's.
        num_rows: before the moment, repeated ones counted.
    """

    partitions: tuple[Partition, ...]
    num_rows: int

    @classmethod
    def find(cls, partitions: Sequence[Partition], time: str, until: Moment, where: object) -> DayPart:
        """Look at the times of all rows, on the cluster.

        Args:
            partitions: of one day.
            time: column of the impressions.
            until: the moment.
            where: the logs, for errors.

        Raises:
            DataError: no row is before the moment, or none is at it or after: the logs have not come so far, or it is
                of a later day.
        """
        day = partitions[0].day
        seen = compute([partial(_seen, partition, time, until.ms) for partition in partitions])
        first, last = min(one[1] for one in seen), max(one[2] for one in seen)
        if first >= until.ms:
            raise DataError(
                f"{where}: no impression of {day}, the next day, is before {until}; the first is at {_said(first)}; "
                "give a later moment"
            )
        if last < until.ms:
            raise DataError(
                f"{where}: the impressions of {day}, the next day, end at {_said(last)}, before {until}; give a moment "
                f"that they have passed, or --day {day} once the day is whole"
            )
        kept = [partition for partition, one in zip(partitions, seen, strict=True) if one[0]]
        return cls(tuple(kept), sum(one[0] for one in seen))


def _seen(partition: Partition, time: str, until_ms: int) -> Seen:
    pieces = read_pieces(partition.pieces, [time], [])
    moments = [no_nulls(piece, time, milliseconds, table) for piece, table in pieces]
    filled = [some for some in moments if len(some)]
    return (
        sum(int((some < until_ms).sum()) for some in filled),
        min(int(some.min()) for some in filled),
        max(int(some.max()) for some in filled),
    )


def _said(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, timezone.utc).isoformat(timespec="milliseconds")
