"""Shadow: a bundle that is asked copies of requests, and whose answers are compared and given to nobody."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsefeed.models.bundle import Bundle, open_version
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.release.publish import stage
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.release.routing.figures import ShadowFigures, read_figures
from sparsefeed.workflows.release.routing.routes import Shadow
from sparsefeed.workflows.release.waves import in_waves
from sparsefeed.workflows.serving.config import ServingConfig

__all__ = ["shadow_figures", "start_shadow", "stop_shadow"]


def start_shadow(
    releases: Sequence[Release],
    root: Path,
    bundle: str | None,
    percent: float,
    config: ServingConfig,
    *,
    why: str = "",
    progress: Progress = silent,
) -> Bundle:
    """Copy a percent of requests to a bundle, on all servers, in the place of the shadow there is.

    Raises:
        BundleError: it is not whole.
        ReleaseError: a server does not take it; all have their old routes.
    """
    version = open_version(root, bundle)
    shadow = Shadow(version.id, percent)

    def change(release: Release) -> None:
        facts = stage(release, root, version, config, progress)
        if release.routes.shadow != shadow:
            release.decide("shadow start", why, lambda now: now.with_changes(shadow=shadow), facts, progress)

    in_waves(releases, None, change)
    return version


def stop_shadow(releases: Sequence[Release], why: str = "", progress: Progress = silent) -> None:
    """Copy no more, on any server; the log gets what was found."""
    for release in releases:
        with release.alone():
            now = release.routes.shadow
            if now is not None:
                found = vars(shadow_figures([release]).get(now.bundle, ShadowFigures()))
                facts = {"bundle": now.bundle, "found": found}
                release.decide("shadow stop", why, lambda routes: routes.with_changes(shadow=None), facts, progress)


def shadow_figures(releases: Sequence[Release]) -> dict[str, ShadowFigures]:
    """By bundle, what the copies of all servers showed: counts of the routers and of the processes that compare."""
    found: dict[str, ShadowFigures] = {}
    for release in releases:
        for folder in (release.folder / "figures").glob("*"):
            for bundle, figures in read_figures(folder)[1].items():
                found[bundle] = found.get(bundle, ShadowFigures()).plus(figures)
    return found
