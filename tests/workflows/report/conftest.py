"""A whole run in a few hand-written files: two responses, two surfaces, two positions, known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import publish_version, set_current
from sparsefeed.workflows.report import write_report
from sparsefeed.workflows.workspace import Workspace
from tests import bundles

SPEC = FeedSpec.parse(
    {
        "name": "wall",
        "tables": [{"name": "member", "dim": 4, "min_count": 3}, {"name": "post", "dim": 8}],
        "features": [
            {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
            {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
        ],
        "responses": [
            {"name": "click", "column": "click", "score_weight": 1.0},
            {"name": "like", "column": "like", "score_weight": 2.0},
        ],
        "sessions": {},
        "ips": {"position_edges": [1, 2]},
    }
)
# Predicted / actual of each model for the first response, observed; the expected one is 0.01 higher.
RATIOS = {"ips": 0.96, "none": 1.47, "lightgbm": 0.98, "constant": 1.0}
AUCS = {"ips": 0.66, "none": 0.65, "lightgbm": 0.61, "constant": 0.5}


def etl() -> dict[str, Any]:
    return {
        "format": 1,
        "train_days": ["2026-11-01", "2026-11-02"],
        "eval_days": ["2026-11-03"],
        "num_train_rows": 1600,
        "num_eval_rows": 700,
        "num_ids": {"member": 30, "post": 90},
        "num_rows": {"member": 40, "post": 100},
        "capacity_rows": {"member": 64, "post": 128},
        "warnings": ["post_id: 3 nulls"],
    }


def ips_cells() -> list[dict[str, Any]]:
    """100 random and 300 production impressions a cell; 10 % and 20 % clicks, half as many likes."""
    cells = []
    for response, random_y, production_y in (("click", 10, 60), ("like", 5, 30)):
        for surface in ("explore", "home"):
            for position in (1, 2):
                for y in (0, 1):
                    n = (random_y, production_y) if y else (100 - random_y, 300 - production_y)
                    cells.append(
                        {
                            "response": response, "surface": surface, "position": position, "y": y, "cell": 1,
                            "weight": (n[0] / 100) / (n[1] / 300), "reason": "",
                            "low": 0.25 if y else 1.0, "high": 1.0 if y else 1.25,
                            "num_random": 100, "num_random_y": n[0], "num_production": 300, "num_production_y": n[1],
                        }
                    )  # fmt: skip
    return cells


def curve(start: float) -> str:
    lines = [
        {"step": 10 * i, "samples": 100 * i, "loss": {"click": start / i, "like": 0.2 / i}, "samples_per_s": 9.0}
        for i in (1, 2, 4)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


def metrics(model: str, response: str, added: float = 0.0) -> dict[str, float]:
    scale = 1.0 if response == "click" else 1.1
    return {
        "auc": AUCS[model] + added,
        "log_loss": 0.35,
        "normalised_entropy": 0.95,
        "predicted_over_actual": RATIOS[model] * scale + added,
        "grouped_auc": AUCS[model] - 0.03 + added,
        "ndcg": 0.7 + added,
    }


def cut(num_rows: int, added: float) -> dict[str, Any]:
    """A slice; quality is what it is on all rows, and this much more."""
    responses = {
        r: {m: {**metrics(m, r, added), "expected": metrics(m, r, 0.01 + added)} for m in ("ips", "lightgbm")}
        for r in ("click", "like")
    }
    return {"num_rows": num_rows, "responses": responses}


def evaluation() -> dict[str, Any]:
    deciles = {"weight": [10.0, 10.0], "predicted": [0.1, 0.2], "actual": [0.12, 0.19]}
    return {
        "num_rows": 700,
        "models": list(RATIOS),
        "responses": {
            r: {m: {**metrics(m, r), "curve": deciles, "expected": metrics(m, r, 0.01)} for m in RATIOS}
            for r in ("click", "like")
        },
        "calibrated": {r: metrics("constant", r) for r in ("click", "like")},
        "compared": ["ips", "lightgbm"],
        "slices": {
            "member": {"not admitted": cut(100, -0.05), "6-50": cut(600, 0.0)},
            "position": {"1": cut(700, 0.0)},
            "new_post": {"old": cut(500, 0.0), "new": cut(200, -0.1)},
        },
    }


def bench() -> dict[str, Any]:
    def load(candidates: int, concurrency: int, p50_ms: float) -> dict[str, Any]:
        steps = [
            {"step": step, "queue_ms": 0.1, "input_ms": 0.02, "infer_ms": 0.5, "output_ms": 0.03}
            for step in ("transform", "hps", "dense")
        ]
        tail = {f"p{q}_ms": p50_ms * q / 50 for q in (90, 95, 99)}
        return {
            "candidates": candidates, "concurrency": concurrency, "requests_per_s": 300.0, "p50_ms": p50_ms, **tail,
            "steps": steps,
        }  # fmt: skip

    return {"bundle": "v1", "machine": "x86_64, 2 cores", "loads": [load(100, 1, 3.5), load(500, 4, 9.5)], "tables": []}


def ranking() -> dict[str, Any]:
    posts = [
        ("a", 1, 3, 0.1, ["post"]),
        ("<script>alert(1)</script>", 2, 1, 0.3, []),
        ("c", 3, 2, 0.2, []),
    ]
    return {
        "bundle": "v1",
        "member": "m&m",
        "posts": [
            {"post": p, "before": b, "after": a, "score": 3 * c, "probability": {"click": c, "like": c}, "unknown": u}
            for p, b, a, c, u in posts
        ],
    }


def fill(workspace: Workspace) -> None:
    """Write every file the report reads."""
    simulated = {
        "config": {"scale": "tiny", "seed": 7, "num_members": 50, "num_creators": 9, "num_posts_per_day": 20},
        "summary": {"impressions": 2300, "random_impressions": 500},
    }
    for path, value in (
        (workspace.logs / "simulation.json", simulated),
        (workspace.etl / "etl.json", etl()),
        (workspace.evaluation, evaluation()),
        (workspace.bench, bench()),
        (workspace.ranking, ranking()),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))
    (workspace.etl / "spec.json").write_text(SPEC.dump())
    pq.write_table(pa.Table.from_pylist(ips_cells()), workspace.etl / "ips.parquet")
    for weights, start in (("ips", 0.4), ("none", 0.5)):
        workspace.training(weights).mkdir(parents=True)
        (workspace.training(weights) / "curve.jsonl").write_text(curve(start))

    def build(folder: Path) -> None:
        bundles.fill(folder)
        (folder / "spec.json").write_text(SPEC.dump())

    publish_version(workspace.bundles, "v1", build)
    set_current(workspace.bundles, "v1")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A workspace that holds a whole run."""
    place = Workspace(tmp_path / "run")
    fill(place)
    return place


@pytest.fixture(scope="session")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of that run."""
    place = Workspace(tmp_path_factory.mktemp("report") / "run")
    fill(place)
    return write_report(place).read_text("utf-8")
