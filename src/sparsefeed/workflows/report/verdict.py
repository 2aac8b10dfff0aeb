"""Verdict: the head of the page, in plain words and figures; what was not made is not spoken of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sparsefeed.workflows.report.plots import MODEL_NAMES
from sparsefeed.workflows.report.run import Bench, Etl, Evaluation, Run, StoredTable
from sparsefeed.workflows.report.section import number

__all__ = ["Figure", "figures", "summary"]


@dataclass(frozen=True)
class Figure:
    """One figure of the head and what it says."""

    value: str
    meaning: str


def summary(run: Run) -> str:
    """One paragraph: what was made of what, and how good it is."""
    sentences = ["This page shows one run of sparsefeed, from impression logs to a served feed ranker."]
    if run.etl:
        sentences.append(_data(run.etl))
    if run.evaluation:
        sentences += _quality(run.evaluation, run.judged_on)
    if run.bench:
        sentences.append(_latency(run.bench))
    if run.served:
        sentences.append(_memory(run.served.tables))
    return " ".join(sentences)


def figures(run: Run) -> tuple[Figure, ...]:
    """The few figures a reader takes away, at most four."""
    out = []
    if run.evaluation:
        response, models = next(iter(run.evaluation.best_known.items()))
        for model in ("ips", "none"):
            if model in models:
                value = number(models[model].predicted_over_actual, 2)
                out.append(Figure(value, f"predicted / actual of {response}, {MODEL_NAMES[model]}"))
        best = "ips" if "ips" in models else "none"
        if best in models and "lightgbm" in models:
            rival = number(models["lightgbm"].auc)
            out.append(Figure(number(models[best].auc), f"AUC of {response}; LightGBM without ids {rival}"))
    if run.bench:
        load = run.bench.loads[0]
        out.append(Figure(f"{load.p50_ms:.1f} ms", f"median for {load.candidates} posts, {load.concurrency} in flight"))
    return tuple(out)


def _data(etl: Etl) -> str:
    ids = ", ".join(f"{count:,} {table}" for table, count in etl.num_ids.items())
    days = f"{len(etl.train_days)} day{'s' if len(etl.train_days) > 1 else ''}"
    return (
        f"The model learned from {etl.num_train_rows:,} impressions of {days}; {ids} ids were seen often enough for an "
        "embedding of their own."
    )


def _quality(evaluation: Evaluation, judged_on: str) -> list[str]:
    response, models = next(iter(evaluation.best_known.items()))
    told = [
        f"{number(models[model].predicted_over_actual, 2)} {words} ({_range(evaluation, model)})"
        for model, words in (("ips", "with IPS weights"), ("none", "without"))
        if model in models
    ]
    sentences = []
    if told:
        sentences.append(
            f"On {evaluation.num_rows:,} {judged_on}, predicted/actual of {response} is "
            f"{' and '.join(told)}; 1 is unbiased."
        )
    ours = "ips" if "ips" in models else "none"
    rows = [
        (name, m[ours].auc, m["lightgbm"].auc)
        for name, m in evaluation.best_known.items()
        if ours in m and "lightgbm" in m
    ]
    rows = [row for row in rows if math.isfinite(row[1]) and math.isfinite(row[2])]
    if rows:
        ahead = [name for name, own, rival in rows if own > rival]
        name, own, rival = rows[0]
        verdict = "every response" if len(ahead) == len(rows) else f"{len(ahead)} of {len(rows)} responses"
        sentences.append(
            f"The model orders posts better than LightGBM without ids on {verdict} "
            f"(AUC of {name}: {number(own)} against {number(rival)})."
        )
    return sentences


def _range(evaluation: Evaluation, model: str) -> str:
    measured = (models[model].predicted_over_actual for models in evaluation.best_known.values() if model in models)
    ratios = [ratio for ratio in measured if math.isfinite(ratio)] or [math.nan]
    return f"all responses: {number(min(ratios), 2)} to {number(max(ratios), 2)}"


def _latency(bench: Bench) -> str:
    load = bench.loads[0]
    requests = "one request" if load.concurrency == 1 else f"{load.concurrency} requests"
    return (
        f"Behind Triton on {bench.machine}, ranking {load.candidates} posts takes {load.p50_ms:.1f} ms at the median "
        f"and {load.p99_ms:.1f} ms at p99 with {requests} in flight."
    )


def _memory(tables: tuple[StoredTable, ...]) -> str:
    whole, small = (sum(getattr(table, f"bytes_{kind}") for table in tables) for kind in ("fp32", "int8"))
    return f"The embedding tables are {whole / 1e6:.1f} MB as fp32 rows and {small / 1e6:.1f} MB as int8 rows."
