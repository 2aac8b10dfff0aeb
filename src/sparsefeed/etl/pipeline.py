"""Logs -> training parquet and the fitted artefacts, on a cluster (docs/contracts/training.md).

One pass fits everything on the training days, a second writes. The result appears under its name only
when it is whole, and `etl.json`, written last, says what it was made from, so that a repeated call with
the same logs and spec has nothing to do.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from merlin.io import Dataset

from sparsefeed.errors import DataError, DataWarning
from sparsefeed.etl.cluster import open_cluster, use_gpu
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.logs import LogFolder, label
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.workflow import FeedWorkflow
from sparsefeed.progress import Progress, silent

__all__ = ["run"]


def _fingerprint(spec: FeedSpec, config: EtlConfig, logs: LogFolder) -> str:
    """Digest of everything the result depends on: the spec, the split and the identity of every log file."""
    files = [
        (str(f.path.relative_to(logs.root)), f.path.stat().st_size, f.path.stat().st_mtime_ns)
        for f in (*logs.impressions, *logs.actions)
    ]
    text = json.dumps([spec.dump(), config.eval_days, config.row_group_rows, files])
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
    done = out / "etl.json"
    if done.exists():
        summary: dict[str, Any] = json.loads(done.read_text("utf-8"))
        if summary["fingerprint"] == fingerprint:
            progress(4, 4, "nothing to do: made from the same spec and logs")
            return summary
    days = logs.days
    if len(days) <= config.eval_days:
        raise DataError(
            f"{logs_root}: {len(days)} days of impressions, eval_days = {config.eval_days}: none is left to train on"
        )
    started = time.perf_counter()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    feed = FeedWorkflow(spec, partial)
    gpu = use_gpu(config.cluster)
    notes: list[str] = []
    with open_cluster(config.cluster), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        progress(1, 4, f"fitting ids, statistics, weights and histories on {len(days) - config.eval_days} days")
        training = feed.dataset(logs, logs.of_days(days[: -config.eval_days]), gpu)
        feed.fit(training)
        progress(2, 4, "writing the training parquet")
        _write(feed, training, partial / "train", config)
        progress(3, 4, "writing the evaluation parquet")
        _write(feed, feed.dataset(logs, logs.of_days(days[-config.eval_days :]), gpu), partial / "eval", config)
        notes = sorted({str(w.message) for w in caught if issubclass(w.category, DataWarning)})
    num_train_rows, num_eval_rows = _num_rows(partial / "train"), _num_rows(partial / "eval")
    num_logged = sum(pq.read_metadata(file.path).num_rows for file in logs.impressions)
    if num_repeated := num_logged - num_train_rows - num_eval_rows:
        notes.append(f'column "{spec.logs.impression}": {num_repeated} of {num_logged} rows repeat an id; dropped')
    (partial / "transform").mkdir()
    feed.plan().save(partial / "transform" / "plan.json")
    (partial / "spec.json").write_text(spec.dump(), "utf-8")
    maps = feed.map_ids.maps
    summary = {
        "format": 1,
        "fingerprint": fingerprint,
        "spec_digest": spec.digest,
        "train_days": [str(day) for day in days[: -config.eval_days]],
        "eval_days": [str(day) for day in days[-config.eval_days :]],
        "num_train_rows": num_train_rows,
        "num_eval_rows": num_eval_rows,
        "num_ids": {name: id_map.num_admitted for name, id_map in maps.items()},
        "num_rows": {name: id_map.num_rows for name, id_map in maps.items()},
        "capacity_rows": {name: id_map.capacity_rows for name, id_map in maps.items()},
        "warnings": notes,
        "seconds": round(time.perf_counter() - started, 2),
    }
    (partial / "etl.json").write_text(json.dumps(summary, indent=1) + "\n", "utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    progress(4, 4, f"{summary['num_train_rows']:,} rows to train on, {summary['num_eval_rows']:,} to evaluate")
    return summary


def _write(feed: FeedWorkflow, dataset: Dataset, folder: Path, config: EtlConfig) -> None:
    spec = feed.spec
    feed.transform(dataset).to_parquet(
        str(folder),
        row_group_size=config.row_group_rows,
        labels=[label(r.name) for r in spec.responses],
        conts=[f.name for f in spec.dense],
        cats=[f.name for f in spec.lookups],
    )


def _num_rows(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in sorted(folder.glob("*.parquet")))
