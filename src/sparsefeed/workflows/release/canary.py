"""Canary: a bundle that answers some members, judged beside the stable one, promoted or aborted.

The route file of each server says who is in; figures and posted labels of all servers are judged together. Every
decision, automatic or not, is a line of each server's release log.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sparsefeed.errors import ReleaseError
from sparsefeed.models.bundle import Bundle, open_version, set_current
from sparsefeed.progress import Progress, silent
from sparsefeed.workflows.release.config import Guardrails, ReleaseConfig
from sparsefeed.workflows.release.judge import Judgement, judge
from sparsefeed.workflows.release.publish import must_answer, promoted, stage
from sparsefeed.workflows.release.release import Release
from sparsefeed.workflows.release.routing.figures import Figures, read_figures
from sparsefeed.workflows.release.routing.routes import Canary, Routes
from sparsefeed.workflows.release.sequential import Rate
from sparsefeed.workflows.release.waves import in_waves
from sparsefeed.workflows.serving.config import ServingConfig

__all__ = ["abort", "look", "post_labels", "promote", "start", "watch"]


def start(
    releases: Sequence[Release],
    root: Path,
    bundle: str | None,
    percent: float,
    config: ServingConfig,
    *,
    why: str = "",
    progress: Progress = silent,
) -> Bundle:
    """Give a bundle some members on all servers; one that runs gets another percent, and keeps who is in.

    Raises:
        BundleError: it is not whole.
        ReleaseError: it is the stable one, another canary runs, or a server does not take it; routes are as they were.
    """
    version = open_version(root, bundle)
    running = {canary.salt for release in releases if (canary := release.routes.canary)}
    if len(running) > 1:
        raise ReleaseError(
            f"servers have canaries of different starts ({', '.join(sorted(running))}); abort them first"
        )
    # One salt for all, so that a member is in or out whichever server is asked.
    salt = running.pop() if running else f"{version.id[:100]}-{int(time.time())}-{secrets.token_hex(4)}"

    def change(release: Release) -> None:
        now = release.routes
        if now.stable == version.id:
            raise ReleaseError(f"{release.name}: {version.id} is the stable bundle; it has all members")
        if now.canary is not None and now.canary.bundle != version.id:
            raise ReleaseError(f"{release.name}: {now.canary.bundle} is the canary; promote or abort it first")
        if now.canary == Canary(version.id, percent, salt):
            return
        facts = stage(release, root, version, config, progress)
        if now.canary is None:
            _forget(release, keep=salt)
        release.decide(
            "canary start",
            why,
            lambda routes: routes.with_changes(canary=Canary(version.id, percent, salt)),
            facts,
            progress,
        )

    in_waves(releases, None, change)
    return version


def look(releases: Sequence[Release], guardrails: Guardrails) -> tuple[Canary, Judgement]:
    """Judge the canary by the figures and labels of all servers; nothing is changed.

    Raises:
        ReleaseError: no canary runs.
    """
    stable, canary = _running(releases)
    bundles: dict[str, Figures] = {}
    labels: dict[str, dict[str, Rate]] = {stable: {}, canary.bundle: {}}
    for release in releases:
        for bundle, figures in read_figures(release.folder / "figures" / canary.salt)[0].items():
            bundles[bundle] = bundles.get(bundle, Figures()).plus(figures)
        for line in _posted(release, canary.salt):
            if line["bundle"] in labels:
                own = labels[line["bundle"]]
                before = own.get(line["response"], Rate(0, 0))
                own[line["response"]] = Rate(before.count + line["positive"], before.total + line["shown"])
    nothing = Figures()
    judgement = judge(
        bundles.get(stable, nothing),
        bundles.get(canary.bundle, nothing),
        guardrails,
        labels[stable],
        labels[canary.bundle],
    )
    return canary, judgement


def watch(
    releases: Sequence[Release],
    config: ReleaseConfig,
    *,
    until: Callable[[Judgement], bool] = lambda judgement: judgement.verdict != "wait",
    tell: Callable[[Judgement], object] = lambda _: None,
    sleep: Callable[[float], object] = time.sleep,
) -> Judgement:
    """Look again and again; a canary that is beyond a guardrail is aborted at once.

    Returns:
        The judgement that ended it: `abort`, which was carried out, or what `until` wanted.
    """
    while True:
        _, judgement = look(releases, config.guardrails)
        tell(judgement)
        if judgement.verdict == "abort":
            abort(releases, why=f"guardrail: {judgement.why}", judgement=judgement)
            return judgement
        if until(judgement):
            return judgement
        sleep(config.look_every_s)


def abort(
    releases: Sequence[Release], why: str = "", judgement: Judgement | None = None, progress: Progress = silent
) -> str:
    """Take the canary's members back, on every server that has one; return its id.

    Raises:
        ReleaseError: no canary runs, or routes cannot be replaced.
    """
    _, canary = _running(releases)
    for release in releases:
        with release.alone():
            if release.routes.canary is not None:
                facts = judgement.facts() if judgement else {}
                release.decide(
                    "canary abort",
                    why,
                    lambda now: now.with_changes(canary=None),
                    {"bundle": canary.bundle, **facts},
                    progress,
                )
    return canary.bundle


def promote(
    releases: Sequence[Release],
    root: Path,
    config: ReleaseConfig,
    *,
    force: bool = False,
    why: str = "",
    progress: Progress = silent,
) -> str:
    """Make the canary the stable bundle of all servers, if it passes; return its id.

    Raises:
        ReleaseError: no canary runs; it does not pass, and `force` is False; or a server does not take it, and all have
            their old routes.
    """
    finished = _promoted_by_the_dead(releases)
    if finished:
        set_current(root, finished)
        return finished
    canary, judgement = look(releases, config.guardrails)
    if judgement.verdict != "pass" and not force:
        raise ReleaseError(
            f"canary {canary.bundle}: {judgement.verdict}: {judgement.why}; wait, abort it, or promote with --force"
        )

    def change(release: Release) -> None:
        now = release.routes
        if now.canary is not None and now.canary.bundle == canary.bundle:
            routes = release.decide(
                "canary promote",
                why,
                lambda routes: promoted(routes, canary.bundle, config.keep_versions),
                judgement.facts() | {"forced": judgement.verdict != "pass"},
                progress,
            )
            must_answer(release, routes)

    in_waves(releases, None, change)
    set_current(root, canary.bundle)
    progress(2, 2, "current set")
    return canary.bundle


def _promoted_by_the_dead(releases: Sequence[Release]) -> str | None:
    """The bundle that an earlier command promoted on every server before it died without a line in some log."""
    found = set()
    for release in releases:
        with release.alone() as unfinished:
            routes = release.routes
            promoted_last = routes.decision.get("action") == "canary promote" and routes.canary is None
            found.add((routes.stable if promoted_last else None, bool(unfinished)))
    bundles = {bundle for bundle, _ in found}
    return next(iter(bundles)) if len(bundles) == 1 and None not in bundles else None


def post_labels(release: Release, lines: Iterable[dict[str, Any]]) -> int:
    """Add what members did to the canary's judgement; what was posted before is not counted again.

    Args:
        release: of any one of the servers.
        lines: `{"bundle", "response", "shown", "positive"}`: impressions answered by a bundle, and those with the
            response. One batch, whose content is its name.

    Returns:
        How many lines were new: all or none.

    Raises:
        ReleaseError: no canary runs, or a line is none.
    """
    _, canary = _running([release])
    checked = [_checked(i, line) for i, line in enumerate(lines, 1)]
    text = json.dumps(checked, sort_keys=True)
    path = release.folder / "labels" / canary.salt / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if path.exists():
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.partial")
    beside.write_text(text + "\n", "utf-8")
    beside.replace(path)
    return len(checked)


def _checked(number: int, line: Any) -> dict[str, Any]:
    names = {"bundle": str, "response": str, "shown": int, "positive": int}
    if not isinstance(line, dict) or set(line) != set(names):
        raise ReleaseError(f"labels: line {number}: got {json.dumps(line)[:80]}; must have {', '.join(names)}")
    for name, kind in names.items():
        if not isinstance(line[name], kind) or isinstance(line[name], bool):
            raise ReleaseError(f"labels: line {number}: {name}: got {line[name]!r}; must be {kind.__name__}")
    if not 0 <= line["positive"] <= line["shown"]:
        raise ReleaseError(f"labels: line {number}: positive: got {line['positive']} of {line['shown']} shown")
    return line


def _posted(release: Release, salt: str) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    for path in sorted((release.folder / "labels" / salt).glob("*.json")):
        lines += json.loads(path.read_text("utf-8"))
    return lines


def _running(releases: Sequence[Release]) -> tuple[str, Canary]:
    """The stable bundle and the canary; ReleaseError where none runs, or servers disagree."""
    routes: list[Routes] = [release.routes for release in releases]
    found = {(one.stable, one.canary.bundle, one.canary.salt) for one in routes if one.canary is not None}
    if not found:
        raise ReleaseError("no canary runs; `sparsefeed canary start` starts one")
    if len(found) > 1:
        raise ReleaseError(f"servers have different canaries ({found}); abort them one by one with --servers")
    return next((one.stable, one.canary) for one in routes if one.canary is not None)


def _forget(release: Release, keep: str) -> None:
    """Remove figures and labels of canaries that are over."""
    for kind in ("figures", "labels"):
        for folder in (release.folder / kind).glob("*"):
            if folder.name not in (keep, "no-canary", "shadow"):
                shutil.rmtree(folder, ignore_errors=True)
