"""Two running servers with routers, and bundles to release; each test begins with b1 on both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsefeed.models.bundle import open_version, set_current
from sparsefeed.workflows.release.release import Release, ServerPlace
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.export import export, export_router
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.conftest import config
from tests.workflows.serving.feed import Feed

SETTINGS = {"instances": {"transform": 1, "hps": 1, "dense": 1, "router": 1}}


@dataclass(frozen=True)
class Served:
    """A running server and its releases."""

    release: Release
    config: ServingConfig
    root: Path

    def bundle_for(self, member: str = "m6") -> str:
        """Who answers a member now."""
        with FeedClient(self.release.place.grpc_url) as client:
            return client.rank(member, ["p6", "p7"]).bundle


def serving(folder: Path, root: Path, bundle: str = "b1") -> tuple[TritonServer, Served]:
    """A server with a router, to be started; as `sparsefeed serve` makes it."""
    settings = config(**SETTINGS)
    repository = folder / "triton_repo"
    place = ServerPlace(
        grpc_url=f"127.0.0.1:{settings.grpc_port}",
        repository=str(repository),
        bundles=str(root),
    )
    release = Release.create(folder / "release", place, bundle)
    stable = release.routes.stable
    export(root, stable, settings, repository)
    export_router(open_version(root, stable), settings, release.folder, repository)
    server = TritonServer(
        repository, [stable], settings, router=True, key=release.key, log_path=folder / "tritonserver.log"
    )
    return server, Served(release, settings, root)


@pytest.fixture(scope="session")
def release_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bundles b1 to b4 of different content; b1 is the current one."""
    root = tmp_path_factory.mktemp("release-bundles")
    for seed in (1, 2, 3, 4):
        Feed.make(seed).publish(root, f"b{seed}")
    set_current(root, "b1")
    return root


@pytest.fixture(scope="session")
def both(release_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Served]]:
    """Two servers over one root of bundles."""
    one, first = serving(tmp_path_factory.mktemp("first"), release_root)
    other, second = serving(tmp_path_factory.mktemp("second"), release_root)
    with one, other:
        yield [first, second]


@pytest.fixture
def servers(both: list[Served]) -> list[Served]:
    """Both servers as they began: b1 answers everybody."""
    for served in both:
        if "b1" not in served.release.control.ready():
            served.release.control.load("b1")
        if not served.release.file.path.read_text().startswith('{"'):
            served.release.file.restore()  # a test left it broken
        served.release.file.replace(served.release.routes.with_changes(
            stable="b1", previous=(), canary=None, shadow=None, pinned={}, decision={}
        ))  # fmt: skip
        for bundle in served.release.control.ready():
            if bundle != "b1":
                served.release.control.unload(bundle)
        served.release.log.path.unlink(missing_ok=True)
    set_current(both[0].root, "b1")
    return both


@pytest.fixture
def server(servers: list[Served]) -> Served:
    """The first of them."""
    return servers[0]
