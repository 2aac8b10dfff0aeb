"""What each part of the ranker is worth: the recipe with one part changed, over the feeds of the suite `quality`.

    python benchmarks/ablations.py [--seeds 2] [--only NAME ...]

Every variant is a whole run, ETL and training, over the same logs. Printed and appended to benchmarks/results.csv is
the expected metric on the held-out day's random sessions, the mean over the feeds, beside that of the recipe as it is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from quality_suite import MEMBERS, SEEDS
from results import Recorder, append

from sparsefeed.models import metrics
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.evaluate import read_rows
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.console import console, quiet_libraries, stage
from sparsefeed.workflows.recipe import Recipe, load_recipe
from sparsefeed.workflows.stages import prepare, simulate_logs, train_model
from sparsefeed.workflows.workspace import Workspace

Change = Callable[[dict[str, Any]], Any]  # of the recipe as plain data

WHOLE = "the recipe"
ONE_CELL = {"position_edges": [1]}


def _model(**settings: Any) -> Change:
    return lambda recipe: recipe["model"].update(settings)


def _train(**settings: Any) -> Change:
    return lambda recipe: recipe["train"].update(settings)


def _without(*features: str) -> Change:
    def change(recipe: dict[str, Any]) -> None:
        recipe["feed"]["features"] = [f for f in recipe["feed"]["features"] if f["name"] not in features]
        read = {f.get("table") for f in recipe["feed"]["features"]}
        recipe["feed"]["tables"] = [table for table in recipe["feed"]["tables"] if table["name"] in read]

    return change


def _prior_shift(recipe: dict[str, Any]) -> None:
    """One cell per response: every positive weighs alike, and every negative."""
    recipe["feed"]["ips"] = ONE_CELL
    recipe["feed"]["logs"]["surface"] = None


def _engaged(recipe: dict[str, Any]) -> None:
    recipe["feed"]["logs"]["session"] = "session_id"
    recipe["feed"]["sampling"] = {"sessions": "engaged"}


def _tails(rows: int) -> Change:
    return lambda recipe: [table.update(tail_rows=rows) for table in recipe["feed"]["tables"]]


def _max_length(rows: int) -> Change:
    return lambda recipe: [f.update(max_length=rows) for f in recipe["feed"]["features"] if f["kind"] == "history"]


HISTORIES = ("clicked_creators", "clicked_posts", "liked_creators")
VARIANTS: dict[str, Change] = {
    WHOLE: lambda recipe: None,
    "no dot products": _model(interactions=False),
    "no cross network": _model(cross_layers=0),
    "cross without residual": _model(cross_residual=False),
    "no gate": _model(gate=False),
    "four experts": _model(experts=4),
    "dropout 0.2": _model(dropout=0.2),
    "hidden 256, 128": _model(hidden=[256, 128]),
    "hidden 32": _model(hidden=[32]),
    "Adagrad from 0": _train(table_initial_gradient=0.0),
    "batch 8192": _train(batch_size=8192),
    "two epochs": _train(epochs=2),
    "no histories": _without(*HISTORIES),
    "short histories (5)": _max_length(5),
    "long histories (100)": _max_length(100),
    "no hashtags": _without("hashtags"),
    "one tail row": _tails(1),
    "no weights": _train(weights="none"),
    "weights of the prior shift alone": _prior_shift,
    "engaged sessions alone": _engaged,
}


def measure(recipe: Recipe, logs: Path, workspace: Workspace) -> dict[str, dict[str, float]]:
    """Expected AUC, log loss and predicted/actual by response."""
    prepare(recipe, workspace, logs)
    scorer = Scorer(recipe.feed, train_model(recipe, workspace).checkpoint)
    rows = read_rows(recipe.feed, workspace.etl / "eval", logs / "truth", random_only=True)
    assert rows.truth is not None
    logits = scorer.score(workspace.etl / "eval", random_only=True)
    p = Calibration.identity(recipe.feed).probability(logits).astype(np.float64)
    measures = (metrics.auc, metrics.log_loss, metrics.predicted_over_actual)
    return {
        response.name: {one.__name__: one(rows.truth[:, r], p[:, r]) for one in measures}
        for r, response in enumerate(recipe.feed.responses)
    }


def main() -> int:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    options = parser.parse_args()
    quiet_libraries()
    root = Path("artifacts") / "bench"
    record = Recorder("ablations", " ".join(["python benchmarks/ablations.py", *sys.argv[1:]]))
    plain = load_recipe("tiny").model_dump(mode="json")
    found: dict[str, list[dict[str, dict[str, float]]]] = {}
    for name in dict.fromkeys((WHOLE, *options.only)):
        for seed in SEEDS[: options.seeds]:
            changed = {key: dict(value) if isinstance(value, dict) else value for key, value in plain.items()}
            changed["feed"] = load_recipe("tiny").model_dump(mode="json")["feed"]
            changed["simulate"] |= {"seed": seed, "num_members": MEMBERS}
            VARIANTS[name](changed)
            recipe = Recipe.model_validate(changed)
            logs = Workspace(root / "quality" / str(seed))
            simulate_logs(recipe, logs)
            with stage(f"{name}, feed {seed}"):
                place = Workspace(root / "ablations" / name.replace(" ", "-") / str(seed))
                found.setdefault(name, []).append(measure(recipe, logs.logs, place))
        rows = []
        for response in found[name][0]:
            for metric in found[name][0][response]:
                ours, whole = (np.mean([run[response][metric] for run in found[who]]) for who in (name, WHOLE))
                case = f"{name}, {response}"
                rows.append(record.row(case, metric, float(ours), "", "" if name == WHOLE else WHOLE, float(whole)))
        append(rows)
        shown = "  ".join(
            f"{row.case.split(', ')[-1]} {row.value:.4f} ({row.value - (row.peer_value or 0):+.4f})"
            for row in rows
            if row.metric == "auc"
        )
        console.print(f"{name:34} AUC  {shown}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
