"""Waves: one change over several servers, some at a time, and back again where one of them fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sparsefeed.errors import BundleError, ReleaseError, SparsefeedError
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.release.routing.routes import Routes

__all__ = ["in_waves"]


def in_waves(releases: Sequence[Release], wave: int | None, change: Callable[[Release], None]) -> None:
    """Change servers in order; a wave is begun when the one before has succeeded.

    Args:
        releases: of the servers.
        wave: servers in a wave, all of which are tried; None: all servers are one wave.
        change: called inside the server's `alone`.

    Raises:
        BundleError: the change cannot be made of this bundle; nothing was changed.
        ReleaseError: servers of a wave failed; every server whose routes were replaced has its old ones again.
    """
    changed: list[tuple[Release, Routes, int]] = []
    size = wave or max(len(releases), 1)
    for start in range(0, len(releases), size):
        failed: list[SparsefeedError] = []
        for release in releases[start : start + size]:
            with release.alone():
                before = release.routes
                try:
                    change(release)
                except SparsefeedError as error:
                    failed.append(error)
                after = release.routes
                if after.revision != before.revision:
                    changed.append((release, before, after.revision))
        if failed:
            said = "; ".join(dict.fromkeys(str(error) for error in failed))
            if not changed and all(isinstance(error, BundleError) for error in failed):
                raise BundleError(said) from failed[0]
            raise ReleaseError(f"{said}; {_take_back(changed, said)}") from failed[0]


def _take_back(changed: Sequence[tuple[Release, Routes, int]], why: str) -> str:
    """Put servers back to the routes they had; say in words what came of it."""
    failed = []
    for release, before, revision in reversed(changed):
        try:
            with release.alone():
                if release.routes.revision == revision:
                    release.decide("take back", why, _as(before))
        except SparsefeedError as error:
            failed.append(f"{release.name}: {error}")
    if failed:
        return f"NOT back at what they served, run `sparsefeed rollback`: {'; '.join(failed)}"
    names = ", ".join(release.name for release, _, _ in changed)
    return f"back at what they served: {names}" if names else "no server was changed"


def _as(before: Routes) -> Callable[[Routes], Routes]:
    return lambda now: before.with_changes(revision=now.revision + 1)
