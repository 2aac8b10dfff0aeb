"""Pruning: after a day of the loop, what neither it, a server nor the next day needs is removed.

That is: versions beyond those that are kept, deltas that make no version there is, and bases that are not in force.
Killed in the middle, it is finished by the next day's.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from datetime import date
from pathlib import Path

from sparsefeed.errors import BundleError
from sparsefeed.models.bundle import read_json, versions
from sparsefeed.models.delta import DeltaManifest
from sparsefeed.workflows.release.prune import prune
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.workspace import Workspace

__all__ = ["prune_workspace"]


def prune_workspace(
    workspace: Workspace, day: date, releases: Sequence[Release], keep: int, needed: Collection[str]
) -> int:
    """Remove what a day that is done has made superfluous; nothing of later days.

    Args:
        workspace: with a version of the day.
        day: the day.
        releases: servers whose spare bundles are unloaded; what others that were registered need stays as well.
        keep: newest versions that stay.
        needed: versions that stay, too: those that doing the day once more asks for.

    Returns:
        Bytes that the disk has back; a file with several names counts when its last one is gone.
    """
    rooms = [workspace.bundles, workspace.deltas, *workspace.other_bases()]
    before = _bytes(rooms)
    prune(releases, workspace.bundles, keep, needed)
    there = set(versions(workspace.bundles))
    deltas = [path for path in workspace.deltas.glob("????-??-??") if path.name <= str(day)]
    for path in (*(path for path in deltas if _makes(path) not in there), *workspace.other_bases()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return before - _bytes(rooms)


def _makes(delta: Path) -> str | None:
    try:
        return read_json(DeltaManifest, delta / "delta.json").id
    except BundleError:
        return None


def _bytes(rooms: Sequence[Path]) -> int:
    """Of the files in these folders, or that they are, each once whatever its names."""
    files = [path for room in rooms for path in (room.rglob("*") if room.is_dir() else [room]) if path.is_file()]
    return sum({(file.st_dev, file.st_ino): file.st_size for file in map(Path.stat, files)}.values())
