"""The simulated logs: their form, their honesty about the truth, and the two policies."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from sparsefeed.errors import DataError
from sparsefeed.etl import simulate as module
from sparsefeed.etl.simulate import SimulateConfig, SimulationSummary, simulate
from sparsefeed.etl.simulation.world import build_world
from sparsefeed.etl.simulation.write import ACTION_SCHEMA, IMPRESSION_SCHEMA, TRUTH_SCHEMA

ACTIONS = ("like", "comment", "reshare")
CONFIG = SimulateConfig(
    seed=3,
    days=3,
    random_share=0.4,
    num_sessions_per_day=900,
    num_members=400,
    num_creators=60,
    num_posts_per_day=120,
    num_hashtags=60,
)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulation") / "logs"
    simulate(CONFIG, out)
    return out


def read(logs: Path, kind: str) -> pa.Table:
    return pa.concat_tables([pq.ParquetFile(path).read() for path in sorted(logs.glob(f"{kind}/*/*.parquet"))])


def column(table: pa.Table, name: str) -> NDArray[Any]:
    return np.asarray(table[name].to_numpy())


def is_random(impressions: pa.Table) -> NDArray[np.bool_]:
    return np.asarray(pc.equal(impressions["session"], "random"))


def test_files_are_of_their_days_and_have_the_declared_columns(logs: Path) -> None:
    days = ["2026-11-02", "2026-11-03", "2026-11-04"]
    for kind, schema in (("impressions", IMPRESSION_SCHEMA), ("truth", TRUTH_SCHEMA), ("actions", ACTION_SCHEMA)):
        paths = sorted(logs.glob(f"{kind}/*"))
        assert [path.name for path in paths][:3] == [f"day={day}" for day in days]
        assert all(pq.read_schema(path / "part-000.parquet").equals(schema) for path in paths)
    for kind in ("impressions", "actions"):
        for path in logs.glob(f"{kind}/*/part-000.parquet"):
            time = pq.ParquetFile(path).read()["time"].to_numpy().astype("datetime64[D]")
            assert {f"day={day}" for day in np.unique(time)} == {path.parent.name}


def test_equal_configs_give_equal_logs_and_another_seed_another(logs: Path, tmp_path: Path) -> None:
    simulate(CONFIG, tmp_path / "again")
    simulate(CONFIG.model_copy(update={"seed": 4}), tmp_path / "other")
    for kind in ("impressions", "actions", "truth"):
        assert read(tmp_path / "again", kind).equals(read(logs, kind))
        assert not read(tmp_path / "other", kind).equals(read(logs, kind))


def test_a_session_is_ten_different_posts_at_positions_one_to_ten_at_one_time(logs: Path) -> None:
    impressions = read(logs, "impressions")
    assert len(impressions) == CONFIG.days * CONFIG.num_sessions_per_day * 10
    assert len(np.unique(column(impressions, "impression_id"))) == len(impressions)
    sessions = impressions.group_by("session_id").aggregate(
        [
            *((name, "count_distinct") for name in ("position", "post_id", "time", "member_id", "session", "surface")),
            ("position", "min"),
            ("position", "max"),
        ]
    )
    once = ("time", "member_id", "session", "surface")
    assert all(set(column(sessions, f"{name}_count_distinct")) == {1} for name in once)
    assert all(set(column(sessions, f"{name}_count_distinct")) == {10} for name in ("position", "post_id"))
    assert set(column(sessions, "position_min")) == {1}
    assert set(column(sessions, "position_max")) == {10}


def test_both_surfaces_have_random_and_production_sessions_in_the_declared_shares(logs: Path) -> None:
    impressions = read(logs, "impressions")
    explore = np.asarray(pc.equal(impressions["surface"], "explore"))
    assert explore.mean() == pytest.approx(CONFIG.explore_share, abs=0.04)
    for surface in (explore, ~explore):
        assert is_random(impressions)[surface].mean() == pytest.approx(CONFIG.random_share, abs=0.08)


def test_ids_are_unique_and_show_no_order() -> None:
    world = build_world(CONFIG)
    for ids in (world.members.id, world.creators.id, world.posts.id):
        assert len(pc.unique(ids)) == len(ids)
    order = np.argsort(world.members.id.to_numpy(zero_copy_only=False))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < 4 / np.sqrt(len(order))
    assert world.posts.id[0].as_py()[:2] == "p_"
    assert len(world.posts.id[0].as_py()) == 18


def test_labels_come_as_often_as_their_probabilities_say(logs: Path) -> None:
    impressions, truth, actions = (read(logs, kind) for kind in ("impressions", "truth", "actions"))
    assert truth["impression_id"].equals(impressions["impression_id"])
    counts = {"click": int(column(impressions, "click").sum())}
    for name in ACTIONS:
        rows = actions.filter(pc.equal(actions["action"], name))
        counts[name] = len(pc.unique(rows["impression_id"]))
    for name, count in counts.items():
        p = column(truth, f"p_{name}").astype(np.float64)
        assert abs(count - p.sum()) < 4 * np.sqrt((p * (1 - p)).sum())
        assert count > 50
        if name != "click":
            assert (p < column(truth, "p_click")).all()


def test_labels_follow_the_probabilities_impression_by_impression(logs: Path) -> None:
    p = column(read(logs, "truth"), "p_click").astype(np.float64)
    click = column(read(logs, "impressions"), "click")
    edges = np.quantile(p, np.linspace(0, 1, 11))
    for low, high in itertools.pairwise(edges):
        cell = (p >= low) & (p <= high)
        assert abs(click[cell].sum() - p[cell].sum()) < 4.5 * np.sqrt((p[cell] * (1 - p[cell])).sum())


def test_actions_follow_clicks_and_some_repeat_and_some_pass_midnight(logs: Path) -> None:
    impressions, actions = read(logs, "impressions"), read(logs, "actions")
    clicked = impressions.filter(impressions["click"])
    time_of = dict(zip(column(clicked, "impression_id"), column(clicked, "time"), strict=True))
    shown = np.array([time_of[impression] for impression in column(actions, "impression_id")])
    delay = column(actions, "time") - shown
    assert (delay >= np.timedelta64(1, "s")).all()
    assert (delay < np.timedelta64(1, "D")).all()
    assert (column(actions, "time").astype("datetime64[D]") > shown.astype("datetime64[D]")).any()
    pairs = actions.group_by(["impression_id", "action"]).aggregate([("time", "count")])
    assert 0 < (column(pairs, "time_count") > 1).mean() < 0.1
    assert (logs / "actions/day=2026-11-05/part-000.parquet").exists()


def test_production_is_clicked_more_and_most_of_that_is_in_no_logged_column(
    logs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lift(folder: Path) -> float:
        p, random = column(read(folder, "truth"), "p_click"), is_random(read(folder, "impressions"))
        return float(p[~random].mean() / p[random].mean())

    monkeypatch.setattr("sparsefeed.etl.simulation.response.HIDDEN_EFFECT", 0.0)
    simulate(CONFIG, tmp_path / "blind")
    assert lift(logs) > 1.4
    assert 1.0 < lift(tmp_path / "blind") < 1.0 + (lift(logs) - 1.0) / 2


def test_production_puts_the_best_first_and_random_sessions_do_not(logs: Path) -> None:
    impressions, truth = read(logs, "impressions"), read(logs, "truth")
    random, position = is_random(impressions), column(impressions, "position")
    exponent = np.where(np.asarray(pc.equal(impressions["surface"], "explore")), 0.25, 0.5)
    wanted = column(truth, "p_click") * position**exponent  # the examination taken out again
    assert np.corrcoef(wanted[~random], position[~random])[0, 1] < -0.1
    assert abs(np.corrcoef(wanted[random], position[random])[0, 1]) < 4 / np.sqrt(random.sum())
    followers = np.log(column(impressions, "creator_followers"))
    assert abs(np.corrcoef(followers[random], position[random])[0, 1]) < 4 / np.sqrt(random.sum())


def test_the_chance_of_a_click_falls_with_the_position_by_the_curve_of_the_surface(logs: Path) -> None:
    impressions, truth = read(logs, "impressions"), read(logs, "truth")
    explore = np.asarray(pc.equal(impressions["surface"], "explore"))
    for surface, exponent in ((explore, 0.25), (~explore, 0.5)):
        cell = is_random(impressions) & surface
        p, position = column(truth, "p_click")[cell], column(impressions, "position")[cell]
        ratio = p[position == 10].mean() / p[position == 1].mean()
        assert ratio == pytest.approx(10**-exponent, rel=0.25)


def test_random_sessions_show_every_eligible_post_equally_often(logs: Path) -> None:
    impressions = read(logs, "impressions")
    random = impressions.filter(is_random(impressions))
    last = random.filter(pc.equal(pc.cast(random["time"], pa.date32()), date(2026, 11, 4)))
    # Posts of the day before the last are eligible during all of it.
    age = column(last, "post_age_hours")
    hour = (column(last, "time") - np.datetime64("2026-11-04")) / np.timedelta64(1, "h")
    always = last.filter(pa.array((age > hour) & (age < hour + 24)))
    counts = column(always.group_by("post_id").aggregate([("time", "count")]), "time_count")
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.5)
    assert column(impressions, "post_age_hours").min() >= 0
    assert column(impressions, "post_age_hours").max() < 72


def test_every_day_has_new_posts_and_new_members(logs: Path) -> None:
    for name in ("post_id", "member_id"):
        seen: set[str] = set()
        for path in sorted(logs.glob("impressions/*/part-000.parquet")):
            today = set(pq.ParquetFile(path).read()[name].to_pylist())
            assert today - seen
            seen |= today
    assert column(read(logs, "impressions"), "member_tenure_days").min() < CONFIG.days


def test_a_few_members_creators_and_hashtags_make_up_much_of_the_log(logs: Path) -> None:
    impressions = read(logs, "impressions")
    values = {name: impressions[name] for name in ("member_id", "creator_id", "post_id")}
    values["hashtags"] = pc.list_flatten(impressions["hashtags"])
    for name, ids in values.items():
        counts = np.sort(pc.value_counts(ids).field("counts").to_numpy())[::-1]
        top = counts[: len(counts) // 10].sum() / counts.sum()
        assert top > 0.2, name  # a tenth of equal ids would have a tenth
    assert set(pc.list_value_length(impressions["hashtags"]).to_pylist()) == {1, 2, 3, 4, 5}


def test_hashtags_tell_the_topic() -> None:
    posts = build_world(CONFIG).posts
    topics_of: dict[str, set[int]] = {}
    for topic, tags in zip(posts.topic.tolist(), posts.hashtags.to_pylist(), strict=True):
        assert len(set(tags)) == len(tags)
        for tag in tags:
            topics_of.setdefault(tag, set()).add(topic)
    assert all(len(topics) == 1 for topics in topics_of.values())


def test_only_the_declared_dense_column_has_nulls(logs: Path) -> None:
    impressions = read(logs, "impressions")
    unknown = impressions.filter(pc.is_null(impressions["member_following"]))
    share = len(pc.unique(unknown["member_id"])) / len(pc.unique(impressions["member_id"]))
    assert 0 < share < 0.08
    assert all(
        c.null_count == 0 for n, c in zip(impressions.column_names, impressions, strict=True) if n != "member_following"
    )


def test_the_summary_counts_what_was_written(logs: Path) -> None:
    stored = json.loads((logs / "simulation.json").read_text())
    summary = SimulationSummary(**stored["summary"])
    impressions = read(logs, "impressions")
    assert SimulateConfig.model_validate(stored["config"]) == CONFIG
    assert summary.impressions == len(impressions)
    assert summary.random_impressions == is_random(impressions).sum()
    assert summary.clicks == column(impressions, "click").sum()
    assert summary.random_clicks == column(impressions, "click")[is_random(impressions)].sum()
    likes = read(logs, "actions").filter(pc.field("action") == "like")
    assert summary.likes == len(pc.unique(likes["impression_id"]))


def test_a_finished_simulation_is_reused_and_another_config_is_refused(logs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in logs.rglob("*")}
    told: list[int] = []
    summary = simulate(CONFIG, logs, lambda done, total, what: told.append(done))
    assert summary.impressions == 27_000
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in logs.rglob("*")} == before
    with pytest.raises(DataError, match=r"holds another simulation \(seed: there 3, asked 5\); remove it or"):
        simulate(CONFIG.model_copy(update={"seed": 5}), logs)


def test_a_folder_that_is_no_simulation_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="holds no finished simulation"):
        simulate(CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_crash_leaves_no_folder_and_the_next_run_is_whole(tmp_path: Path, logs: Path) -> None:
    out = tmp_path / "deep" / "logs"

    def stop(done: int, total: int, what: str) -> None:
        assert not out.exists()
        if what == "simulate 2026-11-03":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(CONFIG, out, stop)
    assert not out.exists()
    simulate(CONFIG, out)
    assert [path.name for path in out.parent.iterdir()] == ["logs"]
    assert read(out, "impressions").equals(read(logs, "impressions"))


def test_progress_counts_impressions_up_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_SESSIONS", 400)
    told: list[tuple[int, int, str]] = []
    simulate(CONFIG.model_copy(update={"days": 1}), tmp_path / "logs", lambda *news: told.append(news))
    assert [done for done, _, _ in told] == [4000, 8000, 9000]
    assert {(total, what) for _, total, what in told} == {(9000, "simulate 2026-11-02")}


def test_memory_and_row_groups_are_those_of_a_chunk_whatever_the_day_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_SESSIONS", 300)

    def peak_bytes(num_sessions: int) -> int:
        tracemalloc.start()
        simulate(CONFIG.model_copy(update={"num_sessions_per_day": num_sessions}), tmp_path / str(num_sessions))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(299)  # the compiler's memory is not counted
    few, many = peak_bytes(300), peak_bytes(3000)
    assert many < 1.5 * few
    file = pq.ParquetFile(tmp_path / "3000/impressions/day=2026-11-02/part-000.parquet").metadata
    assert {file.row_group(i).num_rows for i in range(file.num_row_groups)} == {3000}
    assert file.num_row_groups == 10


@pytest.mark.parametrize("scale", ["small", "large"])
def test_one_dial_sets_every_size_and_each_can_be_overridden(scale: str) -> None:
    tiny = SimulateConfig()
    config = SimulateConfig.model_validate({"scale": scale, "num_creators": 7})
    assert tiny.days * tiny.num_sessions_per_day * 10 == pytest.approx(1e6, rel=0.01)
    assert config.num_sessions_per_day == tiny.num_sessions_per_day * {"small": 10, "large": 1000}[scale]
    assert config.num_members > tiny.num_members
    assert config.num_creators == 7
    assert SimulateConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("wrong", [{"scale": "huge"}, {"random_share": 1.5}, {"num_posts_per_day": 3}, {"seeds": 1}])
def test_a_config_that_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SimulateConfig.model_validate(wrong)


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {"production"}), (1.0, {"random"})])
def test_one_policy_alone_can_be_simulated(share: float, kinds: set[str], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"random_share": share, "days": 1, "num_sessions_per_day": 20})
    simulate(config, tmp_path / "logs")
    assert set(read(tmp_path / "logs", "impressions")["session"].to_pylist()) == kinds
