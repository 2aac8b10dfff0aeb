"""Commands of a release: `refresh`, `fold`, `loop`, `publish`, `rollback`, `canary`, `shadow`, `push`, `pull`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsefeed.errors import ReleaseError
from sparsefeed.etl.moment import Moment
from sparsefeed.progress import Progress
from sparsefeed.workflows.console import console, stage
from sparsefeed.workflows.options import ARTIFACTS, TINY, LogsFolder, RecipeName, Root
from sparsefeed.workflows.show import show_judgement, show_loop_day
from sparsefeed.workflows.workspace import Workspace

__all__ = ["canary", "fold", "loop", "publish", "pull", "push", "refresh", "rollback", "shadow"]

canary = typer.Typer(no_args_is_help=True, help="Give a bundle some members, and judge it beside the stable one.")
shadow = typer.Typer(no_args_is_help=True, help="Ask a bundle, too, and give its answers to nobody.")
_REPLAYED = 1000  # requests of a day that are drawn, and sent over and over


BundleId = Annotated[str | None, typer.Argument(help="A version's id; default: the current one.", show_default=False)]
Servers = Annotated[
    str | None,
    typer.Option(help="host:port of their gRPC, or their release folders, with commas; default: the workspace's."),
]
Why = Annotated[str, typer.Option(help="Goes into the release log.")]


def _open(workspace: Path, servers: str | None) -> list[Any]:
    from sparsefeed.workflows.release.release import Release

    named = [one.strip() for one in (servers or "").split(",") if one.strip()]
    return [Release.open(one) for one in named or [str(Workspace(workspace).release)]]


def _load(recipe: str) -> Any:
    from sparsefeed.workflows.recipe import load_recipe

    return load_recipe(recipe)


def _publish(
    releases: list[Any], root: Path, bundle: str | None, recipe: Any, wave: int | None, why: str, progress: Progress
) -> Any:
    from sparsefeed.workflows.release.publish import publish as publish_bundle

    keep = recipe.release.keep_versions
    return publish_bundle(releases, root, bundle, recipe.serving, wave=wave, keep=keep, why=why, progress=progress)


def publish(
    bundle: BundleId = None,
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
    wave: Annotated[int | None, typer.Option(min=1, help="Servers at a time; a wave that fails is taken back.")] = None,
    why: Why = "",
) -> None:
    """Put a bundle into service on running servers: verified, loaded beside, tested, then switched to."""
    loaded, releases = _load(recipe), _open(workspace, servers)
    with stage("publish") as progress:
        version = _publish(releases, Workspace(workspace).bundles, bundle, loaded, wave, why, progress)
    console.print(f"bundle {version.id} answers on {', '.join(release.name for release in releases)}")


def refresh(
    day: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="The next day of the logs.")] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="TIMESTAMP", help="Only what it has before a moment, as 2026-11-09T12:00:00; UTC."),
    ] = None,
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    logs: LogsFolder = None,
    servers: Servers = None,
    wave: Annotated[int | None, typer.Option(min=1, help="Servers at a time; a wave that fails is taken back.")] = None,
    publish_it: Annotated[bool, typer.Option("--publish", help="Into running servers, when it is made.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Although it is worse than what is current.")] = False,
) -> None:
    """Make the next version from a day of logs, or from a part of it: ids, training, gate, delta."""
    from sparsefeed.workflows.refresh import refresh as refresh_day

    if (day is None) == (until is None):
        raise typer.BadParameter("say what to refresh with: --day, or --until", param_hint="refresh")
    of = day.date() if day else Moment.parse(until or "")
    with stage("refresh") as progress:
        made = refresh_day(_load(recipe), Workspace(workspace), of, logs, force=force, progress=progress)
    size = sum(path.stat().st_size for path in made.delta.rglob("*") if path.is_file())
    console.print(f"bundle {made.bundle}, from {made.parent} by a delta of {size:,} bytes in {made.delta}")
    for name, one in made.gate.responses.items():
        console.print(
            f"{name}: log loss {one.candidate:.5f} on {made.gate.num_rows:,} held out, before {one.running:.5f}"
        )
    if publish_it:
        publish(made.bundle, recipe, workspace, servers, wave, f"refreshed with {of}")


def fold(workspace: Root = ARTIFACTS) -> None:
    """Write what refreshes left beside the current bundle's files into these: a new bundle with the same answers."""
    from sparsefeed.models.bundle import open_version, set_current
    from sparsefeed.models.fold import fold as fold_version

    root = Workspace(workspace).bundles
    parent = open_version(root)
    with stage("fold") as progress:
        made = fold_version(root, parent.id, progress)
        set_current(root, made)
    said = f"from {parent.id}" if made != parent.id else "is in whole files already"
    console.print(f"bundle {made}, {said}", soft_wrap=True)


def loop(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    logs: LogsFolder = None,
    days: Annotated[int | None, typer.Option(min=1, help="At most; default: to the last day of the logs.")] = None,
    servers: Servers = None,
    wave: Annotated[int | None, typer.Option(min=1, help="Servers at a time; a wave that fails is taken back.")] = None,
    publish_it: Annotated[bool, typer.Option("--publish", help="Every version into running servers.")] = False,
    canary_percent: Annotated[
        float | None,
        typer.Option("--canary", metavar="PERCENT", help="Every version to these members first; to all if it passes."),
    ] = None,
    replayed: Annotated[
        bool, typer.Option("--replay", help="Send servers the day's requests while a canary is watched.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where a version is worse than what is current.")] = False,
) -> None:
    """Judge, refresh and publish every day of the logs that is not there yet; goes on where it stopped."""
    from sparsefeed.workflows.loop import loop as loop_days
    from sparsefeed.workflows.release.promotion import through_canary
    from sparsefeed.workflows.traffic import real_requests, replay

    if canary_percent is not None and (publish_it or wave):
        raise typer.BadParameter("leave --publish and --wave out; a canary becomes all", param_hint="--canary")
    if replayed and canary_percent is None:
        raise typer.BadParameter("is for the time of a canary; give --canary, too", param_hint="--replay")
    place, loaded = Workspace(workspace), _load(recipe)
    releases = _open(workspace, servers) if publish_it or canary_percent is not None else []
    with stage("loop") as progress:

        def into_service(bundle: str, day: date) -> None:
            if canary_percent is None:
                _publish(releases, place.bundles, bundle, loaded, wave, "loop", progress)
                return
            sleep: Callable[[float], object] = time.sleep
            if replayed:
                urls, most = [release.place.grpc_url for release in releases], loaded.serving.max_candidates
                asked = real_requests(loaded.feed, logs or place.logs, None, _REPLAYED, day=day)
                sleep = partial(replay, urls, [(member, posts[:most]) for member, posts in asked])
            through_canary(
                releases,
                place.bundles,
                bundle,
                canary_percent,
                loaded.release,
                loaded.serving,
                why=f"loop, {day}",
                sleep=sleep,
                progress=progress,
            )

        for one in loop_days(
            loaded,
            place,
            logs,
            max_days=days,
            publish=into_service if releases else None,
            releases=releases,
            force=force,
            progress=progress,
        ):
            show_loop_day(one)


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


@canary.command("start")
def start_canary(
    bundle: BundleId = None,
    percent: Annotated[float | None, typer.Option(help="Of members; default: the recipe's.")] = None,
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
    why: Why = "",
) -> None:
    """Give a bundle some members; given again, another percent."""
    from sparsefeed.workflows.release.canary import start

    loaded, releases = _load(recipe), _open(workspace, servers)
    share = loaded.release.canary_percent if percent is None else percent
    with stage("canary") as progress:
        root = Workspace(workspace).bundles
        version = start(releases, root, bundle, share, loaded.serving, why=why, progress=progress)
    console.print(f"bundle {version.id} answers {share:g} % of members")


@canary.command("status")
def canary_status(recipe: RecipeName = TINY, workspace: Root = ARTIFACTS, servers: Servers = None) -> None:
    """Judge the canary as it stands; nothing is changed."""
    from sparsefeed.workflows.release.canary import look

    found, judgement = look(_open(workspace, servers), _load(recipe).release.guardrails)
    console.print(f"canary {found.bundle}, {found.percent:g} % of members")
    show_judgement(judgement)


@canary.command("watch")
def watch_canary(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
    promote: Annotated[bool, typer.Option("--promote", help="Promote it when it passes.")] = False,
) -> None:
    """Judge until the canary passes; beyond a guardrail it is aborted at once."""
    from sparsefeed.workflows.release.canary import promote as promote_canary
    from sparsefeed.workflows.release.canary import watch

    loaded, releases = _load(recipe), _open(workspace, servers)
    with stage("canary") as progress:
        judgement = watch(
            releases, loaded.release, tell=lambda now: progress(now.canary_requests, now.canary_requests, now.why)
        )
    show_judgement(judgement)
    if judgement.verdict == "abort":
        raise typer.Exit(1)
    if promote:
        bundle = promote_canary(releases, Workspace(workspace).bundles, loaded.release, why="passed")
        console.print(f"bundle {bundle} answers all members")


@canary.command("promote")
def promote_canary(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
    force: Annotated[bool, typer.Option("--force", help="Although it does not pass.")] = False,
    why: Why = "",
) -> None:
    """Give the canary all members, if it passes."""
    from sparsefeed.workflows.release.canary import promote

    bundle = promote(
        _open(workspace, servers), Workspace(workspace).bundles, _load(recipe).release, force=force, why=why
    )
    console.print(f"bundle {bundle} answers all members")


@canary.command("abort")
def abort_canary(workspace: Root = ARTIFACTS, servers: Servers = None, why: Why = "") -> None:
    """Take the canary's members back."""
    from sparsefeed.workflows.release.canary import abort

    console.print(f"canary {abort(_open(workspace, servers), why)} answers nobody")


@canary.command("labels")
def canary_labels(
    file: Annotated[Path, typer.Argument(help="Lines of JSON: bundle, response, shown, positive.", show_default=False)],
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
) -> None:
    """Post what members did, for the canary's judgement; a file is counted once."""
    from sparsefeed.workflows.release.canary import post_labels

    try:
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ReleaseError(f"{file}: not lines of JSON: {error}") from error
    console.print(f"{post_labels(_open(workspace, servers)[0], lines)} lines counted")


@shadow.command("start")
def start_shadow(
    bundle: BundleId = None,
    percent: Annotated[float, typer.Option(help="Of requests that are copied.")] = 100.0,
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    servers: Servers = None,
    why: Why = "",
) -> None:
    """Copy requests to a bundle, beside their path."""
    from sparsefeed.workflows.release.shadow import start_shadow as begin

    root, loaded = Workspace(workspace).bundles, _load(recipe)
    with stage("shadow") as progress:
        version = begin(_open(workspace, servers), root, bundle, percent, loaded.serving, why=why, progress=progress)
    console.print(f"bundle {version.id} is asked {percent:g} % of requests, too")


@shadow.command("status")
def shadow_status(workspace: Root = ARTIFACTS, servers: Servers = None) -> None:
    """Say how the shadow's answers differ."""
    from sparsefeed.workflows.release.shadow import shadow_figures

    for bundle, found in shadow_figures(_open(workspace, servers)).items():
        mean = found.difference / max(found.posts, 1)
        console.print(
            f"{bundle}: {found.copied:,} copied, {found.dropped:,} dropped, {found.failed:,} failed; of "
            f"{found.compared:,} compared {found.same_first / max(found.compared, 1):.1%} have the same first post; "
            f"scores differ by {mean:.4g} on average, {found.largest:.4g} at most",
            soft_wrap=True,
        )


@shadow.command("stop")
def stop_shadow(workspace: Root = ARTIFACTS, servers: Servers = None, why: Why = "") -> None:
    """Copy no more."""
    from sparsefeed.workflows.release.shadow import stop_shadow as stop

    stop(_open(workspace, servers), why)


def push(
    store: Annotated[str, typer.Argument(help="A folder or URL, as s3://bucket/feed.", show_default=False)],
    bundle: BundleId = None,
    delta: Annotated[Path | None, typer.Option(help="Send this delta instead of a bundle.")] = None,
    workspace: Root = ARTIFACTS,
) -> None:
    """Copy a bundle or a delta to a folder or an object store; it is there when it is whole."""
    from sparsefeed.workflows.release import transport

    with stage("push") as progress:
        if delta:
            sent = f"delta {transport.push_delta(delta, store, progress)}"
        else:
            sent = f"bundle {transport.push(Workspace(workspace).bundles, bundle, store, progress)}"
    console.print(f"{sent} in {store}")


def pull(
    store: Annotated[str, typer.Argument(help="A folder or URL, as s3://bucket/feed.", show_default=False)],
    bundle: Annotated[str, typer.Argument(help="A version's id.", show_default=False)],
    delta: Annotated[
        Path | None, typer.Option(help="Fetch the delta that makes the version into this new folder.")
    ] = None,
    workspace: Root = ARTIFACTS,
) -> None:
    """Copy a bundle or a delta from there; it is here when its digests were found right."""
    from sparsefeed.workflows.release import transport

    with stage("pull") as progress:
        if delta:
            path = transport.pull_delta(store, bundle, delta, progress)
        else:
            path = transport.pull(store, bundle, Workspace(workspace).bundles, progress)
    console.print(f"{bundle} in {path}")
