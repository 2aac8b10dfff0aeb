"""In place: what the mapping of ids adds to a training step and to a served request.

The real operators and the real serving step run on real logs and requests; the clock is around the very calls in
which they turn strings or keys into rows.
"""

from __future__ import annotations

import shutil
import statistics
import tempfile
from pathlib import Path

import numpy as np
from clock import clocked
from results import Recorder, Row

from sparsefeed.etl import frame
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.ids.probe import Probe
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.ops import history, map_ids
from sparsefeed.etl.ops.statistic import fit
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import open_version
from sparsefeed.workflows.console import stage
from sparsefeed.workflows.measure import measure_serving, real_requests
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.serving.steps import transform
from sparsefeed.workflows.stages import export_serving, prepare, read_etl, simulate_logs, train_model
from sparsefeed.workflows.workspace import Workspace

__all__ = ["in_place"]

CASE = "id mapping in place"
REPEATS = 20


def in_place(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """Train and serve as a user does, then clock the mapping of one batch and of one request."""
    simulate_logs(recipe, workspace)
    prepare(recipe, workspace)
    for folder in (workspace.training(recipe.train.weights), workspace.bundles):  # the step is timed in this run
        shutil.rmtree(folder, ignore_errors=True)
    with stage("train") as progress:
        trained = train_model(recipe, workspace, progress=progress)
    export_serving(recipe, workspace)
    with stage("serve") as progress:
        served = measure_serving(recipe, workspace, progress=progress)
    spec, etl = read_etl(recipe, workspace)
    logs = LogFolder.open(Path(etl["logs"]), spec)
    batch_size = recipe.train.batch_size
    step_ms = 1e3 * batch_size / trained.samples_per_s
    mapping_ms, operators_ms, num_ids = _batch_ms(recipe, logs, workspace.etl)
    metric = f"batch of {batch_size}"
    rows = [
        record.row(CASE, f"{metric}, ids mapped", num_ids, "ids"),
        record.row(CASE, f"{metric}, mapping", mapping_ms, "ms", "training step", step_ms),
        record.row(CASE, f"{metric}, whole operators of the ETL", operators_ms, "ms", "training step", step_ms),
        record.row(CASE, "share of a training step", 100 * mapping_ms / step_ms, "%"),
    ]
    for load in served["loads"]:
        if load["concurrency"] == 1:
            num, p50_ms = load["candidates"], load["p50_ms"]
            request_ms = _request_ms(spec, workspace, logs.root, num)
            metric = f"request with {num} candidates"
            rows += [
                record.row(CASE, f"{metric}, mapping", request_ms, "ms", "p50 of the ensemble", p50_ms),
                record.row(CASE, f"share of a {metric}", 100 * request_ms / p50_ms, "%"),
            ]
    return rows


def _batch_ms(recipe: Recipe, logs: LogFolder, folder: Path) -> tuple[float, float, int]:
    """Median ms of mapping the first rows of the last training day, of the operators around it; ids mapped."""
    spec = recipe.feed
    ids = map_ids.MapIds(spec, folder)
    ids.maps = {table.name: IdMap.load(folder / "ids" / table.name) for table in spec.tables}
    eval_days = logs.days[-recipe.etl.eval_days :]
    partitions = [p for p in logs.partitions(recipe.etl.partition_rows) if p.day not in eval_days]
    with tempfile.TemporaryDirectory() as scratch:  # of what History writes
        read = ReadImpressions.prepare(spec, logs, recipe.etl.partition_rows, Path(scratch) / "joins")
        histories = history.History(spec, ids, Path(scratch))
        fit([histories], read, partitions)
        batch = read(partitions[-1])[: recipe.train.batch_size]
        mapping, operators, num_ids = [], [], 0
        for _ in range(REPEATS):
            with (
                clocked((IdMap, "encode"), (IdMap, "lookup")) as inner,
                clocked((map_ids.MapIds, "transform"), (history.History, "transform")) as outer,
            ):
                columns = {**ids.transform(None, batch), **histories.transform(None, batch)}
            assert inner.num_calls == len(spec.lookups), "the operators map ids through other calls than those clocked"
            mapping.append(inner.seconds)
            operators.append(outer.seconds)
            mapped = [frame.strings(columns[feature.name])[1] for feature in spec.lookups]
            num_ids = sum(map(len, mapped))
    return 1e3 * statistics.median(mapping), 1e3 * statistics.median(operators), num_ids


def _request_ms(spec: FeedSpec, workspace: Workspace, logs: str, num_candidates: int) -> float:
    """Median ms of hashing and mapping in the transform step of the current bundle, request by request."""
    version = open_version(workspace.bundles)
    parameters = {"folder": str(version.path), "bundle": version.id, "max_candidates": str(num_candidates)}
    step = transform.TransformStep.open(parameters)
    times = []
    for member, posts in real_requests(spec, logs, num_candidates, 200):
        tensors = {
            "member_id": np.array([member.encode()], object),
            "post_ids": np.array([post.encode() for post in posts], object),
        }
        with clocked((transform, "hash_bytes"), (Probe, "of_keys"), (IdMap, "encode")) as watch:
            (answer,) = step.run([tensors])
        if isinstance(answer, Exception):
            raise answer
        assert watch.num_calls > len(spec.tables), "the step maps ids through other calls than those clocked"
        times.append(watch.seconds)
    return 1e3 * statistics.median(times)
