"""Prune: versions nobody needs go, and nothing that anybody may still be sent to.

Kept are the newest versions, `current`, what the caller names, whatever the routes of a server name (previous ones
included), and whatever a running server has ready. Every server that reads from a root is asked; `Release.create`
keeps the register.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from sparsefeed.errors import BundleError, ReleaseError, ServeError
from sparsefeed.lock import only_writer
from sparsefeed.models.bundle import Manifest, read_current, versions
from sparsefeed.workflows.release.release import Release, registered
from sparsefeed.workflows.serving.request import RANKER, STEPS, step_name

__all__ = ["prune"]


def prune(releases: Sequence[Release], root: Path, keep: int, needed: Collection[str] = ()) -> list[str]:
    """Unload, from these servers, what no request can reach, and remove old versions.

    Args:
        releases: servers whose spare bundles are unloaded; the one before the stable stays loaded, for a rollback.
        root: of the bundles.
        keep: newest versions that stay.
        needed: versions that stay, too.

    Returns:
        Ids of the versions removed. None are, where a server's routes cannot be read.
    """
    for release in releases:
        with release.alone():
            routes = release.routes
            for bundle in (release.ready() or frozenset()) - routes.named - frozenset(routes.previous[:1]):
                release.control.unload(bundle)
    try:
        named = _named(releases, root) | set(needed)
    except (ReleaseError, ServeError):
        return []
    removed = []
    with only_writer(root / "versions"):
        old = sorted(versions(root), key=lambda id: _created(root, id), reverse=True)[max(keep, 1) :]
        for id in old:
            if id not in named and id != read_current(root):
                for release in releases:
                    for step in (RANKER, *STEPS):
                        shutil.rmtree(release.repository / step_name(step, id), ignore_errors=True)
                gone = root / "versions" / f".{id}.removed"
                (root / "versions" / id).rename(gone)  # first, so that no reader meets half of it
                shutil.rmtree(gone, ignore_errors=True)
                removed.append(id)
    return removed


def _named(releases: Sequence[Release], root: Path) -> set[str]:
    """Bundles that routes name or servers have ready."""
    folders = {release.folder for release in releases} | set(registered(root))
    found: set[str] = set()
    for folder in folders:
        if (folder / "server.json").exists():
            release = Release.open(folder)
            routes = release.routes
            found |= routes.named | set(routes.previous) | (release.ready() or frozenset())
    return found


def _created(root: Path, id: str) -> tuple[str, int, str]:
    try:
        manifest = Manifest.load(root / "versions" / id)
    except BundleError:
        return "9", 0, id  # unreadable: kept, and named by `verify`
    return manifest.created, manifest.step, id
