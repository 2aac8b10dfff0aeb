"""Logs -> training parquet and the fitted artefacts, on a cluster (docs/contracts/training.md).

One pass fits everything on the training days, a second writes. The result appears under its name only
when it is whole, and `etl.json`, written last, says what it was made from, so that a repeated call with
the same logs and spec has nothing to do. A day is added to a result by the same two passes over that day alone.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from sparsefeed.errors import BadFileError, DataError, DataWarning
from sparsefeed.etl.cluster import open_cluster, use_gpu
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.stored_file import StoredFile, is_remote
from sparsefeed.etl.training_data import write_training_data
from sparsefeed.etl.workflow import FeedWorkflow, dataset_of
from sparsefeed.lock import only_writer
from sparsefeed.progress import Progress, silent

__all__ = ["finished", "held_out_days", "rows_of_partitions", "run"]

_FULL_BYTES = 1 << 20


def _fingerprint(spec: FeedSpec, config: EtlConfig, logs: LogFolder, previous: str | None) -> str:
    """Digest of all that the result depends on: the spec, the split, every log file's identity, what came before."""
    files = [
        (f.path.removeprefix(f"{logs.root}/"), f.stored.size, f.stored.mark) for f in (*logs.impressions, *logs.actions)
    ]
    written = config.model_dump(mode="json", exclude={"cluster"})
    text = json.dumps([spec.dump(), written, files, *([previous] if previous else [])])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(
    spec: FeedSpec,
    logs_root: Path | str,
    out: Path,
    config: EtlConfig | None = None,
    progress: Progress = silent,
    previous: Path | None = None,
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
    """
    config = config or EtlConfig()
    progress(0, 4, "checking the logs")
    summary, before = finished(out), None
    if previous:
        before = finished(previous)["fingerprint"]
        config = config.model_copy(update={"eval_days": 0})
    skipped = Skipped.of(summary.get("skipped", []), config.on_bad_file == "skip")
    logs = skipped.open(logs_root, spec, config)
    if summary.get("fingerprint") == _fingerprint(spec, config, logs, before):
        progress(4, 4, "nothing to do: made from the same spec and logs")
        return summary
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with only_writer(partial, wait=False) as alone:
        if not alone:
            raise DataError(f"{out}: another ETL is writing it now; wait for it, or name another workspace")
        _empty(partial)  # of what a run left that was killed
        try:
            while True:
                days = logs.days
                if len(days) <= config.eval_days:
                    raise DataError(
                        f"{logs_root}: {len(days)} days of impressions, eval_days = {config.eval_days}: none is left "
                        "to train on"
                    )
                try:
                    made = _make(spec, logs, partial, config, progress, previous)
                    break
                except BadFileError as error:  # found in the middle: what it gave so far must not stay
                    skipped.add(error)
                    logs = skipped.open(logs_root, spec, config)
                    _empty(partial)
            fingerprint = _fingerprint(spec, config, logs, before)
            summary = {"format": 1, "fingerprint": fingerprint, "previous": before, "logs": _absolute(logs.root)}
            summary |= made
            summary["skipped"] = skipped.files
            summary["warnings"] = [*skipped.warnings(), *summary["warnings"]]
            (partial / "etl.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
        except Exception as error:
            # A library may say so in words of its own, or say something else.
            full = os.strerror(errno.ENOSPC) in str(error) or shutil.disk_usage(out.parent).free < _FULL_BYTES
            shutil.rmtree(partial, ignore_errors=True)
            if full:
                raise OSError(errno.ENOSPC, f"the disk of {out.parent} is full") from error
            raise
    progress(4, 4, f"{summary['num_train_rows']:,} rows to train on, {summary['num_eval_rows']:,} to evaluate")
    return summary


def held_out_days(logs: LogFolder, config: EtlConfig) -> tuple[date, ...]:
    """The last days, which are for evaluation."""
    return logs.days[len(logs.days) - config.eval_days :]


def rows_of_partitions(logs: LogFolder, config: EtlConfig) -> int:
    """Rows of a partition at most, so that there are enough training files."""
    eval_days = set(held_out_days(logs, config))
    num_rows = sum(file.num_rows for file in logs.impressions if file.day not in eval_days)
    return max(1, min(config.partition_rows, num_rows // config.min_files))


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


def _absolute(root: str) -> str:
    return root if is_remote(root) else str(Path(root).resolve())


def _empty(folder: Path) -> None:
    for left in folder.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _make(
    spec: FeedSpec, logs: LogFolder, partial: Path, config: EtlConfig, progress: Progress, previous: Path | None
) -> dict[str, Any]:
    """Fit and write into an empty folder; everything but etl.json, whose content is returned."""
    started = time.perf_counter()
    feed = FeedWorkflow(spec, partial, previous)
    gpu = use_gpu(config.cluster)
    notes: list[str] = []
    eval_days = held_out_days(logs, config)
    train_days = logs.days[: len(logs.days) - len(eval_days)]
    with open_cluster(config.cluster), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress(0, 4, "looking for repeated impressions, indexing the actions")
        rows = rows_of_partitions(logs, config)
        partitions = logs.partitions(rows)
        read = ReadImpressions.prepare(spec, logs, rows, partial / "scratch", gpu)
        parts = {
            "train": [p for p in partitions if p.day not in eval_days],
            "eval": [p for p in partitions if p.day in eval_days],
        }
        progress(1, 4, f"fitting ids, statistics, weights and histories on {len(train_days)} days")
        feed.fit(read, parts["train"], logs.text_impressions)
        num_rows = {"eval": 0}
        for step, name, what in ((2, "train", "training"), (3, "eval", "evaluation"))[: 2 if eval_days else 1]:
            progress(step, 4, f"writing the {what} parquet")
            chosen = read.sampling(parts[name], partial / "scratch") if name == "train" else read
            dataset = dataset_of(spec, chosen, parts[name], logs.text_impressions)
            num_rows[name] = _write(feed, dataset, partial / name, config)
        notes = sorted({str(w.message) for w in caught if issubclass(w.category, DataWarning)})
    assert read.repeats is not None
    if num_repeated := read.repeats.count():
        num_logged = sum(file.num_rows for file in logs.impressions)
        notes.append(f'column "{spec.logs.impression}": {num_repeated} of {num_logged} rows repeat an id; dropped')
    if len(parts["train"]) < config.min_files:
        notes.append(
            f"{len(parts['train'])} training files, etl.min_files is {config.min_files}: row groups are not cut; write "
            "the logs with smaller ones"
        )
    for folder in ("scratch", "runs"):
        shutil.rmtree(partial / folder, ignore_errors=True)
    (partial / "transform").mkdir()
    feed.plan().save(partial / "transform" / "plan.json")
    (partial / "spec.json").write_text(spec.dump(), "utf-8")
    maps = feed.map_ids.maps
    return {
        "spec_digest": spec.digest,
        "train_days": [str(day) for day in train_days],
        "eval_days": [str(day) for day in eval_days],
        "num_train_rows": num_rows["train"],
        "num_eval_rows": num_rows["eval"],
        "num_ids": {name: id_map.num_admitted for name, id_map in maps.items()},
        "num_rows": {name: id_map.num_rows for name, id_map in maps.items()},
        "capacity_rows": {name: id_map.capacity_rows for name, id_map in maps.items()},
        "ips": feed.ips.summary() if feed.ips else {},
        "warnings": notes,
        "seconds": round(time.perf_counter() - started, 2),
    }


def finished(out: Path) -> dict[str, Any]:
    """The etl.json of an earlier run, {} where there is none; DataError when `out` is something else."""
    if not out.exists():
        return {}
    try:
        summary: dict[str, Any] = json.loads((out / "etl.json").read_text("utf-8"))
        return dict(summary)
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{out}: exists and is no finished ETL result ({error}); remove it or name another") from error


def _write(feed: FeedWorkflow, dataset: Any, folder: Path, config: EtlConfig) -> int:
    out = feed.transform(dataset)
    seed = config.shuffle_seed if config.shuffle else None
    return write_training_data(out.to_ddf(), out.schema, feed.spec, folder, config.row_group_rows, seed)
