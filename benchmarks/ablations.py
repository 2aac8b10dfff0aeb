"""What each part of the ranker is worth: the recipe with one part changed, over the feeds of the suite `quality`.

    python benchmarks/ablations.py [--seeds 1] [--members 2000] [--only NAME ...]

Every variant is a whole run, ETL and training, over the same logs; `int8 rows` and `fp16 rows` score the recipe's own
model. Printed and appended to benchmarks/results.csv is the expected metric on the held-out day's random sessions, the
mean over the feeds, beside that of the recipe as it is; docs/img/ablations.svg draws the newest of each.
`refreshed daily` follows one feed for 14 days beside the model that stays as it is, and others that differ in what the
rows of new ids begin with; docs/img/refresh.svg draws it.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "src"))

from quality_suite import MEMBERS, SEEDS
from refresh import Judged, refreshed
from results import Recorder, Row, append, latest, read

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models import metrics
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.evaluate import read_rows
from sparsefeed.models.store.rows import dequantise, quantise
from sparsefeed.models.torchrec.checkpoint import latest as latest_checkpoint
from sparsefeed.models.torchrec.checkpoint import load_tables
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.console import console, quiet_libraries, stage
from sparsefeed.workflows.recipe import Recipe, load_recipe
from sparsefeed.workflows.report.chart import BLUE, GREY, HUES, VERMILION
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


def _paired_tails(recipe: dict[str, Any]) -> None:
    for table in recipe["feed"]["tables"]:
        table["tail"] = "quotient_remainder"


def _histories(length: int, pooling: str = "mean") -> Change:
    """What the member clicked and liked, so many of each, as features before the candidate's."""

    def change(recipe: dict[str, Any]) -> None:
        features = recipe["feed"]["features"]
        place = next(i for i, feature in enumerate(features) if feature.get("side") == "candidate")
        features[place:place] = [
            {"kind": "history", "name": name, "of": of, "response": response, "max_length": length, "pooling": pooling}
            for name, of, response in HISTORIES
        ]

    return change


HISTORIES = (
    ("clicked_creators", "creator_id", "click"),
    ("clicked_posts", "post_id", "click"),
    ("liked_creators", "creator_id", "like"),
)
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
    "dense rate 0.002": _train(dense_learning_rate=0.002),
    "dense rate never falls": _train(dense_decay=0.0),
    "rows begin twice as large": _model(table_init=0.1),
    "rows shuffled": _train(order="shuffled"),
    "batch 8192": _train(batch_size=8192),
    "one epoch": _train(epochs=1),
    "tables kept for the second epoch": _train(reset_tables=False),
    "short histories (5)": _histories(5),
    "histories (20)": _histories(20),
    "long histories (100)": _histories(100),
    "histories (20), learned pooling": _histories(20, "learned"),
    "no hashtags": _without("hashtags"),
    "one tail row": _tails(1),
    "tails by quotient and remainder": _paired_tails,
    "no weights": _train(weights="none"),
    "weights of the prior shift alone": _prior_shift,
    "weights shuffled": lambda recipe: None,  # what the parquet holds is changed: _shuffled
    "engaged sessions alone": _engaged,
}


ROWS = {"fp16 rows": "fp16", "int8 rows": "int8"}  # of the recipe's own model
REFRESH, REFRESH_DAYS = "refreshed daily", 14
STARTS: dict[str, dict[str, Any]] = {
    "new ids from their tail row": {},
    "new ids at random": {name: {"start": "random"} for name in ("member", "creator", "post", "hashtag")},
    "new posts from creator and hashtags": {"post": {"start": "features", "features": ["creator_id", "hashtags"]}},
    "new posts and members from similar ones": {
        "post": {"start": "similar", "features": ["creator_id"]},
        "member": {"start": "similar", "features": ["creator_id"]},
    },
}
# The font that a page has may be wider than the one that was measured.
_PADDING = {"left": 50, "right": 30, "top": 8, "bottom": 8}
IMAGES = Path(__file__).parent.parent / "docs" / "img"
Measured = dict[str, dict[str, float]]  # response -> metric -> value


def measure(name: str, recipe: Recipe, logs: Path, workspace: Workspace, etl: Path) -> Measured:
    """Expected AUC, log loss and predicted/actual by response; `etl` is of the recipe as it is, over the same logs."""
    if name not in ROWS:
        same = etl.exists() and FeedSpec.load(etl / "spec.json").digest == recipe.feed.digest
        if same and name not in (WHOLE, "weights shuffled"):
            workspace.root.mkdir(parents=True, exist_ok=True)
            if not workspace.etl.exists():
                workspace.etl.symlink_to(etl.resolve())
        else:
            prepare(recipe, workspace, logs)
        if name == "weights shuffled":
            _shuffle(recipe, workspace.etl / "train")
        train_model(recipe, workspace)
    checkpoint = latest_checkpoint(workspace.training(recipe.train.weights))
    assert checkpoint is not None
    scorer = Scorer(recipe.feed, checkpoint)
    if name in ROWS:
        for table, values in load_tables(checkpoint).items():
            scorer.replace_table(table, dequantise(quantise(values, ROWS[name]), ROWS[name]))
    rows = read_rows(recipe.feed, workspace.etl / "eval", logs / "truth", random_only=True)
    assert rows.truth is not None
    logits = scorer.score(workspace.etl / "eval", random_only=True)
    p = Calibration.identity(recipe.feed).probability(logits).astype(np.float64)
    measures = (metrics.auc, metrics.log_loss, metrics.predicted_over_actual)
    return {
        response.name: {one.__name__: one(rows.truth[:, r], p[:, r]) for one in measures}
        for r, response in enumerate(recipe.feed.responses)
    }


def _shuffle(recipe: Recipe, folder: Path) -> None:
    """Give every row the weights of another one of its file with the same labels: their size without their reason."""
    random = np.random.default_rng(0)
    for path in sorted(folder.glob("*.parquet")):
        table = pq.read_table(path)
        for response in recipe.feed.responses:
            label = table[f"y_{response.name}"].to_numpy()
            weights = table[f"w_{response.name}"].to_numpy().copy()
            for value in np.unique(label):
                at = np.flatnonzero(label == value)
                weights[at] = weights[random.permutation(at)]
            place = table.schema.get_field_index(f"w_{response.name}")
            table = table.set_column(place, table.schema.field(place), [weights])
        pq.write_table(table, path, row_group_size=pq.ParquetFile(path).metadata.row_group(0).num_rows)


def _changed(seed: int, members: int, change: Change) -> Recipe:
    values = load_recipe("tiny").model_dump(mode="json")
    values["simulate"] |= {"seed": seed, "num_members": members}
    values["etl"] = {"cluster": {"workers": 0, "gpu": False}}
    change(values)
    return Recipe.model_validate(values)


def ablate(names: list[str], seeds: tuple[int, ...], members: int, root: Path, record: Recorder) -> None:
    """Measure, record and print the variants, the recipe first."""
    found: dict[str, list[Measured]] = {}
    for name in dict.fromkeys((WHOLE, *names)):
        for seed in seeds:
            recipe = _changed(seed, members, VARIANTS.get(name, VARIANTS[WHOLE]))
            of = "" if members == MEMBERS else f"-{members}"
            logs = Workspace(root / "quality" / f"{seed}{of}")
            simulate_logs(recipe, logs)
            with stage(f"{name}, feed {seed}"):
                place, whole = (
                    Workspace(root / f"ablations{of}" / folder.replace(" ", "-") / str(seed))
                    for folder in (WHOLE if name in ROWS else name, WHOLE)
                )
                found.setdefault(name, []).append(measure(name, recipe, logs.logs, place, whole.etl))
        rows = []
        for response in found[name][0]:
            for metric in found[name][0][response]:
                ours, whole = (np.mean([run[response][metric] for run in found[who]]) for who in (name, WHOLE))
                case = f"{name}, {response}" if members == MEMBERS else f"{members} members, {name}, {response}"
                rows.append(record.row(case, metric, float(ours), "", "" if name == WHOLE else WHOLE, float(whole)))
        append(rows)
        shown = "  ".join(
            f"{row.case.split(', ')[-1]} {row.value:.4f} ({row.value - (row.peer_value or 0):+.4f})"
            for row in rows
            if row.metric == "auc"
        )
        console.print(f"{name:34} AUC  {shown}", soft_wrap=True)


def follow(root: Path, record: Recorder) -> None:
    """Refresh one feed daily from every start of new ids; the last days' means are recorded, all days drawn."""
    followed: dict[str, list[Judged]] = {}
    for name, start in STARTS.items():
        recipe = _changed(SEEDS[0], MEMBERS, lambda values, start=start: values["train"].update(cold_start=start))
        at = (REFRESH_DAYS // 2, REFRESH_DAYS) if not start else ()
        with stage(name) as progress:
            place = root / "refresh" / name.replace(" ", "-")
            followed[name] = refreshed(recipe, place, REFRESH_DAYS, at, progress)
    tail = followed["new ids from their tail row"]
    means = {"no day added": _mean(tail, "frozen")}
    means |= {name: _mean(judged, "refreshed") for name, judged in followed.items()}
    whole = means["new ids from their tail row"]
    rows = [
        record.row(f"{name}, {response}", metric, values[metric], "", REFRESH, whole[response][metric])
        for name, by_response in means.items()
        for response, values in by_response.items()
        for metric in ("auc", "log_loss", "predicted_over_actual")
    ]
    for judged in tail:
        for response, values in (judged.retrained or {}).items():
            case = f"trained anew before day {judged.day}, {response}"
            rows.append(record.row(case, "auc", values["auc"], "", REFRESH, judged.refreshed[response]["auc"]))
    append(rows)
    for row in rows:
        if row.metric == "auc":
            console.print(f"{row.case:50} AUC {row.value:.4f} ({row.value - (row.peer_value or 0):+.4f})")
    draw_refresh(tail, IMAGES / "refresh.svg")


def _mean(judged: list[Judged], which: str) -> Measured:
    """Over the second half of the days."""
    late = [getattr(one, which) for one in judged[len(judged) // 2 :]]
    return {r: {m: float(np.mean([one[r][m] for one in late])) for m in late[0][r]} for r in late[0]}


def draw_refresh(judged: list[Judged], path: Path) -> None:
    """AUC of click by day: as it was, refreshed daily, trained anew."""
    of = {"refreshed": "refreshed daily", "frozen": "no day added", "retrained": "trained anew"}
    values = [
        {"day": one.day, "model": name, "auc": getattr(one, which)["click"]["auc"]}
        for one in judged
        for which, name in of.items()
        if getattr(one, which)
    ]
    colours = alt.Scale(domain=list(of.values()), range=[BLUE, GREY, VERMILION])
    chart = (
        alt.Chart(alt.Data(values=values), width=620, height=230)
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=30))
        .encode(
            x=alt.X("day:Q", title="day", axis=alt.Axis(grid=False, tickMinStep=1)),
            y=alt.Y("auc:Q", title="AUC of click, expected", scale=alt.Scale(zero=False)),
            color=alt.Color("model:N", scale=colours, title=None),
        )
    )
    _save(chart, path)


def draw_ablations(rows: list[Row], path: Path) -> None:
    """What every variant changes of the AUC, by response."""
    values = [
        {
            "variant": row.case.rsplit(", ", 1)[0],
            "response": row.case.rsplit(", ", 1)[1],
            "change": row.value - (row.peer_value or 0),
        }
        for row in rows
    ]
    responses = list(dict.fromkeys(value["response"] for value in values))
    order = sorted(
        {value["variant"] for value in values},
        key=lambda name: np.mean([value["change"] for value in values if value["variant"] == name]),
    )
    scale = alt.Scale(type="symlog", constant=0.002)  # most parts change little
    axis = alt.Axis(values=[-0.05, -0.02, -0.01, -0.005, -0.002, 0, 0.002], format="+.3~f")
    points = (
        alt.Chart(alt.Data(values=values), width=520, height=22 * len(order))
        .mark_point(filled=True, size=60, opacity=0.9)
        .encode(
            x=alt.X(
                "change:Q", title="change of the expected AUC, one part of the recipe changed", scale=scale, axis=axis
            ),
            y=alt.Y("variant:N", sort=order, title=None, axis=alt.Axis(labelLimit=300, grid=True)),
            color=alt.Color("response:N", scale=alt.Scale(domain=responses, range=list(HUES)), title=None),
        )
    )
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(color=GREY).encode(x="zero:Q")
    _save(zero + points, path)


def _save(chart: Any, path: Path) -> None:
    chart = chart.configure(font="Helvetica, Arial, sans-serif", background="white", padding=_PADDING)
    chart = chart.configure_view(stroke=None)
    chart = chart.configure_axis(gridColor="#e4e4e4", labelFontSize=13, titleFontSize=13, titleFontWeight="normal")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.configure_legend(labelFontSize=13).save(path)


def main() -> int:
    """Measure, print, record, draw."""
    names = [*VARIANTS, *ROWS, REFRESH]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, choices=range(1, len(SEEDS) + 1), help="feeds")
    parser.add_argument("--members", type=int, default=MEMBERS, help="of a feed; the demo has 20000")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    options = parser.parse_args()
    quiet_libraries()
    root = Path("artifacts") / "bench"
    record = Recorder("ablations", shlex.join(["python", "benchmarks/ablations.py", *sys.argv[1:]]))
    if asked := [name for name in options.only if name != REFRESH]:
        ablate(asked, SEEDS[: options.seeds], options.members, root, record)
    if REFRESH in options.only:
        follow(root, record)
    newest = latest(row for row in read() if row.suite == "ablations").values()
    kept = [
        row
        for row in newest
        if (row.peer, row.metric) == (WHOLE, "auc") and row.case.rsplit(", ", 1)[0] in (*VARIANTS, *ROWS)
    ]
    if kept:
        draw_ablations(kept, IMAGES / "ablations.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
