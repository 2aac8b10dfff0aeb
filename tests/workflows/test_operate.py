"""`inspect` and `health`."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from sparsefeed.workflows.cli import app
from sparsefeed.workflows.console import console
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.workspace import Workspace
from tests.workflows.serving.conftest import bundle_root, config, feeds

__all__ = ["bundle_root", "feeds"]  # fixtures


@pytest.fixture
def workspace(bundle_root: Path, tmp_path: Path) -> Workspace:
    place = Workspace(tmp_path)
    place.bundles.symlink_to(bundle_root)
    return place


def said(*words: str) -> tuple[int, str]:
    with console.capture() as capture:
        result = CliRunner().invoke(app, [*words])
    return result.exit_code, capture.get()


def test_a_bundle_at_rest_is_told_part_by_part(workspace: Workspace) -> None:
    status, text = said("inspect", "-w", str(workspace.root), "--bundle", "b1")
    assert status == 0
    for part in ("bundle b1", "table post", "ids creator", "snapshot member", "dense.onnx", "all"):
        assert part in text
    assert "no server of" in text


def test_health_without_a_server_is_status_1() -> None:
    assert said("health", "--url", f"127.0.0.1:{config().grpc_port}", "--timeout", "1") == (1, "not healthy\n")


@pytest.mark.triton
def test_the_server_of_a_workspace_is_seen_by_both_commands(workspace: Workspace) -> None:
    settings = config()
    export(workspace.bundles, "b1", settings, workspace.triton_repo)
    with TritonServer(workspace.triton_repo, ["b1"], settings) as server:
        assert said("health", "--url", server.grpc_url) == (0, "healthy\n")
        status, text = said("inspect", "-w", str(workspace.root), "--bundle", "b1")
        assert status == 0
        assert "Pss" in text
        assert str(server.process_id) in text
