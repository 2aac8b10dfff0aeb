"""What tests share: hand-made logs and one ETL run over them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.native import library
from tests import logs

CONFIG = EtlConfig(cluster=ClusterConfig(workers=2), row_group_rows=100)


@pytest.fixture(scope="session", autouse=True)
def native_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a native lookup would be built: nowhere, so that what `make native` left here decides nothing."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("native") / "build"
        patch.setattr(library, "FOLDER", folder)
        yield folder


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
