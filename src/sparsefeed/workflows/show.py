"""What commands print when they are done: a table each."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from sparsefeed.workflows.console import console

__all__ = [
    "show_findings",
    "show_io",
    "show_judgement",
    "show_latency",
    "show_loop_day",
    "show_plan",
    "show_quality",
    "show_ranking",
    "show_slices",
    "show_stages",
    "show_width",
]


_NAMES = {
    "ips": "sparsefeed",
    "none": "sparsefeed, no weights",
    "refreshed": "sparsefeed, of the day before",
    "base": "sparsefeed, no day added",
}


def show_findings(findings: Any) -> None:
    """A table of what the machine has (workflows.doctor)."""
    table = Table(box=None, header_style="bold")
    for heading in ("", "what", "found", "used for", "if not"):
        table.add_column(heading)
    for finding in findings:
        mark = "[green]✓[/green]" if finding.found else "[yellow]–[/yellow]"
        table.add_row(mark, finding.what, finding.found, finding.used_for, finding.why_not)
    console.print(table)


def show_stages(stages: Any) -> None:
    """A table of what an ETL run would do."""
    table = Table(box=None, header_style="bold")
    for heading in ("stage", "what it does", "tasks", "columns", "rows", "reads", "writes at most", ""):
        table.add_column(heading, justify="right" if heading in ("tasks", "rows", "reads", "columns") else "left")
    for one in stages:
        sizes = [f"{size / 1e6:,.1f} MB" for size in (one.read_bytes, one.written_bytes)]
        kept = "" if one.kept else "removed at the end"
        table.add_row(one.name, one.does, str(one.tasks), str(len(one.columns)), f"{one.rows:,}", *sizes, kept)
    console.print(table)


def show_judgement(judgement: Any) -> None:
    """A table of a canary's guardrails, and the verdict (workflows.release.judge)."""
    table = Table(box=None, header_style="bold")
    for heading in ("guardrail", "stable", "canary", "worse by", "at least", "at most", "allowed", ""):
        table.add_column(heading, justify="left" if heading in ("guardrail", "") else "right")
    for rail in judgement.rails:
        figures = (rail.stable, rail.canary, rail.harm, rail.at_least, rail.at_most, rail.allowed)
        table.add_row(rail.name, *(f"{figure:.4g}" for figure in figures), rail.state)
    console.print(table)
    counted = f"{judgement.canary_requests:,} requests of the canary, {judgement.stable_requests:,} of the stable"
    console.print(f"{judgement.verdict}: {judgement.why}; {counted}", soft_wrap=True)


def show_loop_day(one: Any) -> None:
    """A line of what a day of the loop gave and took (workflows.loop.LoopDay)."""
    steps = {
        "ETL": one.etl_s,
        "a new base": one.retrain_s,
        "training and delta": one.refresh_s,
        "folding": one.fold_s,
        "publishing": one.publish_s,
    }
    took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items() if seconds)
    quality = ", ".join(f"{name} {figures['auc']:.4f}" for name, figures in one.quality.items())
    sizes = f"delta {one.delta_bytes / 1e6:.1f} MB, removed {one.pruned_bytes / 1e6:.1f} MB"
    said = f"{took}; {sizes}; AUC of the day before's model: {quality}"
    console.print(f"{one.day}: bundle {one.bundle}; {said}", soft_wrap=True)


def show_io(tried: list[dict[str, Any]]) -> None:
    """A line for each setting of reading that was tried, and what to write into the recipe."""
    for one in tried:
        setting = f"read_threads {one['read_threads']}, batches_ahead {one['batches_ahead']}"
        console.print(f"{setting}: {1000 * one['step_s']:.1f} ms a step")
    for one in tried:
        if one["taken"]:
            words = f"read_threads: {one['read_threads']}, batches_ahead: {one['batches_ahead']}"
            console.print(f"the fewest threads that are as good as any; keep them in the recipe: train: {{{words}}}")


def show_plan(plan: Any) -> None:
    """A table of where each table goes, why, and what a device holds and a step costs."""
    table = Table(box=None, header_style="bold", title=f"{plan.topology.devices:,} devices, batch {plan.batch_size:,}")
    for heading in ("table", "rows", "dim", "sharding", "devices", "each holds", "sent a step"):
        table.add_column(heading, justify="left" if heading in ("table", "sharding") else "right", no_wrap=True)
    for one in plan.tables:
        holders = ", ".join(map(str, one.devices)) if len(one.devices) <= 2 else f"{len(one.devices)} of them"
        sharding, sizes = one.sharding.replace("_", "-"), (size(one.device_bytes), size(one.sent_bytes))
        table.add_row(one.name, f"{one.rows:,}", str(one.dim), sharding, holders or "all", *sizes)
    console.print(table)
    for one in plan.tables:
        console.print(f"{one.name} {one.sharding.replace('_', '-')}: {one.reason}", soft_wrap=True)
    hps, int8 = (sum(getattr(one, name) for one in plan.tables) for name in ("hps_bytes", "int8_bytes"))
    steps = {"lookups": plan.lookup_s, "sending": plan.send_s, "dense": plan.dense_s}
    console.print(f"the fullest device holds {size(plan.device_bytes)} of {size(plan.topology.memory_bytes)}")
    console.print(
        f"a step: {', '.join(f'{name} {1000 * seconds:,.3g} ms' for name, seconds in steps.items())}; "
        f"about {plan.samples_per_s:,.3g} samples a second, reading apart",
        soft_wrap=True,
    )
    console.print(f"served: {size(hps)} as HPS sparse folders, {size(int8)} as int8 rows")


def size(num_bytes: float) -> str:
    """Bytes with a unit that leaves few digits."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:,.3g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:,.4g} TiB"


def show_quality(result: dict[str, Any], random: bool = True) -> None:
    """Print a table of every response and model, measured on random sessions or, where the feed has none, on all."""
    rows = f"{result['num_rows']:,} impressions{' of random sessions' if random else ''}"
    table = Table(box=None, header_style="bold", title=rows)
    for heading in ("response", "model", "AUC", "AUC in\nmembers", "NDCG", "log loss", "predicted\n/actual"):
        table.add_column(heading, justify="left" if heading in ("response", "model") else "right")
    for response, models in result["responses"].items():
        for name, quality in models.items():
            shown = quality.get("expected", quality)
            order = [f"{shown[key]:.4f}" for key in ("auc", "grouped_auc", "ndcg", "log_loss")]
            table.add_row(response, _NAMES.get(name, name), *order, f"{shown['predicted_over_actual']:.3f}")
    console.print(table)


def show_slices(result: dict[str, Any]) -> None:
    """Print a table of the AUC by slice, of the first model and the best baseline; what is not defined is a dash."""
    names = "/".join(_NAMES.get(model, model) for model in result["compared"])
    title = f"AUC of {names} by training rows of an id, by place, and by whether it is new"
    table = Table(box=None, header_style="bold", title=title, collapse_padding=True, pad_edge=False)
    for heading in ("by", "slice", "rows", *result["responses"]):
        table.add_column(heading, justify="left" if heading in ("by", "slice") else "right")
    for by, slices in result["slices"].items():
        for name, part in slices.items():
            pairs = (
                (models[one].get("expected", models[one])["auc"] for one in result["compared"])
                for models in part["responses"].values()
            )
            cells = ["/".join("–" if math.isnan(auc) else f"{auc:.3f}" for auc in pair) for pair in pairs]
            table.add_row(by.replace("_", " "), name, f"{part['num_rows']:,}", *cells)
    console.print(table)


def show_latency(result: dict[str, Any]) -> None:
    """Print a table of the loads and where their time goes."""
    table = Table(box=None, header_style="bold", title=f"milliseconds a request, and in each step; {result['machine']}")
    steps = [step["step"] for step in result["loads"][0]["steps"]]
    for heading in ("posts", "in flight", "a second", "p50", "p95", "p99", *steps):
        table.add_column(heading, justify="right")
    for load in result["loads"]:
        parts = [f"{sum(v for k, v in step.items() if k != 'step'):.2f}" for step in load["steps"]]
        figures = [f"{load[key]:.2f}" for key in ("p50_ms", "p95_ms", "p99_ms")]
        table.add_row(
            str(load["candidates"]), str(load["concurrency"]), f"{load['requests_per_s']:.0f}", *figures, *parts
        )
    console.print(table)


def show_ranking(ranking: Any) -> None:
    """A table of posts, the best first."""
    table = Table(box=None, header_style="bold", title=f"bundle {ranking.bundle}")
    for heading in ("post", "score", *ranking.probability, "unknown"):
        table.add_column(heading, overflow="fold")
    for post in ranking.order:
        i = ranking.posts.index(post)
        values = [f"{p[i]:.4f}" for p in ranking.probability.values()]
        table.add_row(post, f"{ranking.score[i]:.4f}", *values, ", ".join(sorted(ranking.unknown[i])))
    console.print(table)


def show_width(tuning: Any) -> None:
    """A table of what each width costs, and the widest that the budget allows."""
    counts, budget_ms = list(tuning.rungs[0].costs), tuning.budget_ms
    title = f"milliseconds by posts; {tuning.machine}, {tuning.rungs[0].costs[counts[0]].runs} runs"
    table = Table(box=None, header_style="bold", title=title, collapse_padding=True, pad_edge=False)
    headings = [f"{count:,}\n{quantile}" for count in counts for quantile in ("p50", "p99")]
    for heading in ("hidden", "parameters", "products\na post", *headings):
        table.add_column(heading, justify="left" if heading == "hidden" else "right", no_wrap=heading != "hidden")
    if budget_ms is not None:
        table.add_column(f"within\n{budget_ms:g} ms")
    for rung in tuning.rungs:
        own = " (recipe)" if rung.hidden == tuning.hidden else ""
        times = [f"{ms:.2f}" for cost in rung.costs.values() for ms in (cost.p50_ms, cost.p99_ms)]
        within = [] if budget_ms is None else ["[green]yes[/green]" if tuning.fits(rung) else "[yellow]no[/yellow]"]
        hidden = ", ".join(map(str, rung.hidden))
        table.add_row(f"{hidden}{own}", f"{rung.parameters:,}", f"{rung.products:,}", *times, *within)
    console.print(table)
    console.print(_verdict(tuning), markup=False, soft_wrap=True)


def _verdict(tuning: Any) -> str:
    if tuning.budget_ms is None:
        return "no budget: give the recipe serving.dense_budget_ms, and the widest that fits is named"
    budget = f"{tuning.budget_ms:g} ms for {tuning.budget_candidates:,} candidates at the median"
    if tuning.widest is None:
        return (
            f"none is within {budget}: raise serving.dense_budget_ms, or lower serving.budget_candidates, "
            "model.experts, model.cross_layers or model.cross_rank"
        )
    if tuning.widest.hidden == tuning.hidden:
        return f"the widest within {budget} is the recipe's own"
    words = ", ".join(map(str, tuning.widest.hidden))
    return f"the widest within {budget}: write it into the recipe and train: model: {{hidden: [{words}]}}"
