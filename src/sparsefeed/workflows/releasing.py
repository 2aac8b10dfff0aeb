"""Commands of a release: `sparsefeed publish`, `rollback`, `canary ...`, `shadow ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsefeed.workflows.console import console, stage
from sparsefeed.workflows.options import ARTIFACTS, TINY, RecipeName, Root
from sparsefeed.workflows.workspace import Workspace

__all__ = ["publish", "rollback"]


BundleId = Annotated[str | None, typer.Argument(help="A version's id; default: the current one.", show_default=False)]
Servers = Annotated[
    str | None,
    typer.Option(help="host:port of their HTTP, or their release folders, with commas; default: the workspace's."),
]
Why = Annotated[str, typer.Option(help="Goes into the release log.")]


def _open(workspace: Path, servers: str | None) -> list[Any]:
    from sparsefeed.workflows.release.release import Release

    named = [one.strip() for one in (servers or "").split(",") if one.strip()]
    return [Release.open(one) for one in named or [str(Workspace(workspace).release)]]


def _load(recipe: str) -> Any:
    from sparsefeed.workflows.recipe import load_recipe

    return load_recipe(recipe)


def publish(
    bundle: BundleId = None,
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
    wave: Annotated[int | None, typer.Option(min=1, help="Servers at a time; a wave that fails is taken back.")] = None,
    why: Why = "",
) -> None:
    """Put a bundle into service on running servers: verified, loaded beside, tested, then switched to."""
    from sparsefeed.workflows.release.publish import publish as publish_bundle

    loaded, releases = _load(recipe), _open(workspace, servers)
    with stage("publish") as progress:
        version = publish_bundle(
            releases,
            Workspace(workspace).bundles,
            bundle,
            loaded.serving,
            wave=wave,
            keep=loaded.release.keep_versions,
            why=why,
            progress=progress,
        )
    console.print(f"bundle {version.id} answers on {', '.join(release.name for release in releases)}")


def rollback(
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
    to: Annotated[str | None, typer.Option(help="Go to this bundle; default: undo the last step.")] = None,
    why: Why = "",
) -> None:
    """Undo the last step of a release, from the next request on: end the canary, else go back a bundle."""
    from sparsefeed.workflows.release.rollback import roll_back

    for done in roll_back(_open(workspace, servers), to, why):
        console.print(f"{done.server}: {done.said}", soft_wrap=True)
