"""Publish: a bundle into running servers, so that no request fails and none is answered by half of it.

Verify, export beside what serves, load, test with recorded requests, and only then replace the routes: until that one
exchange of two file names the old bundle answers every request, after it the new one. Whatever dies in between, the
same command finishes the work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsefeed import __version__
from sparsefeed.errors import BundleError, ReleaseError, ServeError, SparsefeedError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import Bundle, is_older_code, open_version, read_current, set_current, verify
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.release.prune import prune
from sparsefeed.workflows.release.recorded import recorded_of, test
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.release.routing.routes import Routes
from sparsefeed.workflows.release.waves import in_waves
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.request import ROUTER

__all__ = ["must_answer", "promoted", "publish", "stage"]


def publish(
    releases: Sequence[Release],
    root: Path,
    bundle: str | None,
    config: ServingConfig,
    *,
    wave: int | None = None,
    keep: int = 3,
    why: str = "",
    progress: Progress = silent,
) -> Bundle:
    """Make a bundle the stable one of servers, wave by wave.

    Args:
        releases: of the servers, in order; they must run.
        root: of the bundles.
        bundle: the version's id; None takes `current`.
        config: how its models are exported.
        wave: servers changed before the next are begun; None: all at once.
        keep: versions that stay, those that something names apart.
        why: goes into the logs.
        progress: told of each step that is done.

    Raises:
        BundleError: the bundle is not whole; nothing was changed.
        ReleaseError: a server does not take it. Those changed before are back at what they served.
    """
    version = open_version(root, bundle)

    def change(release: Release) -> None:
        facts = stage(release, root, version, config, progress)
        if release.routes.stable != version.id:
            routes = release.decide("publish", why, lambda now: promoted(now, version.id, keep), facts, progress)
            must_answer(release, routes)
            progress(5, 8, f"{release.name}: answers with {version.id}")

    in_waves(releases, wave, change)
    if read_current(root) != version.id:
        set_current(root, version.id)
    progress(6, 8, "current set")
    prune(releases, root, keep)
    progress(7, 8, "old versions pruned")
    return version


def promoted(now: Routes, bundle: str, keep: int) -> Routes:
    """Routes with another stable bundle; a canary or shadow that is this very bundle has come to its end."""
    previous = [one for one in (now.stable, *now.previous) if one != bundle][: max(keep - 1, 1)]
    canary = None if now.canary is not None and now.canary.bundle == bundle else now.canary
    shadow = None if now.shadow is not None and now.shadow.bundle == bundle else now.shadow
    return now.with_changes(stable=bundle, previous=tuple(previous), canary=canary, shadow=shadow)


def stage(
    release: Release, root: Path, version: Bundle, config: ServingConfig, progress: Progress = silent
) -> Mapping[str, object]:
    """Bring a bundle to where routes may name it: verified, exported, loaded, warm and tested. Inside `alone`.

    Returns:
        What was measured, for the log.

    Raises:
        BundleError: it is not whole.
        ReleaseError: the server does not run, or does not take it. It is unloaded again, unless routes name it.
    """
    try:
        digest = verify(version.path, silent)
        progress(0, 8, f"{release.name}: verified {version.id}")
        _must_fit(release, version)
        already = release.control.ready()
        export(root, version.id, config, release.repository)
        progress(1, 8, f"{release.name}: exported {version.id}")
        if version.id not in already:
            release.control.load(version.id)
        progress(2, 8, f"{release.name}: loaded {version.id}")
        recorded = recorded_of(root, version)
        largest = test(version, recorded, release.place.grpc_url, config.max_candidates)
        progress(3, 8, f"{release.name}: tested {version.id}")
    except (SparsefeedError, OSError) as error:
        _unload(release, version.id)
        release.note("refuse", str(error), {"bundle": version.id})
        if isinstance(error, BundleError):
            raise
        raise ReleaseError(f"{release.name}: does not take {version.id}: {error}") from error
    requests = len(recorded.requests)
    return {"digest": digest, "recorded_requests": requests, "largest_difference": largest}


def _must_fit(release: Release, version: Bundle) -> None:
    """ReleaseError where this program is older than the bundle's, or the bundle is of another feed than the router."""
    if is_older_code(__version__, version.manifest.code_version):
        raise ReleaseError(
            f"{version.path}: code_version: got {version.manifest.code_version}; this is {__version__}, older; "
            "install the newer one on the server first"
        )
    said = release.control.parameters(ROUTER).get("responses", "")
    names = [response.name for response in FeedSpec.load(version.spec).responses]
    if said != json.dumps(names):
        raise ReleaseError(
            f"{version.path}: responses: got {', '.join(names)}; the server's router answers {said}; "
            "another feed needs a server of its own"
        )


def must_answer(release: Release, routes: Routes) -> None:
    """Ask the router as a client would, for an anonymous member, whom the stable bundle answers."""
    try:
        with FeedClient(release.place.grpc_url) as client:
            answered = client.rank("", ["sparsefeed-stranger"]).bundle
    except ServeError as error:
        raise ReleaseError(f"{release.name}: the router does not answer: {error}") from error
    if answered != routes.stable:
        raise ReleaseError(
            f'{release.name}: the router still answers with "{answered}" at revision {routes.revision}; '
            f"does it read {release.file.path}?"
        )


def _unload(release: Release, bundle: str) -> None:
    """Take away what was loaded for nothing; the server may be why it failed."""
    try:
        routes = release.routes
        if bundle not in routes.named | frozenset(routes.previous) and release.ready() is not None:
            release.control.unload(bundle)
    except SparsefeedError:
        pass
