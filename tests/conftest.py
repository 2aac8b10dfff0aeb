"""What tests share: hand-made logs and one ETL run over them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparsefeed.etl.config import ClusterConfig, EtlConfig
from tests import logs

CONFIG = EtlConfig(cluster=ClusterConfig(workers=2), row_group_rows=100)


@pytest.fixture(scope="session")
def logs_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of hand-made logs (tests.logs)."""
    return logs.write(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="session")
def etl_folder(logs_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ETL's result for them, on a real two-worker Dask cluster: trained on two days, evaluated on one."""
    from sparsefeed.etl.pipeline import run

    out = tmp_path_factory.mktemp("run") / "etl"
    run(logs.spec(), logs_folder, out, CONFIG)
    return out
