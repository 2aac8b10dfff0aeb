"""One repository of two bundles and one server for all serving tests."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparsefeed.native import library
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.feed import Feed


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def config(**settings: object) -> ServingConfig:
    """A small server on free ports."""
    ports = dict(zip(("http_port", "grpc_port", "metrics_port"), free_ports(3), strict=True))
    return ServingConfig.model_validate({**ports, "instances": {"transform": 1, "hps": 1, "dense": 1}, **settings})


@pytest.fixture(scope="session")
def feeds() -> dict[str, Feed]:
    """Two feeds of other content."""
    return {"b1": Feed.make(1), "b2": Feed.make(2)}


@pytest.fixture(scope="session")
def bundle_root(feeds: dict[str, Feed], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both as bundles; b2 is the current one."""
    root = tmp_path_factory.mktemp("bundles")
    for name, feed in feeds.items():
        feed.publish(root, name)
    return root


@pytest.fixture(scope="session")
def repository(bundle_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with both bundles."""
    out = tmp_path_factory.mktemp("serving") / "triton_repo"
    for name in ("b1", "b2"):
        export(bundle_root, name, config(), out)
    return out


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[TritonServer]:
    """A running server with both bundles loaded."""
    with TritonServer(repository, ["b1", "b2"], config()) as running:
        yield running


@pytest.fixture(scope="module")
def native_library(native_folder: Path) -> Iterator[Path]:
    """Built by g++; taken away afterwards, so that other modules' `auto` stays Python."""
    assert library.built() is None
    made = library.build()
    assert library.built() == made == library.build()
    yield made
    shutil.rmtree(native_folder)
