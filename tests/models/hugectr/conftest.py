"""The real script against the recording stub, on a real ETL result in HugeCTR's view."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.pipeline import run
from tests import logs
from tests.models.hugectr.scripts import run_script
from tests.models.hugectr.stub import Graph

CONFIG = EtlConfig(cluster=ClusterConfig(workers=0), row_group_rows=100, partition_rows=60, min_files=4, view="hugectr")

Script = Callable[..., Graph]


@pytest.fixture(scope="session")
def fine_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' logs in row groups so small that there are training files for some GPUs."""
    root = logs.write(tmp_path_factory.mktemp("fine"))
    for path in root.glob("impressions/*/*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=60)
    return root


@pytest.fixture(scope="session")
def views(fine_logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same logs in both views, row for row."""
    found = {}
    for view in ("torchrec", "hugectr"):
        found[view] = tmp_path_factory.mktemp(view) / "etl"
        run(logs.spec(), fine_logs, found[view], CONFIG.model_copy(update={"view": view}))
    return found


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """`run_script` in the test's folder."""
    return partial(run_script, monkeypatch, tmp_path)
