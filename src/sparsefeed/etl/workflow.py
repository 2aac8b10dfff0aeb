"""FeedSpec -> nvtabular.Workflow: the operators, the order of columns and the fitted serving plan.

No operator waits for another's statistics, so one reading of the logs fits them all (ops.statistic).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import uuid4

import dask.dataframe as dd
import merlin.dtypes as md
import numpy as np
import nvtabular as nvt
from merlin.dag import ColumnSelector
from merlin.io import Dataset
from merlin.schema import ColumnSchema, Schema

from sparsefeed.etl.held_out import held_out_columns, held_out_schema
from sparsefeed.etl.impressions import (
    IMPRESSION,
    POSITION,
    RANDOM,
    STRATUM,
    SURFACE,
    TIME,
    ReadImpressions,
    event_time,
    label,
)
from sparsefeed.etl.logs import Partition
from sparsefeed.etl.ops.history import CONTEXT, History
from sparsefeed.etl.ops.ips import Ips, cell, weight
from sparsefeed.etl.ops.map_ids import MapIds
from sparsefeed.etl.ops.standardise import Standardise
from sparsefeed.etl.ops.statistic import Statistic, fit
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.etl.serving_plan import serving_plan
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.etl.spec import FeedSpec

__all__ = ["FeedWorkflow", "dataset_of", "fit_workflow", "training_columns"]


def training_columns(spec: FeedSpec) -> list[str]:
    """Columns of the training parquet, in order."""
    weights = [n for r in spec.responses for n in (weight(r.name), cell(r.name))] if spec.weighted else []
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
    columns.append(ColumnSchema(STRATUM, dtype=np.int8))
    columns.append(ColumnSchema(IMPRESSION, dtype=md.string if text_impressions else np.int64))
    return Schema(columns)


def dataset_of(
    spec: FeedSpec, read: ReadImpressions, partitions: Sequence[Partition], text_impressions: bool
) -> Dataset:
    """Partitions of the impressions as a Merlin dataset; nothing is read yet."""
    ddf = dd.from_map(read, list(partitions), meta=read.meta, enforce_metadata=False)
    return Dataset(ddf, schema=_input_schema(spec, text_impressions), cpu=not read.cudf)


def fit_workflow(
    workflow: nvt.Workflow,
    operators: Sequence[Statistic],
    spec: FeedSpec,
    read: ReadImpressions,
    partitions: Sequence[Partition],
    text_impressions: bool,
) -> None:
    """Fit the operators of a workflow over raw columns by one reading of the partitions."""
    schema = _input_schema(spec, text_impressions)
    workflow.graph.construct_schema(schema)
    columns = dict.fromkeys(name for operator in operators for name in operator.columns)
    fit(operators, read.project_columns(list(columns)), partitions)
    workflow.graph.construct_schema(schema, preserve_dtypes=True)


@dataclass
class FeedWorkflow:
    """A FeedSpec's nvtabular.Workflow and the operators that hold its fitted state.

    Args:
        spec: the declaration.
        folder: where fitted artefacts go.
        previous: result to which a day is added: its maps and tables grow, its statistics hold; None: all is fitted.
        ids_from: a part of that day, whose maps grow instead; None: there is none.
    """

    spec: FeedSpec
    folder: Path
    previous: Path | None = None
    ids_from: Path | None = None
    evaluates: bool = field(default=False, init=False)  # see `evaluating`

    def __post_init__(self) -> None:
        spec = self.spec
        self.map_ids = MapIds(spec, self.folder, self.previous, self.ids_from)
        self.history = History(spec, self.map_ids, self.folder, self.previous)
        self.ips = Ips(spec, self.folder, self.previous) if spec.weighted else None
        self.standardise = Standardise(spec, _scales(self.previous) if self.previous else None)
        operators = [self.standardise if spec.dense else None, self.map_ids, self.history, self.ips]
        self.operators: list[Statistic] = [operator for operator in operators if operator is not None]
        graph = ColumnSelector([label(r.name) for r in spec.responses])
        for operator in self.operators:
            graph = graph + (operator.columns >> operator)
        self.workflow = nvt.Workflow(graph)

    def fit(self, read: ReadImpressions, partitions: Sequence[Partition], text_impressions: bool) -> None:
        """Fit ids, statistics, weights, histories and the snapshot by one reading of the partitions."""
        # Not Workflow.fit: it reads for each operator, then infers types from the first partition, which fails
        # where all its histories are empty; every operator here states its types.
        # Midnight, UTC, before the last day: folders may be of days elsewhere.
        last = max(partition.day for partition in partitions)
        self.history.from_ms = int(datetime(last.year, last.month, last.day, tzinfo=timezone.utc).timestamp() * 1000)
        self.history.until_ms = read.until_ms
        unfitted = [operator for operator in self.operators if not operator.fitted]
        fit_workflow(self.workflow, unfitted, self.spec, read, partitions, text_impressions)

    def transform(self, dataset: Dataset) -> Dataset:
        """The training columns, in the contract's order, lazily."""
        ddf = dataset.to_ddf()
        meta = type(ddf._meta)({name: [] for name in self.schema.column_names})
        # A name of its own: to make one, Dask would keep the method, and with it the mapped files, for good.
        name = f"transform-{uuid4().hex}"
        out = ddf.map_partitions(self.transform_frame, meta=meta, enforce_metadata=False, token=name)
        return Dataset(out, schema=self.schema, cpu=dataset.cpu)

    def transform_frame(self, part: Any) -> Any:
        """The columns of a frame; one without rows, which Merlin cannot take, stays as it is."""
        if not len(part):
            return part
        made = self.workflow.transform(part)[training_columns(self.spec)]
        if self.evaluates:
            more = held_out_columns(self.spec, Snapshot.load(self.folder / "snapshot"), part)
            made = made.assign(**{name: more[name] for name in more})
        return made

    @property
    def schema(self) -> Schema:
        """Merlin's, of the columns, once fitted."""
        columns = self.workflow.output_schema[training_columns(self.spec)]
        return columns + Schema(held_out_schema(self.spec)) if self.evaluates else columns

    @property
    def evaluating(self) -> FeedWorkflow:
        """The same, which gives rows of evaluation days: the training columns, then those of etl.held_out."""
        same = copy(self)
        same.evaluates = True
        return same

    def clear(self) -> None:
        """Forget what was fitted and close its files: Merlin's graph is a cycle, which Python frees late."""
        for operator in self.operators:
            operator.clear()

    def plan(self) -> ServingPlan:
        """The fitted workflow's serving plan."""
        return serving_plan(self.spec, self.standardise.scales)


def _scales(result: Path) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of every dense feature of an earlier result."""
    plan = ServingPlan.load(result / "transform" / "plan.json")
    scales: dict[str, tuple[float, float]] = {}
    for side in (plan.member_dense, plan.candidate_dense):
        scales |= zip(side.names, zip(side.mean, side.std, strict=True), strict=True)
    return scales
