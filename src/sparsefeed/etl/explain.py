"""What an ETL run will do, told before it does it: stages, what each reads and writes, from the footers alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.impressions import ReadImpressions, columns_of
from sparsefeed.etl.logs import LogFile, action_columns
from sparsefeed.etl.pipeline import Skipped, Split, rows_of_partitions
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.stored_file import side_by_side

__all__ = ["Stage", "explain"]

_NOTE_BYTES = 24  # of an impression or action in a run: two keys, and a place or a time
_EVENT_BYTES = 24


@dataclass(frozen=True)
class Stage:
    """One step of the run.

    Attributes:
        name: of the step.
        does: in a line.
        tasks: that run side by side.
        columns: read from the files.
        rows: read.
        read_bytes: of those columns, compressed, as the files have them.
        written_bytes: an estimate from above.
        kept: whether what is written stays when the run is over.
    """

    name: str
    does: str
    tasks: int
    columns: tuple[str, ...]
    rows: int
    read_bytes: int
    written_bytes: int
    kept: bool


def explain(spec: FeedSpec, root: Path | str, config: EtlConfig) -> list[Stage]:
    """The stages of `pipeline.run` over these logs, in order; nothing but footers is read.

    Raises:
        DataError: as the run itself would before it begins.
    """
    logs = Skipped(config.on_bad_file == "skip").open(root, spec, config)
    limit = rows_of_partitions(logs, config)
    partitions = logs.partitions(limit)
    split = Split.of(logs.days, config)
    days = {"fit": [*split.before, *split.train], "train": split.train, "eval": split.evaluated}
    files = {name: logs.of_days(of_stage) for name, of_stage in days.items()}
    tasks = {name: sum(p.day in of_stage for p in partitions) for name, of_stage in days.items()}
    rows = _rows(logs.impressions)
    whole = ReadImpressions(spec, columns_of(spec)).raw_columns()
    actions = tuple(action_columns(spec.logs.actions)) if spec.logs.actions else ()
    stages = [
        Stage(
            "repeats",
            "find repeated impressions",
            len(partitions),
            (spec.logs.impression,),
            rows,
            _bytes(logs.impressions, [spec.logs.impression]),
            rows * _NOTE_BYTES,
            False,
        )
    ]
    if actions:
        num_actions = _rows(logs.actions)
        pieces = len(logs.action_partitions(limit))
        size = 2 * num_actions * _NOTE_BYTES
        does = "index the later actions"
        stages.append(Stage("actions", does, pieces, actions, num_actions, _bytes(logs.actions, actions), size, False))
    fitted, num_fitted = _bytes(files["fit"], whole), _rows(files["fit"])
    size = fitted + num_fitted * _EVENT_BYTES * len({(h.of, h.response) for h in spec.histories})
    does = "ids, weights, moments, histories"
    stages.append(Stage("fit", does, tasks["fit"], tuple(whole), num_fitted, fitted, size, False))
    for name in ("train", "eval"):
        num, read = _rows(files[name]), _bytes(files[name], whole)
        does = f"map, weigh, write {name}/"
        stages.append(Stage(name, does, tasks[name], tuple(whole), num, read, num * _row_bytes(spec), True))
    return stages


def _rows(files: Iterable[LogFile]) -> int:
    return sum(file.num_rows for file in files)


def _bytes(files: Iterable[LogFile], columns: Iterable[str]) -> int:
    """Compressed bytes of some columns."""
    wanted = set(columns)
    footers = side_by_side(_footer, files)
    groups = [footer.row_group(i) for footer in footers for i in range(footer.num_row_groups)]
    chunks = [group.column(j) for group in groups for j in range(group.num_columns)]
    return sum(int(c.total_compressed_size) for c in chunks if c.path_in_schema.split(".")[0] in wanted)


def _footer(file: LogFile) -> Any:
    with file.stored.reading("not readable as parquet"):
        return file.stored.footer()


def _row_bytes(spec: FeedSpec) -> int:
    """Bytes of a training row at most: every list as long as it may be."""
    lists = sum(4 + 8 * f.max_length for f in spec.of_kind("ids", "history"))
    weights = 8 * len(spec.responses) if spec.weighted else 0
    scalars = 4 * (len(spec.responses) + len(spec.dense)) + 8 * len(spec.of_kind("id")) + 13
    return int(scalars + lists + weights)
