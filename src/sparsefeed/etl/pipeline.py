"""Logs -> training parquet and the fitted artefacts, on a cluster (docs/contracts/training.md).

One pass fits everything on the training days, a second writes. The result appears under its name only
when it is whole, and `etl.json`, written last, says what it was made from, so that a repeated call with
the same logs and spec has nothing to do.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsefeed.errors import DataError, DataWarning
from sparsefeed.etl.cluster import open_cluster, use_gpu
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.training_data import write_training_data
from sparsefeed.etl.workflow import FeedWorkflow, dataset_of
from sparsefeed.lock import only_writer
from sparsefeed.progress import Progress, silent

__all__ = ["run"]

_FULL_BYTES = 1 << 20


def _fingerprint(spec: FeedSpec, config: EtlConfig, logs: LogFolder) -> str:
    """Digest of everything the result depends on: the spec, the split and the identity of every log file."""
    files = [
        (str(f.path.relative_to(logs.root)), f.path.stat().st_size, f.path.stat().st_mtime_ns)
        for f in (*logs.impressions, *logs.actions)
    ]
    written = config.model_dump(mode="json", exclude={"cluster"})
    text = json.dumps([spec.dump(), written, files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(
    spec: FeedSpec, logs_root: Path, out: Path, config: EtlConfig | None = None, progress: Progress = silent
) -> dict[str, Any]:
    """Logs -> `out` (docs/contracts/training.md); returns the content of etl.json.

    A result made from the same spec and logs is left as it is. Whatever fails, `out` is the old
    result or none.
    """
    config = config or EtlConfig()
    progress(0, 4, "checking the logs")
    logs = LogFolder.open(logs_root, spec)
    fingerprint = _fingerprint(spec, config, logs)
    summary = _finished(out)
    if summary.get("fingerprint") == fingerprint:
        progress(4, 4, "nothing to do: made from the same spec and logs")
        return summary
    days = logs.days
    if len(days) <= config.eval_days:
        raise DataError(
            f"{logs_root}: {len(days)} days of impressions, eval_days = {config.eval_days}: none is left to train on"
        )
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with only_writer(partial, wait=False) as alone:
        if not alone:
            raise DataError(f"{out}: another ETL is writing it now; wait for it, or name another workspace")
        for left in partial.iterdir():  # by a run that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            summary = _make(spec, logs, partial, config, progress)
            summary = {"format": 1, "fingerprint": fingerprint, "logs": str(logs_root.resolve()), **summary}
            (partial / "etl.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
        except Exception as error:
            full = shutil.disk_usage(out.parent).free < _FULL_BYTES
            shutil.rmtree(partial, ignore_errors=True)
            if full:  # what a library makes of a full disk is rarely to be read
                raise OSError(errno.ENOSPC, f"the disk of {out.parent} is full") from error
            raise
    progress(4, 4, f"{summary['num_train_rows']:,} rows to train on, {summary['num_eval_rows']:,} to evaluate")
    return summary


def _make(spec: FeedSpec, logs: LogFolder, partial: Path, config: EtlConfig, progress: Progress) -> dict[str, Any]:
    """Fit and write into an empty folder; everything but etl.json, whose content is returned."""
    days = logs.days
    started = time.perf_counter()
    feed = FeedWorkflow(spec, partial)
    gpu = use_gpu(config.cluster)
    notes: list[str] = []
    eval_days = set(days[-config.eval_days :])
    with open_cluster(config.cluster), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress(0, 4, "looking for repeated impressions, indexing the actions")
        partitions = logs.partitions(config.partition_rows)
        read = ReadImpressions.prepare(spec, logs, config.partition_rows, partial / "scratch", gpu)
        parts = {
            "train": [p for p in partitions if p.day not in eval_days],
            "eval": [p for p in partitions if p.day in eval_days],
        }
        progress(1, 4, f"fitting ids, statistics, weights and histories on {len(days) - config.eval_days} days")
        feed.fit(read, parts["train"], logs.text_impressions)
        num_rows = {}
        for step, name, what in ((2, "train", "training"), (3, "eval", "evaluation")):
            progress(step, 4, f"writing the {what} parquet")
            sampled = replace(read, sample=name == "train" and spec.sampling is not None)
            dataset = dataset_of(spec, sampled, parts[name], logs.text_impressions)
            num_rows[name] = _write(feed, dataset, partial / name, config)
        notes = sorted({str(w.message) for w in caught if issubclass(w.category, DataWarning)})
    assert read.repeats is not None
    if num_repeated := read.repeats.count():
        num_logged = sum(file.num_rows for file in logs.impressions)
        notes.append(f'column "{spec.logs.impression}": {num_repeated} of {num_logged} rows repeat an id; dropped')
    for folder in ("scratch", "runs"):
        shutil.rmtree(partial / folder, ignore_errors=True)
    (partial / "transform").mkdir()
    feed.plan().save(partial / "transform" / "plan.json")
    (partial / "spec.json").write_text(spec.dump(), "utf-8")
    maps = feed.map_ids.maps
    return {
        "spec_digest": spec.digest,
        "train_days": [str(day) for day in days[: -config.eval_days]],
        "eval_days": [str(day) for day in days[-config.eval_days :]],
        "num_train_rows": num_rows["train"],
        "num_eval_rows": num_rows["eval"],
        "num_ids": {name: id_map.num_admitted for name, id_map in maps.items()},
        "num_rows": {name: id_map.num_rows for name, id_map in maps.items()},
        "capacity_rows": {name: id_map.capacity_rows for name, id_map in maps.items()},
        "ips": feed.ips.summary() if feed.ips else {},
        "warnings": notes,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _finished(out: Path) -> dict[str, Any]:
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
