from __future__ import annotations

import html
import re

import pytest

from sparsefeed.workflows.report import plots
from sparsefeed.workflows.report.run import Bench, CurvePoint, Etl, Evaluation, Ranking, StoredTable
from tests.workflows.report import conftest as hand


def words(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def num_points(svg: str) -> int:
    """Drawn points, which altair names in their labels."""
    return len(re.findall(r'aria-roledescription="point"', svg))


def test_rates_are_drawn_per_response_and_kind_of_session() -> None:
    plot = plots.response_rates({"click": (0.1, 0.2), "like": (0.05, 0.1)})

    assert num_points(plot.svg) == 4
    assert {"click", "like", "random", "production"} <= set(words(plot.svg))
    assert plot.label == "click: 10.00% random, 20.00% production; like: 5.00% random, 10.00% production"


def test_a_response_nobody_gave_has_no_point_on_a_logarithmic_axis() -> None:
    assert num_points(plots.response_rates({"click": (0.0, 0.2)}).svg) == 1


def test_rows_of_a_table_are_admitted_shared_and_free() -> None:
    plot = plots.id_rows(Etl.model_validate(hand.etl()))

    shown = re.findall(r'aria-label="rows of the table: (\d+); table: (\w+); kind: ([^;]+);', plot.svg)
    assert [(int(n), kind) for n, table, kind in shown if table == "member"] == [
        (30, "one id each"),
        (10, "shared by rare ids"),
        (24, "free"),
    ]


def test_a_learning_curve_starts_at_the_whole_of_its_first_loss() -> None:
    points = [CurvePoint.model_validate_json(line) for line in hand.curve(0.4).splitlines()]

    plot = plots.learning_curve("click", {"ips": points, "none": points[:2]}, 0)

    assert num_points(plot.svg) == 5
    assert "IPS weights: 0.4000 to 0.1000" in words(plot.svg)
    shares = re.findall(
        r'loss / first loss: ([\d.]+)%; model: IPS [^"]*" role="graphics-symbol" aria-rol[^"]*"point"', plot.svg
    )
    assert shares == ["100", "50", "25"]


def test_a_long_learning_curve_is_a_bare_line() -> None:
    points = [CurvePoint(samples=i, loss={"click": 1 / (1 + i)}) for i in range(40)]

    assert num_points(plots.learning_curve("click", {"ips": points}, 0).svg) == 0


def test_every_model_is_compared_on_every_response() -> None:
    measured = Evaluation.model_validate(hand.evaluation()).observed

    ratios, aucs = plots.models_compared(measured)

    assert num_points(ratios.svg) == num_points(aucs.svg) == 8
    assert "click, no weights: 1.470" in ratios.label
    assert "like, IPS weights: 0.660" in aucs.label


def test_an_undefined_metric_is_left_out_of_the_comparison() -> None:
    value = hand.evaluation()
    value["responses"]["like"]["ips"]["auc"] = float("nan")

    _, aucs = plots.models_compared(Evaluation.model_validate(value).observed)

    assert num_points(aucs.svg) == 7


def test_calibration_is_drawn_for_models_that_vary() -> None:
    models = Evaluation.model_validate(hand.evaluation()).responses["click"]

    plot = plots.calibration("click", models, 0)

    assert num_points(plot.svg) == 6
    assert "constant" not in words(plot.svg)
    assert "IPS weights: 20.0% predicted, 19.0% actual" in plot.label


def test_time_is_drawn_by_step_with_waiting_apart() -> None:
    plot = plots.latency_by_step(Bench.model_validate(hand.bench()).loads)

    assert {"hps waits", "hps", "100 posts, 1 in flight"} <= set(words(plot.svg))
    shown = re.findall(r"request: ([\d.]+); load: 100 posts, 1 in flight; kind: hps;", plot.svg)
    assert [float(ms) for ms in shown] == [pytest.approx(0.55)]


def test_latency_names_every_percentile_of_every_load() -> None:
    plot = plots.latency_by_load(Bench.model_validate(hand.bench()).loads)

    assert num_points(plot.svg) == 6
    assert plot.label.startswith("100 posts, 1 in flight: p50 3.50, p95 6.65, p99 6.93 ms; 500 posts")


def test_memory_is_drawn_for_both_formats() -> None:
    plot = plots.table_memory([StoredTable(name="post", dim=8, rows=1000, row_format="fp16")])

    assert {"post", "fp32", "int8"} <= set(words(plot.svg))
    assert plot.label == "post: 32,000 bytes as fp32, 16,000 as int8"


def test_a_feed_shows_each_post_on_both_sides() -> None:
    posts = Ranking.model_validate(hand.ranking()).posts

    shown = words(plots.feed_order(posts).svg)

    assert {"a · 1", "3 · a", "c · 3", "2 · c", "as shown", "as ranked", "up", "down"} <= set(shown)


def test_a_long_post_id_is_cut_in_the_plot() -> None:
    post = Ranking.model_validate(hand.ranking()).posts[0].model_copy(update={"post": "p" * 40})

    assert f"{'p' * 17}… · 1" in words(plots.feed_order([post]).svg)


def test_a_score_is_drawn_as_probability_by_weight() -> None:
    plot = plots.score_parts(Ranking.model_validate(hand.ranking()).posts, {"click": 1.0, "like": 2.0})

    parts = re.findall(r'aria-label="score: ([\d.]+); post: 2 · c; response: (\w+);', plot.svg)
    assert [(float(part), response) for part, response in parts] == [(0.2, "click"), (0.4, "like")]
