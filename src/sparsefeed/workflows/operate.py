"""Commands about a server that runs, or would: `sparsefeed inspect`, `sparsefeed health`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sparsefeed.workflows.console import console
from sparsefeed.workflows.options import ARTIFACTS, Root, Url
from sparsefeed.workflows.show import size
from sparsefeed.workflows.workspace import Workspace

__all__ = ["health", "inspect"]


def inspect(
    workspace: Root = ARTIFACTS,
    bundle: Annotated[str | None, typer.Option(help="A version's id; default: the current one.")] = None,
) -> None:
    """Tell what a bundle weighs, table by table, and which process of a running server holds how much of it."""
    from sparsefeed.models.bundle import open_version
    from sparsefeed.workflows.serving.memory import at_rest, running

    place = Workspace(workspace)
    version = open_version(place.bundles, bundle)
    parts, processes = at_rest(version), running(place.triton_repo, version)
    table = Table(box=None, header_style="bold", title=f"bundle {version.id}")
    for heading in (
        "",
        "rows",
        "format",
        "at rest",
        *(f"{process.name}\n{process.process_id}" for process in processes),
    ):
        table.add_column(heading, justify="left" if heading in ("", "format") else "right", no_wrap=True)
    for part in parts:
        rows = "" if part.rows is None else f"{part.rows:,}"
        shares = [size(process.parts[part.name]) if part.name in process.parts else "" for process in processes]
        table.add_row(part.name, rows, part.row_format, size(part.num_bytes), *shares)
    whole = [size(process.pss_bytes) for process in processes]
    table.add_row("[bold]all", "", "", size(sum(part.num_bytes for part in parts)), *whole)
    console.print(table)
    if processes:
        total = size(sum(process.pss_bytes for process in processes))
        console.print(f"the server's processes hold {total}, shared pages divided among those who hold them (Pss)")
    else:
        console.print(f"no server of {place.triton_repo} runs on this machine")


def health(
    url: Url = "127.0.0.1:8001",
    bundle: Annotated[str | None, typer.Option(help="Default: the router's, else all that are ready.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds until no answer is an answer.")] = 5.0,
) -> None:
    """Ask a server for an answer, through every step; status 1 without one, for probes of containers."""
    from sparsefeed.workflows.serving.client import FeedClient

    with FeedClient(url, bundle, timeout_s=timeout) as client:
        healthy = client.health()
    console.print("healthy" if healthy else "[red]not healthy[/red]")
    if not healthy:
        raise typer.Exit(1)
