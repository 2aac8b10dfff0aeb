"""The suite `ids` at a small size: what it counts is right, and its rows are those the targets and the page ask for."""

from __future__ import annotations

import ast
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomllib

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import clock  # noqa: E402
import growth  # noqa: E402
import ids  # noqa: E402
import in_place  # noqa: E402
import keys  # noqa: E402
import large_map  # noqa: E402
import numba.core.config  # noqa: E402
import readme  # noqa: E402
import results  # noqa: E402
from peers import environment  # noqa: E402

from sparsefeed.errors import IdError  # noqa: E402
from sparsefeed.etl.ids import IdMap  # noqa: E402

RECORD = results.Recorder("ids", "python benchmarks/run.py ids", "abc", "cpu", "2026-11-24")
WORDS = pa.array([f"wört {i}" for i in range(3000)])


def id_map(num: int) -> IdMap:
    return IdMap.build(keys.keys_of(0, num), np.ones(num, np.int64), table="t", key_seed=0, tail_rows=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs as the suite lays them out, of 3,000 words and 20,000 keys, and a batch of 50 each."""
    folder = tmp_path_factory.mktemp("ids")
    pq.write_table(pa.table({"word": WORDS, "frequency": 1.0 / np.arange(1, 3001)}), folder / "words.parquet")
    np.save(folder / "keys.npy", keys.keys_of(0, 20_000))
    for name in ("keys_uniform", "words_uniform", "words_frequent"):
        np.save(folder / f"{name}.npy", np.arange(50))
    return folder


def test_every_target_and_every_line_of_the_page_is_a_row_the_suite_writes(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ids, "BATCH", 2000)
    (tmp_path / "words.parquet").symlink_to(folder / "words.parquet")

    def peer(kind: str, name: str) -> dict[str, Any]:  # the environment of the real ones takes a network
        threads = 2 if name == "polars" else 1
        times = {"uniform": 100.0, "frequent": 100.0}
        sizes = {} if name in ("polars", "nvtabular") else {"bytes": 1e6, "build_s": 1.0}
        return {"threads": threads, "lookup_ns": times, **sizes}

    rows, of_keys = ids.measure_keys(RECORD, tmp_path, 20_000)
    words, of_words, num_words = ids.measure_words(RECORD, tmp_path)
    rows += words + ids.keys_beside_peers(RECORD, of_keys, 20_000, peer)
    rows += ids.words_beside_peers(RECORD, of_words, num_words, peer)
    rows += ids.false_accepts(RECORD, 5000)
    rows += large_map.measure_large(RECORD, ids.LARGE, tmp_path / "large", 50_000, num_opened=1)
    rows += growth.growth(RECORD, tmp_path / "growth", tmp_path / "growth.svg", 2000)
    assert num_words == 3000
    assert not (tmp_path / "large").exists() and not (tmp_path / "growth").exists()
    newest = results.latest(rows)
    elsewhere = in_place.CASE  # needs a trained model: its rows are seen by the run alone
    targets = tomllib.loads(results.TARGETS.read_text("utf-8"))["ids"]
    for target in targets:
        if target["case"] != elsewhere:
            found = newest["ids", target["case"], target["metric"], target.get("peer", "")]
            assert target.get("of") != "ratio" or found.ratio is not None
    wrong = [row for row in rows if row.case == "wrong answers"]
    assert len(wrong) == sum(target["case"] == "wrong answers" for target in targets) == 7
    assert all(row.value == 0 for row in wrong)
    _, shown = readme.IDS_FIGURES.render(newest)
    assert len(shown) == sum(line[2] != elsewhere for line in readme.IDS_FIGURES.lines)
    for matrix in (readme.IDS_OF_KEYS, readme.IDS_OF_WORDS, readme.IDS_GROWING):
        lines, _ = matrix.render(newest)
        assert len(lines) == 2 + len(matrix.sides)


@pytest.mark.parametrize(
    ("kind", "peer"),
    [*(("keys", peer) for peer in ("dict", "pandas")), *(("words", peer) for peer in ("dict", "pandas", "nvtabular"))],
)
def test_a_peer_answers_in_json_from_a_process_of_its_own(folder: Path, kind: str, peer: str) -> None:
    peers = environment.Peers.__new__(environment.Peers)  # this interpreter has these peers; making one takes a network
    peers.python, peers.folder = Path(sys.executable), folder
    measured = peers.measure(kind, peer)
    assert set(measured["lookup_ns"]) == ({"uniform"} if kind == "keys" else {"uniform", "frequent"})
    assert all(time_ns > 0 for time_ns in measured["lookup_ns"].values())
    if peer == "dict":
        num = 20_000 if kind == "keys" else 3000
        assert measured["bytes"] > 2 * 28 * num  # two Python objects an id


def test_a_peer_that_fails_ends_the_run(folder: Path) -> None:
    peers = environment.Peers.__new__(environment.Peers)
    peers.python, peers.folder = Path(sys.executable), folder / "nowhere"
    with pytest.raises(subprocess.CalledProcessError):
        peers.measure("keys", "dict")


def test_the_peers_script_imports_nothing_of_ours() -> None:
    tree = ast.parse((ROOT / "benchmarks" / "peers" / "ids.py").read_text("utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "."]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    ours = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} | {"sparsefeed", "."}
    assert not imported & ours


def test_two_stretches_of_the_counter_share_no_key() -> None:
    whole = keys.keys_of(0, 5000)
    assert len(np.unique(whole)) == 5000
    assert (np.concatenate([keys.keys_of(0, 1234), keys.keys_of(1234, 5000)]) == whole).all()
    assert (np.concatenate(list(keys.in_batches(10, 5000))) == whole[10:]).all()


def test_ids_without_a_row_of_their_own_are_counted() -> None:
    built = id_map(1000)
    assert keys.alike_or_lost(built, 1000) == 0
    assert keys.alike_or_lost(built.remove(keys.keys_of(0, 7)), 1000) == 7
    assert keys.alike_or_lost(built, 1100) in range(98, 101)  # of 100 unseen ones at most a false accept or two


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[growth.Day]]:
    yield list(growth.simulate(tmp_path_factory.mktemp("days") / "map", 3000, 6, 4))


def test_a_growing_map_answers_right_on_every_day_and_a_fold_empties_its_overlay(days: list[growth.Day]) -> None:
    assert [(day.day, day.folded) for day in days] == [(i, False) for i in range(5)] + [
        (4, True),
        (5, False),
        (6, False),
    ]
    assert all(day.wrong == 0 for day in days)
    before, after = days[4], days[5]
    assert before.overlay_ids > 0 and after.overlay_ids == 0
    assert before.num_ids == after.num_ids
    assert after.lookup_bytes < before.lookup_bytes


def test_every_day_brings_three_percent_and_takes_one(days: list[growth.Day]) -> None:
    unfolded = [day.num_ids for day in days if not day.folded]
    grown = np.diff(unfolded) / unfolded[:-1]
    assert grown == pytest.approx(np.full(6, 0.02), abs=0.001)


def test_a_wrong_answer_of_a_growing_map_is_found() -> None:
    random = np.random.default_rng(0)
    feed = growth.Feed.begin(2000, random)
    feed.live(growth.FIRST_DAY + 1, random)
    assert feed.wrong() == 0
    own = np.flatnonzero(feed.rows != growth.NO_ROW)
    feed.rows[own[:2]] = feed.rows[own[1::-1]]  # two rows change places
    assert feed.wrong() == 2
    feed.rows[own[:2]] = feed.rows[own[1::-1]]
    feed.id_map = feed.id_map.remove(feed.keys[own[:1]])  # the map forgets one that the truth has
    assert feed.wrong() == 2  # it moved, and the map has one less
    assert feed.fold() == 1  # nor is it where the fold says


def test_both_plots_of_growth_lie_in_one_svg(days: list[growth.Day], tmp_path: Path) -> None:
    growth.draw(days, tmp_path / "img" / "growth.svg")
    svg = (tmp_path / "img" / "growth.svg").read_text("utf-8")
    assert svg.count("<svg") == 1
    for text in ("known ids", "half unseen", "on disk", "fold"):
        assert text in svg


def test_memory_and_opening_of_a_large_map_are_measured_in_fresh_processes(tmp_path: Path) -> None:
    rows = large_map.measure_large(RECORD, "large", tmp_path / "map", 200_000, num_opened=1)
    of = {row.metric: row.value for row in rows}
    given_gb = of["of which keys and counts, given"]
    assert given_gb == 16 * 200_000 / 1e9
    assert given_gb < of["peak memory of build and save"] < 2  # an interpreter and numba, not what this process has
    assert of["bytes on disk, per id"] > 10


def test_calls_are_clocked_where_they_are_made_and_a_call_within_another_once() -> None:
    built, some = id_map(1000), keys.keys_of(0, 10)
    encode, lookup = IdMap.encode, IdMap.lookup
    with clock.clocked((IdMap, "encode"), (IdMap, "lookup")) as watch:
        built.encode(WORDS)
        assert watch.num_calls == 1
        assert (built.lookup(some) == lookup(built, some)).all()
    assert watch.num_calls == 2
    assert watch.seconds > 0
    assert (IdMap.encode, IdMap.lookup) == (encode, lookup)


def test_a_clock_stops_when_the_call_fails() -> None:
    built = id_map(10)
    with clock.clocked((IdMap, "lookup")) as watch, pytest.raises(IdError):
        built.lookup(None)  # type: ignore[arg-type]
    assert watch.num_calls == 1 and not watch.running


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    times = clock.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 3
    assert set(times) == {"a", "b"}


def test_the_number_of_threads_comes_back() -> None:
    before = numba.core.config.NUMBA_NUM_THREADS
    with pytest.raises(ZeroDivisionError), clock.threads(before + 1):
        assert before + 1 == numba.core.config.NUMBA_NUM_THREADS
        raise ZeroDivisionError
    assert before == numba.core.config.NUMBA_NUM_THREADS


def test_figures_that_one_side_has_not_make_no_row() -> None:
    ours = ids.Figures(18.0, 100.0, {"uniform": 10.0})
    theirs = ids.Figures.of({"lookup_ns": {"uniform": 40.0}}, 10)
    assert dataclasses.astuple(theirs) == (None, None, {"uniform": 40.0})
    (row,) = ids._beside(RECORD, "case", "map", ours, "polars", theirs)
    assert (row.metric, row.peer, row.ratio) == ("map lookup, uniform", "polars join", 0.25)
