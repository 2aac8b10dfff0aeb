"""FeedSpec -> nvtabular.Workflow: the operators, the order of columns and the fitted serving plan.

Dense features go through NVTabular's own operators; ids, weights and histories through ours. No operator
waits for another's statistics, so one graph fits them all; each reads the logs for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask.dataframe as dd
import merlin.dtypes as md
import numpy as np
import nvtabular as nvt
from merlin.dag import ColumnSelector, Graph
from merlin.io import Dataset
from merlin.schema import ColumnSchema, Schema
from nvtabular.ops import Clip, FillMissing, LogOp, Normalize, StatOperator

from sparsefeed.etl.logs import (
    IMPRESSION,
    POSITION,
    RANDOM,
    SURFACE,
    TIME,
    LogFile,
    LogFolder,
    ReadImpressions,
    event_time,
    label,
)
from sparsefeed.etl.ops.history import CONTEXT, History
from sparsefeed.etl.ops.ips import Ips, cell, weight
from sparsefeed.etl.ops.map_ids import MapIds
from sparsefeed.etl.plan import DensePlan, LookupPlan, ServingPlan, TablePlan
from sparsefeed.etl.spec import FeedSpec, Side, side_of

__all__ = ["FeedWorkflow", "training_columns"]


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
        """Fit ids, statistics, weights, histories and the snapshot as one graph."""
        graph = self.workflow.graph
        graph.construct_schema(dataset.schema)
        # Not Workflow.fit: it then infers types from the first partition, which fails where all its histories are
        # empty, and every operator here states its types.
        self.workflow.executor.fit_phase(dataset, Graph.get_nodes_by_op_type([graph.output_node], StatOperator))
        graph.construct_schema(dataset.schema, preserve_dtypes=True)

    def transform(self, dataset: Dataset) -> Dataset:
        """The training columns, in the contract's order, lazily."""
        out = self.workflow.transform(dataset)
        columns = training_columns(self.spec)
        return Dataset(out.to_ddf()[columns], schema=out.schema[columns], cpu=dataset.cpu)

    def plan(self) -> ServingPlan:
        """The fitted workflow's serving plan."""
        spec = self.spec
        lookups = tuple(
            LookupPlan(
                f.name,
                f.kind,
                side_of(f),
                spec.table_of(f).name,
                getattr(f, "max_length", 1),
                getattr(f, "pooling", "sum"),
            )
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
