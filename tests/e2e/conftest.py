"""One run of the whole way on hand-made logs, shared by the end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.workflow import FeedWorkflow
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.stages import export_serving, prepare, train_model
from sparsefeed.workflows.workspace import Workspace
from tests import logs
from tests.conftest import CONFIG
from tests.ports import free_port


@dataclass(frozen=True)
class Run:
    """A finished run: trained, exported, and its workflow fitted a second time for reference."""

    recipe: Recipe
    workspace: Workspace
    logs: Path
    bundle: str
    feed: FeedWorkflow


def finish(recipe: Recipe, workspace: Workspace, logs_folder: Path, reference: Path) -> Run:
    """ETL, training and export, and the workflow fitted once more without a cluster."""
    prepare(recipe, workspace, logs_folder)
    train_model(recipe, workspace)
    bundle, _ = export_serving(recipe, workspace)
    feed = FeedWorkflow(recipe.feed, reference)
    opened = LogFolder.open(logs_folder, recipe.feed)
    read = ReadImpressions.prepare(recipe.feed, opened, recipe.etl.partition_rows, reference / "scratch")
    training = [p for p in opened.partitions(recipe.etl.partition_rows) if p.day in opened.days[:-1]]
    feed.fit(read, training, opened.text_impressions)
    return Run(recipe, workspace, logs_folder, bundle, feed)


def training_days(run: Run) -> pd.DataFrame:
    """The training days as the workflow reads them, by time."""
    num_days = len(LogFolder.open(run.logs, run.recipe.feed).days) - 1
    return logs.read(run.logs, run.recipe.feed, num_days).sort_values("_time", kind="stable")


def ports() -> dict[str, int]:
    """Three free ports, under the names that ServingConfig has for them."""
    return {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}


def every_option() -> FeedSpec:
    """A history whose pooling is learned, and rare posts and hashtags as two rows of their tails."""
    plain = logs.spec()
    learned = {"clicked_posts": {"pooling": "learned"}}
    paired = {name: {"tail": "quotient_remainder"} for name in ("post", "hashtag")}
    return FeedSpec.parse(
        plain.model_dump()
        | {"features": [one.model_dump() | learned.get(one.name, {}) for one in plain.features]}
        | {"tables": [one.model_dump() | paired.get(one.name, {}) for one in plain.tables]}
    )


@pytest.fixture(scope="session")
def run(logs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """ETL on a Dask cluster, two gloo ranks, export: everything but the server."""
    recipe = Recipe(
        feed=every_option(),
        etl=CONFIG,
        model=ModelConfig(hidden=(16, 8), cross_rank=4),
        train=TrainConfig(batch_size=64, epochs=3),
        serving=ServingConfig(**ports()),
    )
    folder = tmp_path_factory.mktemp("way")
    return finish(recipe, Workspace(folder), logs_folder, folder / "reference")


@pytest.fixture(scope="session")
def server(run: Run) -> Iterator[TritonServer]:
    """The real tritonserver with the run's bundle."""
    with TritonServer(run.workspace.triton_repo, [run.bundle], run.recipe.serving) as started:
        yield started


@pytest.fixture(scope="session")
def raw(run: Run) -> pd.DataFrame:
    """The run's training days."""
    return training_days(run)
