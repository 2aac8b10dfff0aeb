"""The real script against the recording stub, on a real ETL result in HugeCTR's view."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.pipeline import run
from tests import logs
from tests.models.hugectr.scripts import run_script
from tests.models.hugectr.stub import Graph

CONFIG = EtlConfig(cluster=ClusterConfig(workers=0), row_group_rows=100, shuffle=True, view="hugectr")

Script = Callable[..., Graph]


@pytest.fixture(scope="session")
def views(logs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same logs in both views, row for row."""
    found = {}
    for view in ("torchrec", "hugectr"):
        found[view] = tmp_path_factory.mktemp(view) / "etl"
        run(logs.spec(), logs_folder, found[view], CONFIG.model_copy(update={"view": view}))
    return found


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Script:
    """`run_script` in the test's folder."""
    return partial(run_script, monkeypatch, tmp_path)
