"""Rollback: the last step of a release undone, by one replacement of the route file.

It reads no bundle that is left, needs no room on the disk and no server that runs: a server that is down begins with
what the routes say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsefeed.errors import BundleError, ReleaseError, ServeError
from sparsefeed.lock import only_writer
from sparsefeed.models.bundle import set_current
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.release.routing.routes import Routes

__all__ = ["RolledBack", "roll_back"]


@dataclass(frozen=True)
class RolledBack:
    """What came of one server.

    Attributes:
        server: its name.
        stable: the bundle that answers now.
        said: what was done, in words.
    """

    server: str
    stable: str
    said: str


def roll_back(
    releases: Sequence[Release], to: str | None = None, why: str = "", progress: Progress = silent
) -> list[RolledBack]:
    """Undo the last step: end the canary if there is one, else go back to the bundle that was stable before.

    The shadow ends, too. A rollback that died after its routes were in place is finished, not repeated.

    Args:
        releases: of the servers, running or not.
        to: a bundle to go to instead, whether there is a canary or not.
        why: goes into the logs.
        progress: told of each step that is done.

    Raises:
        ReleaseError: there is nothing to go back to, or a server cannot load it; the routes are as they were. Servers
            named before were rolled back.
    """
    return [_one(release, to, why, progress) for release in releases]


def _one(release: Release, to: str | None, why: str, progress: Progress) -> RolledBack:
    mended = _mend(release)
    with release.alone() as unfinished:
        now = release.routes
        if mended and to in (None, now.stable):
            running = _must_be_ready(release, now.stable)
            said = "the route file could not be read"
            release.decide("rollback", f"{why}; {said}" if why else said, lambda routes: routes.with_changes())
            return RolledBack(release.name, now.stable, f"{said}; those before are back: {now.stable} {_when(running)}")
        if unfinished == "rollback" and to in (None, now.stable):
            return RolledBack(release.name, now.stable, f"had been rolled back to {now.stable} by a command that died")
        target = to or (now.stable if now.canary is not None else next(iter(now.previous), None))
        if target is None:
            raise ReleaseError(f"{release.name}: {now.stable} is all it ever served; publish another bundle instead")
        if target == now.stable and now.canary is None and now.shadow is None:
            return RolledBack(release.name, target, f"answers with {target} already")
        running = _must_be_ready(release, target)
        progress(0, 2, f"{release.name}: {target} is ready")
        left = sorted(now.named - {target})
        release.decide("rollback", why, lambda routes: _back(routes, target), {"left": left}, progress)
        with contextlib.suppress(BundleError):  # a full disk has no room for it; the routes rule
            set_current(Path(release.place.bundles), target)
        progress(2, 2, "current set")
        return RolledBack(release.name, target, f"left {', '.join(left)}; {target} {_when(running)}")


def _when(running: bool) -> str:
    return "answers from the next request on" if running else "answers when it is started; it does not run now"


def _mend(release: Release) -> bool:
    """Routes that cannot be read (edited by hand, say) give way to those before them; whether they had to."""
    with only_writer(release.folder):
        try:
            release.file.read()
        except ReleaseError:
            release.file.restore()
            return True
    return False


def _back(now: Routes, target: str) -> Routes:
    # The bundle that is left is no place to come back to: a second rollback goes further back.
    previous = now.previous
    if target in previous:
        previous = previous[previous.index(target) + 1 :]
    pinned = {member: bundle for member, bundle in now.pinned.items() if bundle == target}
    return now.with_changes(stable=target, previous=previous, canary=None, shadow=None, pinned=pinned)


def _must_be_ready(release: Release, target: str) -> bool:
    """Load the bundle if the server runs without it; False when it does not run."""
    ready = release.ready()
    if ready is None:
        return False
    if target not in ready:
        try:
            release.control.load(target)
        except ServeError as error:
            others = ", ".join(sorted(ready)) or "none"
            raise ReleaseError(
                f"{release.name}: cannot load {target}: {error}; ready are: {others}; name one with --to"
            ) from error
    return True
