"""Logs -> training parquet and the fitted artefacts, on a cluster (docs/contracts/training.md).

One pass fits everything on the training days, a second writes. The result appears under its name only
when it is whole, and `etl.json`, written last, says what it was made from, so that a repeated call with
the same logs and spec has nothing to do. A day is added to a result by the same two passes over that day alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from sparsefeed.errors import BadFileError, DataError, DataWarning
from sparsefeed.etl.cluster import open_cluster, use_gpu
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.day_part import DayPart
from sparsefeed.etl.hugectr_view import HugectrView, check_sayable
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder, Partition
from sparsefeed.etl.moment import Moment
from sparsefeed.etl.result import FORMAT, Result, emptied, finished, publish
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.stored_file import StoredFile, is_remote
from sparsefeed.etl.training_data import write_training_data
from sparsefeed.etl.workflow import FeedWorkflow, dataset_of
from sparsefeed.progress import Progress, silent

__all__ = [
    "Skipped",
    "Split",
    "fit_and_write",
    "partition_rows",
    "repeats_note",
    "rows_of_partitions",
    "run",
    "split_days",
]

_GROUPS_OF_A_DAY = 16  # row groups, about: the last of them can be held out of training, and several ranks read

Write = Callable[[FeedWorkflow, ReadImpressions, Sequence[Partition], Path, HugectrView | None], int]


def _fingerprint(
    spec: FeedSpec, config: EtlConfig, logs: LogFolder, previous: str | None, until: Moment | None, ids_from: str | None
) -> str:
    """Digest of all that the result depends on: the spec, the split, every log file's identity, what came before."""
    files = [
        (f.path.removeprefix(f"{logs.root}/"), f.stored.size, f.stored.mark) for f in (*logs.impressions, *logs.actions)
    ]
    written = config.model_dump(mode="json", exclude={"cluster", "view"})  # ids are the same in any view
    part = {"until": str(until) if until else None, "ids_from": ids_from}
    more = [part] if until or ids_from else []
    text = json.dumps([FORMAT, spec.dump(), written, files, previous, *more])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(
    spec: FeedSpec,
    logs_root: Path | str,
    out: Path,
    config: EtlConfig | None = None,
    progress: Progress = silent,
    previous: Result | None = None,
    *,
    until: Moment | None = None,
    ids_from: Result | None = None,
) -> dict[str, Any]:
    """Logs -> `out` (docs/contracts/training.md); returns the content of etl.json.

    A result made from the same spec and logs is left as it is. Whatever fails, `out` is the old
    result or none.

    Args:
        spec: the declaration.
        logs_root: folder of the logs.
        out: folder of the result.
        config: how to run.
        progress: told of every step.
        previous: result to which the days that `config` asks for are added, none held out; it is only read.
        until: add the rows before that moment alone.
        ids_from: a part of the same day, whose ids keep their rows; only read.
    """
    config = config or EtlConfig()
    if config.view == "hugectr":
        check_sayable(spec)
    progress(0, 4, "checking the logs")
    summary, before = finished(out), None
    if previous:
        before = previous.summary["fingerprint"]
        config = config.model_copy(update={"eval_days": 0})
    skipped = Skipped.of(summary.get("skipped", []), config.on_bad_file == "skip")
    logs = skipped.open(logs_root, spec, config)
    same_view = summary.get("view", "torchrec") == config.view
    # By the ids that it went on from: a day that is whole stays when the part before it is gone.
    same = _fingerprint(spec, config, logs, before, until, summary.get("ids_from"))
    if same_view and summary.get("fingerprint") == same:
        progress(4, 4, "nothing to do: made from the same spec and logs")
        return summary

    parent, part = (result.folder if result else None for result in (previous, ids_from))

    def make(folder: Path) -> dict[str, Any]:
        opened = logs
        while True:
            try:
                made = _make(spec, opened, folder, config, progress, parent, part, until)
                break
            except BadFileError as error:  # found in the middle: what it gave so far must not stay
                skipped.add(error)
                opened = skipped.open(logs_root, spec, config)
                emptied(folder)
        if previous and not until:
            made["warnings"] += _late(spec, opened)
        made["skipped"] = skipped.files
        made["warnings"] = [*skipped.warnings(), *made["warnings"]]
        ids = ids_from.summary["fingerprint"] if ids_from else None
        fingerprint = _fingerprint(spec, config, opened, before, until, ids)
        for result in (previous, ids_from):
            if result:
                result.must_be_unchanged()
        return {
            "format": FORMAT,
            "fingerprint": fingerprint,
            "previous": before,
            **({"ids_from": ids} if ids else {}),
            **({"until": str(until)} if until else {}),
            "logs": _absolute(opened.root),
            **made,
        }

    summary = publish(out, make)
    progress(4, 4, f"{summary['num_train_rows']:,} rows to train on, {summary['num_eval_rows']:,} to evaluate")
    return summary


class Split(NamedTuple):
    """Days of the logs, ascending, by what is done with them."""

    before: list[date]  # fitted on, not written
    train: list[date]  # fitted on and written
    evaluated: list[date]  # written for evaluation

    @classmethod
    def of(cls, days: Sequence[date], config: EtlConfig) -> Split:
        """The split that the config asks for; whether it can be trained on is for `split_days` to say."""
        fitted, evaluated = list(days[: len(days) - config.eval_days]), list(days[len(days) - config.eval_days :])
        first = config.train_from or date.min
        return cls([day for day in fitted if day < first], [day for day in fitted if day >= first], evaluated)


def rows_of_partitions(logs: LogFolder, config: EtlConfig) -> int:
    """Rows of a partition at most, so that there are enough training files."""
    train_days = set(Split.of(logs.days, config).train)
    return partition_rows(sum(file.num_rows for file in logs.impressions if file.day in train_days), config)


def partition_rows(num_train_rows: int, config: EtlConfig) -> int:
    """The same for so many rows of training days."""
    return max(1, min(config.partition_rows, num_train_rows // config.min_files))


@dataclass
class Skipped:
    """Files that cannot be read and are left out, where the config allows it.

    Attributes:
        allowed: else the first such file is an error.
        files: what etl.json says of each: `file`, `rows` (null where not even that can be read), `cause`, and what the
            file was, so that one that was mended since is read.
    """

    allowed: bool
    files: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, files: list[dict[str, Any]], allowed: bool) -> Skipped:
        """Those of an earlier run that are still what they were."""
        same = [file for file in files if StoredFile.at(file["file"]).identity == file["identity"]]
        return cls(allowed, same if allowed else [])

    def open(self, root: Path | str, spec: FeedSpec, config: EtlConfig) -> LogFolder:
        """Open a folder of logs without these files and without those whose footers cannot be read."""
        while True:
            try:
                skipped = frozenset(file["file"] for file in self.files)
                return LogFolder.open(root, spec, skipped, config.since, config.until)
            except BadFileError as error:
                self.add(error)

    def add(self, error: BadFileError) -> None:
        """Leave a file out, or raise its error."""
        if not self.allowed:
            raise error
        rows, file = None, StoredFile.at(error.path)
        with suppress(BadFileError), file.reading(error.cause):
            rows = file.footer().num_rows
        self.files.append({"file": error.path, "rows": rows, "cause": error.cause, "identity": error.identity})

    def warnings(self) -> list[str]:
        """A line per file."""
        return [
            f"{file['file']}: skipped, {'an unknown number of' if file['rows'] is None else file['rows']} rows: "
            f"{file['cause']}"
            for file in self.files
        ]


def _late(spec: FeedSpec, logs: LogFolder) -> list[str]:
    """A warning where actions may still come that belong to the last day."""
    declared, day = spec.logs.actions, logs.days[-1]
    if declared is None:
        return []
    end = day + timedelta(days=declared.attribution_days)
    if max((file.day for file in logs.actions), default=date.min) >= end:
        return []
    return [
        f"{logs.root}: no actions of {end} are there yet, when responses to {day} may still come; once they are, add "
        "the day again, and those after it"
    ]


def _absolute(root: str) -> str:
    return root if is_remote(root) else str(Path(root).resolve())


def _make(
    spec: FeedSpec,
    logs: LogFolder,
    folder: Path,
    config: EtlConfig,
    progress: Progress,
    previous: Path | None,
    ids_from: Path | None,
    until: Moment | None,
) -> dict[str, Any]:
    """Read the logs and make a result on the cluster; what etl.json says of it."""
    started = time.perf_counter()
    split_days(logs.days, config, logs.root)
    cluster = config.cluster
    if previous and not cluster.address and len(logs.partitions(rows_of_partitions(logs, config))) == 1:
        # A day that one task reads has no work for others, and starting them takes longer than the day.
        cluster = cluster.model_copy(update={"workers": 0})
    with open_cluster(cluster), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Dask and Merlin
        progress(0, 4, "looking for repeated impressions, indexing the actions")
        rows = rows_of_partitions(logs, config)
        partitions, num_rows = logs.partitions(rows), sum(file.num_rows for file in logs.impressions)
        if until:
            part = DayPart.find(partitions, spec.logs.time, until, logs.root)
            partitions, num_rows = part.partitions, part.num_rows
        gpu, until_ms = use_gpu(config.cluster), until.ms if until else None
        read = ReadImpressions.prepare(spec, logs, rows, folder / "scratch", gpu, until_ms)

        group_rows = config.row_group_rows
        if previous:
            group_rows = min(group_rows, -(-num_rows // _GROUPS_OF_A_DAY))

        def write(
            feed: FeedWorkflow,
            read: ReadImpressions,
            partitions: Sequence[Partition],
            folder: Path,
            view: HugectrView | None,
        ) -> int:
            out = feed.transform(dataset_of(spec, read, partitions, logs.text_impressions))
            seed = config.shuffle_seed if config.shuffles else None
            return write_training_data(out.to_ddf(), out.schema, spec, folder, group_rows, seed, view)

        assert read.repeats is not None
        notes = repeats_note(spec, read.repeats.count(), num_rows)
        text = logs.text_impressions
        made = fit_and_write(spec, read, partitions, text, write, folder, config, progress, previous, ids_from)
    return {**made, "warnings": [*made["warnings"], *notes], "seconds": round(time.perf_counter() - started, 2)}


def split_days(days: Sequence[date], config: EtlConfig, where: object) -> Split:
    """The days to fit on, to train on, and those after them to evaluate on; DataError if none is left to train on."""
    split = Split.of(days, config)
    if len(days) <= config.eval_days:
        raise DataError(
            f"{where}: {len(days)} days of impressions, eval_days = {config.eval_days}: none is left to train on"
        )
    if not split.train:
        raise DataError(
            f"{where}: days to train on are {split.before[0]} to {split.before[-1]}, train_from = {config.train_from}: "
            "none is left; mend etl.train_from"
        )
    return split


def repeats_note(spec: FeedSpec, num_repeated: int, num_logged: int) -> list[str]:
    """The warning of repeated impressions, if there are any."""
    note = f'column "{spec.logs.impression}": {num_repeated} of {num_logged} rows repeat an id; dropped'
    return [note] if num_repeated else []


def fit_and_write(
    spec: FeedSpec,
    read: ReadImpressions,
    partitions: Sequence[Partition],
    text_impressions: bool,
    write: Write,
    folder: Path,
    config: EtlConfig,
    progress: Progress,
    previous: Path | None = None,
    ids_from: Path | None = None,
) -> dict[str, Any]:
    """Fit on the training days and write all, wherever the rows are read: a result but etl.json, whose content it is.

    Args:
        spec: the declaration.
        read: reads a partition, repeated rows dropped and labels joined, and works on it.
        partitions: all, in the order of days.
        text_impressions: whether ids of impressions are strings.
        write: reads partitions, transforms and writes them into a folder that it makes, as a view has them; gives
            the rows.
        folder: empty but for `scratch`, which is removed.
        config: the split and the sizes.
        progress: is told the steps.
        previous: result to which the days are added; None: all is fitted.
        ids_from: a part of the same day, whose ids keep their rows; None: there is none.
    """
    before, train_days, eval_days = split_days(sorted({p.day for p in partitions}), config, "logs")
    parts = {
        name: [p for p in partitions if p.day in days]
        for name, days in (("fit", [*before, *train_days]), ("train", train_days), ("eval", eval_days))
    }
    feed = FeedWorkflow(spec, folder, previous, ids_from)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress(1, 4, f"fitting ids, statistics, weights and histories on {len(before) + len(train_days)} days")
        feed.fit(read, parts["fit"], text_impressions)
        view = HugectrView.of(spec, feed.ips.table() if feed.ips else None) if config.view == "hugectr" else None
        num_rows = {"eval": 0}
        progress(2, 4, "writing the training parquet")
        sampled = read.sampling(parts["train"], folder / "scratch")
        num_rows["train"] = write(feed, sampled, parts["train"], folder / "train", view)
        if eval_days:
            progress(3, 4, "writing the evaluation parquet")
            num_rows["eval"] = write(feed.evaluating, read, parts["eval"], folder / "eval", None)
        if eval_days and view:
            write(feed, read, parts["eval"], folder / "valid", view)
    notes = sorted({str(w.message) for w in caught if issubclass(w.category, DataWarning)})
    if len(parts["train"]) < config.min_files:
        notes.append(
            f"{len(parts['train'])} training files, etl.min_files is {config.min_files}: row groups are not cut; write "
            "the logs with smaller ones"
        )
    for scratch in ("scratch", "runs"):
        shutil.rmtree(folder / scratch, ignore_errors=True)
    (folder / "transform").mkdir()
    feed.plan().save(folder / "transform" / "plan.json")
    (folder / "spec.json").write_text(spec.dump(), "utf-8")
    maps, weights = feed.map_ids.maps, feed.ips.summary() if feed.ips else {}
    capacity_rows = {name: id_map.capacity_rows for name, id_map in maps.items()}
    if view:
        rows = {"train": num_rows["train"], "valid": num_rows["eval"]}
        view.save(folder, {"capacity_rows": capacity_rows, "num_rows": rows})
    feed.clear()
    return {
        "view": config.view,
        "spec_digest": spec.digest,
        "days_before": [str(day) for day in before],
        "train_days": [str(day) for day in train_days],
        "eval_days": [str(day) for day in eval_days],
        "num_train_rows": num_rows["train"],
        "num_eval_rows": num_rows["eval"],
        "num_ids": {name: id_map.num_admitted for name, id_map in maps.items()},
        "num_rows": {name: id_map.num_rows for name, id_map in maps.items()},
        "capacity_rows": capacity_rows,
        "ips": weights,
        "warnings": notes,
    }
