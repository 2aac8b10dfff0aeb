"""Sections: the page's parts, in the order of the data's way; each says what it shows, or which command makes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sparsefeed.workflows.report import plots, weights
from sparsefeed.workflows.report.days import days_section
from sparsefeed.workflows.report.run import Etl, IpsCell, Metrics, Run, Served
from sparsefeed.workflows.report.section import Part, Section, Table, missing, number
from sparsefeed.workflows.report.slices import slices_section, within_members

__all__ = ["SessionCounts", "all_sections", "session_counts"]


@dataclass(frozen=True)
class SessionCounts:
    """Impressions of the training days and how many had the response, by kind of session."""

    num_random: int
    num_random_y: int
    num_production: int
    num_production_y: int

    @property
    def rates(self) -> tuple[float, float]:
        """(random, production); 0 without impressions."""
        return self.num_random_y / max(self.num_random, 1), self.num_production_y / max(self.num_production, 1)


def session_counts(cells: Iterable[IpsCell]) -> dict[str, SessionCounts]:
    """Sum the y = 1 cells of each response over surfaces and positions."""
    sums: dict[str, list[int]] = {}
    for cell in cells:
        if cell.y == 1:
            counts = (cell.num_random, cell.num_random_y, cell.num_production, cell.num_production_y)
            sums[cell.response] = [a + b for a, b in zip(sums.get(cell.response, (0, 0, 0, 0)), counts, strict=True)]
    return {response: SessionCounts(*counts) for response, counts in sums.items()}


def all_sections(run: Run) -> tuple[Section, ...]:
    """Every section, filled as far as the run has come."""
    return (
        _data(run),
        _weights(run),
        _training(run),
        _quality(run),
        _calibration(run),
        slices_section(run),
        _latency(run),
        _memory(run),
        _feed(run),
        *((days_section(run),) if run.loop else ()),
    )


def _data(run: Run) -> Section:
    anchor, title = "data", "Data and ids"
    etl, spec = run.etl, run.spec
    if etl is None or spec is None:
        return missing(anchor, title, "etl", "etl/etl.json")
    text = []
    if run.simulation:
        world = run.simulation.config
        text.append(
            f"The logs are simulated (scale {world.scale}, seed {world.seed}): {world.num_members:,} members, "
            f"{world.num_creators:,} creators, {world.num_posts_per_day:,} posts a day. The true probability of every "
            "response is known."
        )
    text.append(
        "An id that was counted often enough has a row of its own, no two alike; the others share hashed rows. "
        "A table keeps free rows, so that new ids fit without moving the old."
    )
    text += [f"Warning of the ETL: {warning}" for warning in etl.warnings]
    drawn = [plots.id_rows(etl)]
    tables = [
        Table(
            "Id tables",
            ("table", "dim", "min. count", "admitted ids", "rows used", "capacity"),
            tuple(
                (
                    table.name,
                    str(table.dim),
                    str(table.min_count),
                    f"{etl.num_ids[table.name]:,}",
                    f"{etl.num_rows[table.name]:,}",
                    f"{etl.capacity_rows[table.name]:,}",
                )
                for table in spec.tables
            ),
        )
    ]
    if run.ips:
        counts = session_counts(run.ips)
        drawn.insert(0, plots.response_rates({response: count.rates for response, count in counts.items()}))
        tables.insert(0, _sessions(etl, counts))
    else:
        tables.insert(0, _days(etl))
    return Section(anchor, title, tuple(text), (Part(tuple(drawn)), Part(tuple(tables))))


def _days(etl: Etl) -> Table:
    rows = (
        ("to train on", _span(etl.train_days), f"{etl.num_train_rows:,}"),
        ("to evaluate", _span(etl.eval_days), f"{etl.num_eval_rows:,}"),
    )
    return Table("Impressions", ("", "days", "impressions"), rows)


def _sessions(etl: Etl, counts: dict[str, SessionCounts]) -> Table:
    any_count = next(iter(counts.values()))
    rows = [("impressions", f"{any_count.num_random:,}", f"{any_count.num_production:,}", "")]
    for response, count in counts.items():
        random, production = count.rates
        ratio = number(production / random, 2) if random else "–"
        rows.append((response, f"{random:.2%}", f"{production:.2%}", ratio))
    return Table(
        f"Training days {_span(etl.train_days)}, by kind of session", ("", "random", "production", "ratio"), tuple(rows)
    )


def _weights(run: Run) -> Section:
    anchor, title = "weights", "Inverse propensity weights"
    if run.spec is not None and run.spec.ips == "none":
        return Section(anchor, title, ("The declaration has `ips: none`: every impression weighs 1.",))
    if not run.ips:
        return missing(anchor, title, "etl", "etl/ips.parquet")
    responses = list(dict.fromkeys(cell.response for cell in run.ips))
    uncovered = sum(cell.reason != "" for cell in run.ips)
    shown = weights.busiest_surfaces(run.ips)
    num_surfaces = len({cell.surface for cell in run.ips})
    text = [
        "Production sessions show what the policy expects to please, first of all at the top; random sessions do not. "
        "A production impression is weighted by the rate of its response (y = 1) or of its absence (y = 0) in "
        "random sessions at that position, divided by the rate in production sessions. Training then sees the rates "
        "of random traffic.",
        f"{uncovered} of {len(run.ips)} cells could not be weighted and weigh 1; plots and table say which and why."
        if uncovered
        else f"All {len(run.ips)} cells (response, surface, position, y) are covered by random sessions.",
    ]
    if any(cell.low is not None for cell in run.ips):
        text.append(
            "Bars hold the ratio of the two rates with a confidence of 95 %, before it was clipped and normalised: a "
            "long one is a position with few responses."
        )
    if num_surfaces > len(shown):
        text.append(f"Drawn are the {len(shown)} surfaces with the most impressions, of {num_surfaces}.")
    cells = {response: [cell for cell in run.ips if cell.response == response] for response in responses}
    return Section(
        anchor,
        title,
        tuple(text),
        (
            Part(tuple(weights.ips_weights(response, cells[response], i) for i, response in enumerate(responses))),
            Part(
                tuple(_cells(response, cells[response]) for response in responses), "Weights and counts of every cell"
            ),
        ),
    )


def _cells(response: str, cells: Sequence[IpsCell]) -> Table:
    rows = tuple(
        (
            cell.surface,
            str(cell.position),
            str(cell.y),
            f"{cell.weight:.3f}" + (f" ({cell.reason})" if cell.reason else ""),
            "–" if cell.low is None or cell.high is None else f"{cell.low:.3f} to {cell.high:.3f}",
            f"{cell.num_random_y:,} of {cell.num_random:,}",
            f"{cell.num_production_y:,} of {cell.num_production:,}",
        )
        for cell in cells
    )
    return Table(response, ("surface", "position", "y", "weight", "95 % bounds", "random", "production"), rows)


def _training(run: Run) -> Section:
    anchor, title = "training", "Learning curves"
    if not run.curves:
        return missing(anchor, title, "train", "training/ips/curve.jsonl")
    text = [
        "Mean training loss (log loss) between two lines of the log, as a share of the first. The losses "
        "themselves are not comparable: with weights it is that of traffic as random sessions have it, without "
        "that of production."
    ]
    if "none" not in run.curves:
        text.append("The run without weights is missing: `sparsefeed train --weights none` makes it.")
    points = [point for curve in run.curves.values() for point in curve]
    responses = [r for r in points[0].loss if all(r in point.loss for point in points)]
    drawn = tuple(plots.learning_curve(response, run.curves, i) for i, response in enumerate(responses))
    return Section(anchor, title, tuple(text), (Part(drawn),))


def _quality(run: Run) -> Section:
    anchor, title = "quality", "Quality"
    evaluation = run.evaluation
    if evaluation is None:
        return missing(anchor, title, "eval", "evaluation.json")
    text = [
        f"Measured on {evaluation.num_rows:,} {run.judged_on}. Predicted / actual is the sum of the predictions "
        "over the sum of the responses: 1 is unbiased. Normalised entropy is the log loss over that of the best "
        "constant: below 1 is better than the mean. LightGBM has the dense features alone.",
    ]
    if evaluation.expected:
        text.append(
            "The yardstick is the true probabilities the simulator drew the responses from, so without the noise of "
            "drawing."
        )
    if evaluation.calibrated:
        text.append(
            "“Calibrated” is the first model after the recipe’s calibration: each half of these impressions by one "
            "that was fitted on the other half."
        )
    parts = [
        Part(plots.models_compared(evaluation.best_known)),
        Part(_quality_tables(evaluation.best_known, evaluation.calibrated)),
    ]
    if within := within_members(evaluation.best_known):
        text.append(
            "Within members, a model orders the impressions of one member alone, those of all held-out sessions "
            "together: the mean AUC weighted by impressions, NDCG with the response as gain. Members whose id has no "
            "row of its own are left out."
        )
        parts.append(Part(within))
    if evaluation.expected:
        parts.append(Part(_quality_tables(evaluation.observed, {}), "The same against the drawn responses"))
    return Section(anchor, title, tuple(text), tuple(parts))


def _quality_tables(measured: dict[str, dict[str, Metrics]], calibrated: dict[str, Metrics]) -> tuple[Table, ...]:
    tables = []
    for response, models in measured.items():
        named = [(plots.MODEL_NAMES.get(model, model), metrics) for model, metrics in models.items()]
        if response in calibrated:
            named.append(("calibrated", calibrated[response]))
        rows = tuple(
            (
                name,
                number(metrics.predicted_over_actual),
                number(metrics.auc, 4),
                number(metrics.log_loss, 5),
                number(metrics.normalised_entropy, 4),
            )
            for name, metrics in named
        )
        tables.append(Table(response, ("model", "pred. / actual", "AUC", "log loss", "norm. entropy"), rows))
    return tuple(tables)


def _calibration(run: Run) -> Section:
    anchor, title = "calibration", "Calibration"
    if run.evaluation is None:
        return missing(anchor, title, "eval", "evaluation.json")
    text = (
        "The same impressions in ten groups of rising prediction: the mean response that came against the mean that "
        "was predicted, before calibration. Points under the dotted diagonal were promised more than came."
    )
    drawn = (plots.calibration(r, models, i) for i, (r, models) in enumerate(run.evaluation.responses.items()))
    return Section(anchor, title, (text,), (Part(tuple(drawn)),))


def _latency(run: Run) -> Section:
    anchor, title = "latency", "Latency of the server"
    bench = run.bench
    if bench is None:
        return missing(anchor, title, "bench", "bench.json")
    text = [
        f"Bundle {bench.bundle} behind Triton on {bench.machine}, sent real requests over gRPC by perf_analyzer on the "
        "same machine. Clients see the steps and, besides, the way through the ensemble and the network."
    ]
    text += _other_bundle(run.served, bench.bundle)
    steps = tuple(step.step for step in bench.loads[0].steps)
    rows = tuple(
        (
            str(load.candidates),
            str(load.concurrency),
            number(load.requests_per_s, 0),
            *(number(ms, 2) for ms in (load.p50_ms, load.p90_ms, load.p95_ms, load.p99_ms)),
            *(f"{number(step.queue_ms, 2)} + {number(step.compute_ms, 2)}" for step in load.steps),
        )
        for load in bench.loads
    )
    heads = (
        "posts",
        "in flight",
        "requests / s",
        "p50 ms",
        "p90 ms",
        "p95 ms",
        "p99 ms",
        *(f"{s}, wait + work" for s in steps),
    )
    return Section(
        anchor,
        title,
        tuple(text),
        (
            Part((plots.latency_by_load(bench.loads), plots.latency_by_step(bench.loads))),
            Part((Table("Every load", heads, rows),)),
        ),
    )


def _memory(run: Run) -> Section:
    anchor, title = "memory", "Memory of the tables"
    if run.served is None:
        return missing(anchor, title, "export", "a bundle")
    tables = run.served.tables
    rows = tuple(
        (
            table.name,
            f"{table.rows:,}",
            str(table.dim),
            table.row_format,
            number(table.bytes_fp32 / 1e6, 2),
            number(table.bytes_int8 / 1e6, 2),
            number(table.bytes_int8 / table.bytes_fp32, 2),
        )
        for table in tables
    )
    text = (
        f"Bundle {run.served.manifest.id} stores its rows as {run.served.manifest.row_format}. An int8 row holds one "
        "byte a value, and 8 bytes of scale and bias."
    )
    heads = ("table", "rows", "dim", "stored as", "fp32 MB", "int8 MB", "int8 / fp32")
    parts = Part((plots.table_memory(tables), Table("Sizes", heads, rows, ("stored as",))))
    return Section(anchor, title, (text,), (parts,))


def _feed(run: Run) -> Section:
    anchor, title = "feed", "One feed before and after"
    ranking = run.ranking
    if ranking is None:
        return missing(anchor, title, "bench", "ranking.json")
    text = [
        f"One session of member {ranking.member} on the last day: its posts in the order they were shown, and as "
        f"bundle {ranking.bundle} ranks them."
    ]
    text += _other_bundle(run.served, ranking.bundle)
    posts = sorted(ranking.posts, key=lambda post: post.after)
    responses = tuple(posts[0].probability)
    drawn = [plots.feed_order(posts)]
    # The weights of another bundle's spec would tell a false story.
    if run.served is not None and run.served.manifest.id == ranking.bundle:
        weights = {r.name: r.score_weight for r in run.served.spec.responses if r.score_weight}
        if weights and set(weights) <= set(responses):
            told = ", ".join(f"{name} × {weight:g}" for name, weight in weights.items())
            text.append(f"The score is the sum of the probabilities by weight: {told}.")
            drawn.append(plots.score_parts(posts, weights))
    rows = tuple(
        (
            str(post.after),
            str(post.before),
            post.post,
            number(post.score),
            *(f"{post.probability[response]:.2%}" for response in responses),
            ", ".join(post.unknown),
        )
        for post in posts
    )
    heads = ("ranked", "shown", "post", "score", *responses, "unknown")
    return Section(
        anchor,
        title,
        tuple(text),
        (Part(tuple(drawn)), Part((Table("The feed as ranked", heads, rows, ("post", "unknown")),))),
    )


def _other_bundle(served: Served | None, bundle: str) -> list[str]:
    if served is None or served.manifest.id == bundle:
        return []
    return [f"The current bundle is {served.manifest.id}; run `sparsefeed bench` to measure it."]


def _span(days: Sequence[str]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
