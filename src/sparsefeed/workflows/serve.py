"""`sparsefeed serve`: a server with its router, that begins with what the routes say."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from sparsefeed.errors import ServeError, SparsefeedError
from sparsefeed.workflows.console import console, stage
from sparsefeed.workflows.options import ARTIFACTS, TINY, RecipeName, Root
from sparsefeed.workflows.workspace import Workspace

__all__ = ["serve"]

_PORTS = ("http_port", "grpc_port", "metrics_port")
_PORTS_APART = 10  # of servers on one machine


def serve(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    bundle: Annotated[
        str | None, typer.Option(help="A version's id, for the first start; default: the current.")
    ] = None,
    replica: Annotated[
        int, typer.Option(min=0, max=99, help="One more server on this machine; its ports are the recipe's + 10 each.")
    ] = 0,
) -> None:
    """Serve with tritonserver until Ctrl-C; a later start goes on with what was released."""
    from sparsefeed.models.bundle import open_version, read_current
    from sparsefeed.workflows.recipe import load_recipe
    from sparsefeed.workflows.release.release import Release, ServerPlace
    from sparsefeed.workflows.serving.config import LOOPBACK
    from sparsefeed.workflows.serving.export import export, export_router
    from sparsefeed.workflows.serving.request import ROUTER
    from sparsefeed.workflows.serving.server import TritonServer

    root, place = Workspace(workspace).bundles, Workspace(workspace).server(replica)
    settings = load_recipe(recipe).serving
    settings = settings.model_copy(update={port: getattr(settings, port) + _PORTS_APART * replica for port in _PORTS})
    # Later the routes rule, and the newest bundle may be none.
    begin = "" if (place.release / "routes.json").exists() else open_version(root, bundle).id
    release = Release.create(
        place.release,
        ServerPlace(
            grpc_url=f"{LOOPBACK}:{settings.grpc_port}",
            repository=str(place.triton_repo.resolve()),
            bundles=str(root.resolve()),
        ),
        begin,
    )
    routes = release.routes
    if bundle and bundle != routes.stable:
        raise ServeError(
            f"--bundle: got {bundle}; {routes.stable} is released here; start without it, then `sparsefeed publish` "
            "or `sparsefeed rollback --to`"
        )
    version = open_version(root, routes.stable)
    export(root, version.id, settings, place.triton_repo)
    export_router(version, settings, release.folder, place.triton_repo)
    with stage("serve") as progress:
        server = TritonServer(
            place.triton_repo,
            [version.id],
            settings,
            router=True,
            key=release.key,
            log_path=place.server_log,
            progress=progress,
        )
        server.start()
    try:
        for other in sorted((routes.named | frozenset(routes.previous[:1])) - {version.id}):
            try:  # whatever is wrong with a canary, the stable bundle answers
                export(root, other, settings, place.triton_repo)
                release.control.load(other)
            except SparsefeedError as error:
                console.print("[yellow]warning[/yellow] ", end="")
                console.print(f"{other} is not loaded: {error}", markup=False, soft_wrap=True)
        console.print(
            f"bundle {version.id}: gRPC {server.grpc_url}, HTTP {server.http_url}, metrics {server.metrics_url}"
        )
        current = read_current(root)
        if current != version.id:
            console.print(f"current is {current}: `sparsefeed publish` takes it into service")
        console.print(_curl(server.http_url, ROUTER), soft_wrap=True)
        status = server.wait()
        if status:
            raise ServeError(f"tritonserver: ended with status {status}; see {place.server_log}")
    finally:
        server.stop()


def _curl(http_url: str, model: str) -> str:
    def tensor(name: str, *values: str) -> dict[str, Any]:
        return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values}

    request = json.dumps({"inputs": [tensor("member_id", "MEMBER"), tensor("post_ids", "POST", "POST")]})
    return f"curl -s http://{http_url}/v2/models/{model}/infer -d '{request}'"
