"""The command line: a thin skin over workflows.stages. Heavy libraries are imported by the stage that needs them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsefeed.errors import RequestError, SparsefeedError
from sparsefeed.workflows.choices import Baseline, Dataset, OnBadFile, Scale, View, Weights
from sparsefeed.workflows.console import console, quiet_libraries, stage
from sparsefeed.workflows.nvidia import hps, hugectr
from sparsefeed.workflows.operate import health, inspect
from sparsefeed.workflows.options import ARTIFACTS, TINY, LogsFolder, RecipeName, Root, Url
from sparsefeed.workflows.releasing import canary, fold, loop, publish, pull, push, refresh, rollback, shadow
from sparsefeed.workflows.serve import serve
from sparsefeed.workflows.show import (
    show_findings,
    show_io,
    show_latency,
    show_plan,
    show_quality,
    show_ranking,
    show_slices,
    show_stages,
    show_width,
)
from sparsefeed.workflows.workspace import Workspace

__all__ = ["app", "main"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
app.add_typer(hps, name="hps")
app.add_typer(hugectr, name="hugectr")
app.add_typer(canary, name="canary")
app.add_typer(shadow, name="shadow")
for command in (serve, inspect, health, refresh, fold, loop, publish, rollback, push, pull):
    app.command()(command)

_NO_PLACE = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR}
ScaleName = Annotated[Scale | None, typer.Option("--scale", help="Of the simulated feed; default: the recipe's.")]


def _day(what: str) -> Any:
    return typer.Option(formats=["%Y-%m-%d"], help=what)


def _load(recipe: str, scale: Scale | None = None) -> Any:
    from sparsefeed.workflows.recipe import load_recipe

    return load_recipe(recipe, scale.value if scale else None)


@app.callback()
def _quiet() -> None:
    """Impression logs in, a personalised feed ranker behind Triton out."""
    quiet_libraries()


@app.command()
def doctor() -> None:
    """Say what this machine has, what will be used of it, and why not the rest."""
    from sparsefeed.workflows.doctor import examine

    show_findings(examine())


@app.command()
def simulate(recipe: RecipeName = TINY, workspace: Root = ARTIFACTS, scale: ScaleName = None) -> None:
    """Simulate a feed with a known truth: impressions, actions and true probabilities."""
    from sparsefeed.workflows.stages import simulate_logs

    place = Workspace(workspace)
    with stage("simulate") as progress:
        summary = simulate_logs(_load(recipe, scale), place, progress)
    console.print(f"{summary.impressions:,} impressions, {summary.clicks:,} clicks in {place.logs}")


@app.command("logs")
def lay_out_logs(
    dataset: Annotated[Dataset, typer.Argument(help="Which; the recipe of that name reads it.")],
    source: Annotated[Path, typer.Argument(help="Folder that it was unpacked to.")],
    workspace: Root = ARTIFACTS,
) -> None:
    """Lay a published data set out as the workspace's logs; docs/howto/real_logs.md says where to get it."""
    from sparsefeed.workflows.stages import published_logs

    place = Workspace(workspace)
    with stage("logs") as progress:
        summary = published_logs(dataset.value, source, place, progress)
    console.print(f"{summary.impressions:,} rows, {summary.first_day} to {summary.last_day}, in {place.logs}")


@app.command()
def etl(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    logs: LogsFolder = None,
    day: Annotated[datetime | None, _day("Add this day of the logs to the ETL that there is.")] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Tell what would be read and written, and stop.")] = False,
    on_bad_file: Annotated[
        OnBadFile | None, typer.Option(help="Stop at a file that cannot be read, or leave it out and record it.")
    ] = None,
    view: Annotated[
        View | None, typer.Option("--for", help="The trainer that reads the training rows; default: the recipe's.")
    ] = None,
) -> None:
    """Turn logs into training parquet: ids, weights, histories, dense features."""
    from sparsefeed.workflows.stages import add_day, explain_etl, prepare

    loaded, place = _load(recipe), Workspace(workspace)
    given = {"on_bad_file": on_bad_file, "view": view}
    changed = {name: value.value for name, value in given.items() if value is not None}
    loaded = loaded.model_copy(update={"etl": loaded.etl.model_copy(update=changed)})
    if explain and day:
        raise typer.BadParameter("tells of a whole run; leave --day out", param_hint="--explain")
    if explain:
        show_stages(explain_etl(loaded, place, logs))
        return
    with stage("etl") as progress:
        if day:
            summary = add_day(loaded, place, day.date(), logs, progress)
        else:
            summary = prepare(loaded, place, logs, progress)
    for warning in summary["warnings"]:
        console.print(f"[yellow]warning[/yellow] {warning}")
    ids = ", ".join(f"{number:,} {name}" for name, number in summary["num_ids"].items())
    console.print(
        f"{summary['num_train_rows']:,} rows to train on, {summary['num_eval_rows']:,} to evaluate; ids: {ids}"
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def plan(
    context: typer.Context,
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    gpus: Annotated[
        int | None, typer.Option(min=1, help="Default: processes of this machine, as the recipe has.")
    ] = None,
    per_host: Annotated[int, typer.Option(min=1, help="GPUs of a host.")] = 8,
    memory: Annotated[str | None, typer.Option(help="Of a device, as 80GiB.")] = None,
    network: Annotated[str | None, typer.Option(help="A device sends to other hosts in a second, as 50GB.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Default: the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan here as JSON, too.")] = None,
) -> None:
    """Plan how tables are sharded over devices, at hand or not: memory, traffic and time of a step.

    [bold]--TABLE ROWS[/bold] gives a table's rows, as --members 1e9 --posts 2e8; by default those of the workspace's
    ETL.
    """
    from sparsefeed.workflows.planning import plan_training, read_size

    given = {"memory_bytes": memory, "network_bandwidth": network}
    machine = {name: read_size(text) for name, text in given.items() if text is not None}
    loaded, rows = _load(recipe), dict(zip(context.args[::2], context.args[1::2], strict=False))
    if len(context.args) % 2:
        raise typer.BadParameter("needs a number of rows", param_hint=context.args[-1])
    found = plan_training(loaded, Workspace(workspace), rows, gpus, per_host, machine, batch_size)
    show_plan(found)
    if out:
        found.save(out)


@app.command()
def tune(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    width: Annotated[bool, typer.Option("--width", help="The widths of the hidden layers.")] = False,
    serving: Annotated[bool, typer.Option("--serving", help="Threads and processes of the server.")] = False,
    write: Annotated[Path | None, typer.Option(help="With --serving: a new file, the recipe with the best.")] = None,
) -> None:
    """Measure what a wider or narrower model costs to serve, before one is trained; or what serves a bundle best here.

    The recipe stays as it is.
    """
    from sparsefeed.workflows.tune import tune_width
    from sparsefeed.workflows.tune_serving import lines, tune_serving, write_choice

    if width == serving:
        raise typer.BadParameter("say what to tune; there is: --width, or --serving", param_hint="tune")
    if write and not serving:
        raise typer.BadParameter("--write is of --serving; leave it out", param_hint="tune")
    if serving:
        with stage("tune") as progress:
            tried = tune_serving(_load(recipe), Workspace(workspace), progress)
        console.print("\n".join(lines(tried)))
        if write:
            write_choice(recipe, tried[0].choice, write)
            console.print(f"{write}: the recipe with the first line's counts")
        return
    with stage("tune") as progress:
        tuning = tune_width(_load(recipe), Workspace(workspace), progress)
    show_width(tuning)


@app.command()
def train(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    weights: Annotated[Weights | None, typer.Option(help="Default: the recipe's.")] = None,
    day: Annotated[datetime | None, _day("Train this day of the ETL, from the day before.")] = None,
    autotune_io: Annotated[
        bool, typer.Option("--autotune-io", help="Try how many threads read and batches wait, on the first steps.")
    ] = False,
) -> None:
    """Train the ranker; an interrupted run goes on from its last checkpoint."""
    from sparsefeed.workflows.stages import train_day, train_model

    loaded, place = _load(recipe), Workspace(workspace)
    weighted: Any = weights.value if weights else None
    if autotune_io:
        loaded = loaded.model_copy(update={"train": loaded.train.model_copy(update={"autotune_io": True})})
    with stage("train") as progress:
        if day:
            result = train_day(loaded, place, day.date(), weighted, progress)
        else:
            result = train_model(loaded, place, weighted, progress)
    loss = ", ".join(f"{name} {value:.4f}" for name, value in result.loss.items())
    speed = f"{result.samples_per_s:,.0f} a second" if result.samples_per_s else "trained before"
    console.print(f"{result.num_samples:,} samples, {speed}; loss: {loss}")
    show_io(result.io)


@app.command("eval")
def evaluate(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    against: Annotated[
        list[Baseline] | None,
        typer.Option(
            help="A baseline; repeat for several. lightgbm_ids has encoded ids, mlp as many parameters as the model."
        ),
    ] = None,
    day: Annotated[datetime | None, _day("On this day of the ETL: the models of days before it.")] = None,
) -> None:
    """Measure the model on the held-out random sessions, beside the constant and LightGBM without ids."""
    from sparsefeed.workflows.stages import evaluate_day, evaluate_models

    names, loaded = [one.value for one in against or (Baseline.lightgbm,)], _load(recipe)
    if day and against:
        raise SparsefeedError("--against: baselines are of the held-out days; leave it out, or --day")
    with stage("eval") as progress:
        if day:
            result = evaluate_day(loaded, Workspace(workspace), day.date(), progress=progress)
            show_quality(result, random=loaded.feed.sessions is not None)
            return
        result = evaluate_models(loaded, Workspace(workspace), progress, names)
    show_quality(result, random=loaded.feed.sessions is not None)
    show_slices(result)


@app.command()
def export(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    hps_folder: Annotated[Path | None, typer.Option("--hps", help="Also write it for NVIDIA's HPS here.")] = None,
    taken: Annotated[
        tuple[View, Path] | None,
        typer.Option("--from", metavar="hugectr DIR", help="Take this run of HugeCTR as the trained model first."),
    ] = None,
    given: Annotated[
        tuple[View, Path] | None,
        typer.Option("--for", metavar="hugectr DIR", help="Write weights here that HugeCTR begins with, no bundle."),
    ] = None,
    plan: Annotated[Path | None, typer.Option(help="Of HugeCTR's run, for --for: how columns are cut.")] = None,
    over_budget: Annotated[
        bool, typer.Option("--over-budget", help="Publish although the dense step takes longer than the recipe allows.")
    ] = False,
) -> None:
    """Write the trained model as an immutable bundle and its Triton models."""
    from sparsefeed.workflows.hugectr import give_weights, take_run
    from sparsefeed.workflows.stages import export_serving

    loaded, place = _load(recipe), Workspace(workspace)
    for option, pair in (("--from", taken), ("--for", given)):
        if pair and pair[0] != View.hugectr:
            raise typer.BadParameter(f"got {pair[0].value}; allowed: hugectr DIR", param_hint=option)
    if given and (taken or hps_folder or over_budget):
        raise typer.BadParameter("writes no bundle; leave --from, --hps and --over-budget out", param_hint="--for")
    if plan and not given:
        raise typer.BadParameter("says how --for cuts columns; give that, too", param_hint="--plan")
    if taken:
        with stage("take") as progress:
            checkpoint = take_run(loaded, place, taken[1], progress)
        console.print(f"taken: {checkpoint}")
    if given:
        console.print(f"weights of {give_weights(loaded, place, given[1], plan)} in {given[1]}")
        return
    with stage("export") as progress:
        bundle, models = export_serving(loaded, place, progress, over_budget, console.print)
    console.print(f"bundle {bundle} in {place.bundles}; models in {place.triton_repo}: {', '.join(models)}")
    if hps_folder:
        from sparsefeed.workflows.hps import export_hps_serving

        with stage("hps") as progress:
            written = export_hps_serving(place.bundles, bundle, loaded.serving, hps_folder, progress=progress)
        console.print(f"for HPS in {hps_folder}: {written.num_tables} tables, {written.num_bytes:,} bytes, ps.json")


@app.command()
def rank(
    member: Annotated[str, typer.Option(help="Member id; empty for an anonymous one.")],
    posts: Annotated[list[str], typer.Option("--posts", "-p", help="A post id; repeat, or give several with commas.")],
    overrides: Annotated[str | None, typer.Option(help="JSON of docs/contracts/request.md, for new posts.")] = None,
    url: Url = "127.0.0.1:8001",
    bundle: Annotated[str | None, typer.Option(help="Which of several bundles to ask.")] = None,
) -> None:
    """Rank posts for a member on a running server."""
    from sparsefeed.workflows.serving.client import FeedClient

    candidates = [post.strip() for given in posts for post in given.split(",") if post.strip()]
    try:
        changes = json.loads(overrides) if overrides else None
    except ValueError as error:
        raise RequestError(f"--overrides: not JSON: {error}") from error
    with FeedClient(url, bundle) as client:
        ranking = client.rank(member, candidates, changes)
    show_ranking(ranking)


@app.command()
def bench(
    recipe: RecipeName = TINY,
    workspace: Root = ARTIFACTS,
    logs: LogsFolder = None,
    requests_out: Annotated[Path | None, typer.Option(help="Keep what was sent in this folder, as JSON.")] = None,
) -> None:
    """Measure the current bundle with perf_analyzer on real requests, step by step."""
    from sparsefeed.workflows.measure import measure_serving

    with stage("bench") as progress:
        result = measure_serving(_load(recipe), Workspace(workspace), logs, progress, requests_out)
    show_latency(result)


@app.command()
def report(workspace: Root = ARTIFACTS) -> None:
    """Write one self-contained page of what the workspace holds."""
    from sparsefeed.workflows.report import write_report

    with stage("report"):
        path = write_report(Workspace(workspace))
    console.print(f"report: {path}")


@app.command()
def demo(recipe: RecipeName = TINY, workspace: Root = ARTIFACTS, scale: ScaleName = None) -> None:
    """The whole way on this machine: logs, ids, training, bundle, Triton, a ranked feed, a report."""
    from sparsefeed.workflows.demo import run_demo

    summary = run_demo(_load(recipe, scale), Workspace(workspace), stage)
    for warning in summary.warnings:
        console.print(f"[yellow]warning[/yellow] {warning}")
    show_quality(summary.quality)
    show_latency(summary.latency)
    console.print(f"\nthe whole way took {summary.seconds:.0f} s; bundle {summary.bundle}, report {summary.report}")
    program = "sparsefeed" if shutil.which("sparsefeed") else os.path.relpath(sys.argv[0])
    options = "" if recipe == TINY else f" -r {recipe}"
    options += "" if workspace == ARTIFACTS else f" -w {workspace}"
    posts = ",".join(summary.posts[:3])
    console.print(f"serve it: {program} serve{options}", soft_wrap=True)
    console.print(f"and ask:  {program} rank --member {summary.member} --posts {posts}", soft_wrap=True)


def main() -> None:
    """Run the command line; an error of ours is one message and status 1, a Ctrl-C status 130."""
    try:
        app()
    except SparsefeedError as error:
        console.print(f"[red]{type(error).__name__}[/red]: ", end="")
        console.print(str(error), markup=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        if error.errno in _NO_PLACE:
            console.print("[red]cannot write[/red]: ", end="")
            console.print(f"{error.filename}: {error.strerror}; name another place", markup=False, soft_wrap=True)
            sys.exit(1)
        if error.errno != errno.ENOSPC:
            raise
        console.print(f"[red]disk full[/red]: {error}; nothing was published; make room and run the same command again")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on or begins again")
        sys.exit(130)
