"""FeedSpec -> nvtabular.Workflow -> training parquet and the fitted artefacts (docs/contracts/training.md).

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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import merlin.dtypes as md
import numpy as np
import nvtabular as nvt
import pyarrow.parquet as pq
from merlin.dag import ColumnSelector
from merlin.io import Dataset
from merlin.schema import ColumnSchema, Schema
from nvtabular.ops import Clip, FillMissing, LogOp, Normalize

from sparsefeed.errors import DataError, DataWarning
from sparsefeed.etl.cluster import open_cluster, use_gpu
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.logs import IMPRESSION, POSITION, RANDOM, SURFACE, TIME, LogFile, LogFolder, ReadImpressions, event_time, label
from sparsefeed.etl.ops.history import CONTEXT, History
from sparsefeed.etl.ops.ips import Ips, cell, weight
from sparsefeed.etl.ops.map_ids import MapIds
from sparsefeed.etl.plan import DensePlan, LookupPlan, ServingPlan, TablePlan
from sparsefeed.etl.spec import FeedSpec, Side, side_of
from sparsefeed.progress import Progress, silent

__all__ = ["FeedWorkflow", "run", "training_columns"]


def training_columns(spec: FeedSpec) -> list[str]:
    """Columns of the training parquet, in order."""
    weights = [] if spec.ips == "none" else [n for r in spec.responses for n in (weight(r.name), cell(r.name))]
    labels = [label(r.name) for r in spec.responses]
    return [*labels, *(f.name for f in spec.dense), *(f.name for f in spec.lookups), *weights, *CONTEXT.values()]


def _input_schema(spec: FeedSpec, text_impressions: bool) -> Schema:
    columns = [ColumnSchema(f.name, dtype=md.string) for f in spec.of_kind("id")]
    columns += [ColumnSchema(f.name, dtype=md.string, is_list=True, is_ragged=True) for f in spec.of_kind("ids")]
    columns += [ColumnSchema(f.name, dtype=np.float32) for f in spec.dense]
    for response in spec.responses:
        columns.append(ColumnSchema(label(response.name), dtype=np.float32))
        columns.append(ColumnSchema(event_time(response.name), dtype=np.int64))
    columns += [ColumnSchema(TIME, dtype=np.int64), ColumnSchema(POSITION, dtype=np.int32)]
    columns += [ColumnSchema(SURFACE, dtype=md.string), ColumnSchema(RANDOM, dtype=np.int8)]
    columns.append(ColumnSchema(IMPRESSION, dtype=md.string if text_impressions else np.int64))
    return Schema(columns)


@dataclass
class FeedWorkflow:
    """A FeedSpec's nvtabular.Workflow and the operators that hold its fitted state.

    Args:
        spec: the declaration.
        folder: where fitted artefacts go.
    """

    spec: FeedSpec
    folder: Path

    def __post_init__(self) -> None:
        spec = self.spec
        self.map_ids = MapIds(spec, self.folder)
        self.history = History(spec, self.map_ids, self.folder)
        self.ips = Ips(spec, self.folder) if spec.ips != "none" else None
        self.normalize: dict[str, Normalize] = {}
        graph = ColumnSelector([label(r.name) for r in spec.responses])
        for fill, log in sorted({(f.fill, f.log) for f in spec.dense}):
            names = [f.name for f in spec.dense if (f.fill, f.log) == (fill, log)]
            normalize = Normalize(out_dtype=np.float32)
            self.normalize |= dict.fromkeys(names, normalize)
            branch = ColumnSelector(names) >> FillMissing(fill_val=fill)
            graph = graph + ((branch >> Clip(min_value=0) >> LogOp() if log else branch) >> normalize)
        graph = graph + (self.map_ids.columns >> self.map_ids) + (self.history.columns >> self.history)
        if self.ips is not None:
            graph = graph + (self.ips.columns >> self.ips)
        self.workflow = nvt.Workflow(graph)

    def dataset(self, logs: LogFolder, files: Sequence[LogFile], gpu: bool = False) -> Dataset:
        """Impression files as a Merlin dataset, one partition a file; nothing is read yet."""
        read = ReadImpressions(self.spec, logs.actions, cudf=gpu)
        meta = read.meta
        if gpu:
            import cudf

            meta = cudf.DataFrame.from_pandas(meta)
        ddf = dd.from_map(read, list(files), meta=meta, enforce_metadata=False)
        return Dataset(ddf, schema=_input_schema(self.spec, logs.text_impressions), cpu=not gpu)

    def fit(self, dataset: Dataset) -> None:
        """Fit ids, statistics, weights, histories and the snapshot in one pass."""
        self.workflow.fit(dataset)

    def transform(self, dataset: Dataset) -> Dataset:
        """The training columns, in the contract's order, lazily."""
        out = self.workflow.transform(dataset)
        columns = training_columns(self.spec)
        return Dataset(out.to_ddf()[columns], schema=out.schema[columns], cpu=dataset.cpu)

    def plan(self) -> ServingPlan:
        """The fitted workflow's serving plan."""
        spec = self.spec
        lookups = tuple(
            LookupPlan(f.name, f.kind, side_of(f), spec.table_of(f).name, getattr(f, "max_length", 1), getattr(f, "pooling", "sum"))
            for f in spec.lookups
        )
        return ServingPlan(
            name=spec.name,
            spec_digest=spec.digest,
            key_seed=spec.key_seed,
            tables=tuple(TablePlan(t.name, t.dim) for t in spec.tables),
            lookups=lookups,
            member_dense=self._dense_plan("member"),
            candidate_dense=self._dense_plan("candidate"),
            member=spec.logs.member,
            post=spec.logs.post,
            responses=tuple(r.name for r in spec.responses),
            score_weights=tuple(r.score_weight for r in spec.responses),
        )

    def _dense_plan(self, side: Side) -> DensePlan:
        features = self.spec.of_kind("dense", side=side)
        return DensePlan(
            names=tuple(f.name for f in features),
            fill=tuple(f.fill for f in features),
            log=tuple(f.log for f in features),
            mean=tuple(self.normalize[f.name].means[f.name] for f in features),
            std=tuple(self.normalize[f.name].stds[f.name] for f in features),
        )


def _fingerprint(spec: FeedSpec, config: EtlConfig, logs: LogFolder) -> str:
    """Digest of everything the result depends on: the spec, the split and the identity of every log file."""
    files = [
        (str(f.path.relative_to(logs.root)), f.path.stat().st_size, f.path.stat().st_mtime_ns) for f in (*logs.impressions, *logs.actions)
    ]
    text = json.dumps([spec.dump(), config.eval_days, config.row_group_rows, files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run(spec: FeedSpec, logs_root: Path, out: Path, config: EtlConfig | None = None, progress: Progress = silent) -> dict[str, Any]:
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
        raise DataError(f"{logs_root}: {len(days)} days of impressions, of which eval_days = {config.eval_days}; none is left to train on")
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
        "num_train_rows": _num_rows(partial / "train"),
        "num_eval_rows": _num_rows(partial / "eval"),
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
