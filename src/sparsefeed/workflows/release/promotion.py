"""Promotion: a version through a canary into service, begun, watched and ended by one call.

Repeated, it goes on where it was cut off: a canary that runs is watched on, servers that were given the version already
are left as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sparsefeed.errors import ReleaseError
from sparsefeed.models.bundle import set_current
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.release.canary import promote, start, watch
from sparsefeed.workflows.release.config import ReleaseConfig
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.serving.config import ServingConfig

__all__ = ["through_canary"]


def through_canary(
    releases: Sequence[Release],
    root: Path,
    bundle: str,
    percent: float,
    config: ReleaseConfig,
    serving: ServingConfig,
    *,
    why: str = "",
    sleep: Callable[[float], object] = time.sleep,
    progress: Progress = silent,
) -> None:
    """Give a version some members, and all of them when it passes; a server that it answers already is left alone.

    Args:
        releases: of the servers; they must run.
        root: of the bundles.
        bundle: the version's id.
        percent: of members.
        config: the guardrails, and how often they are looked at.
        serving: how its models are exported.
        why: goes into the logs.
        sleep: waits so many seconds between two looks.
        progress: told of every look and step.

    Raises:
        ReleaseError: it was aborted by a guardrail, and the stable bundle answers everybody again; another canary runs;
            or a server does not take it.
    """
    waiting = [release for release in releases if release.routes.stable != bundle]
    if waiting:
        start(waiting, root, bundle, percent, serving, why=why, progress=progress)
        judgement = watch(
            waiting, config, tell=lambda now: progress(now.canary_requests, now.canary_requests, now.why), sleep=sleep
        )
        if judgement.verdict == "abort":
            raise ReleaseError(
                f"canary {bundle}: aborted: {judgement.why}; the stable bundle answers all members. Look at the day's "
                "logs and at release.jsonl; then start the loop again for another canary of it, or take it into "
                f"service as it is (`sparsefeed publish {bundle}`), and the loop goes on"
            )
        promote(waiting, root, config, why=why or "passed", progress=progress)
    set_current(root, bundle)
