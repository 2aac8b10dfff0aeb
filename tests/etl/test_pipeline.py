"""The ETL as a whole: what it does with bad logs, a second time, and after a crash."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from merlin.core.utils import global_dask_client

from sparsefeed.errors import BadFileError, DataError, SpecError, ToolError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids import Inverse
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.workflow import FeedWorkflow
from tests import logs
from tests.conftest import CONFIG as CLUSTER
from tests.ports import free_port

CONFIG = EtlConfig(
    cluster=ClusterConfig(workers=0), row_group_rows=100
)  # in this process: a cluster takes 6 s to start
FIRST = "impressions/day=2026-11-02/part-000.parquet"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return logs.write(tmp_path / "logs", days=2, sessions=40)


def test_a_second_run_over_the_same_logs_has_nothing_to_do(logs_folder: Path, etl_folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in etl_folder.rglob("*")}
    started = time.perf_counter()
    summary = run(logs.spec(), logs_folder, etl_folder, CLUSTER)
    assert time.perf_counter() - started < 2
    assert summary == json.loads((etl_folder / "etl.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in etl_folder.rglob("*")} == before


@pytest.mark.parametrize("workers", [0, 3])
def test_the_number_of_workers_changes_nothing(
    logs_folder: Path, etl_folder: Path, tmp_path: Path, workers: int
) -> None:
    run(
        logs.spec(),
        logs_folder,
        tmp_path / "etl",
        EtlConfig(cluster=ClusterConfig(workers=workers), row_group_rows=100),
    )
    for part in sorted(etl_folder.glob("*/*.parquet")):
        other = tmp_path / "etl" / part.relative_to(etl_folder)
        assert pq.read_table(part).equals(pq.read_table(other))
    assert (etl_folder / "transform" / "plan.json").read_text() == (
        tmp_path / "etl" / "transform" / "plan.json"
    ).read_text()
    assert pq.read_table(etl_folder / "ips.parquet").equals(pq.read_table(tmp_path / "etl" / "ips.parquet"))


def test_no_random_session_is_an_error_and_nothing_is_published(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("impressions/*/*.parquet"):
        logs.change(path, session=pa.array(["production"] * len(pq.read_table(path))))
    with pytest.raises(DataError, match=r'ips: no row has session = "random"; .* or set ips: none'):
        run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    assert not (tmp_path / "etl").exists()


def test_a_position_without_random_sessions_weighs_one_and_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("impressions/*/*.parquet"):
        frame = pq.read_table(path).to_pandas()
        frame.loc[frame.position == 4, "session"] = "production"
        logs.change(path, session=pa.array(frame.session))
    summary = run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    assert "ips: click, surface home, position 4: no random session; weight 1" in summary["warnings"]
    ips = pq.read_table(tmp_path / "etl" / "ips.parquet").to_pandas()
    at_four = ips[(ips.position == 4) & (ips.surface == "home")]
    assert (at_four.weight == 1).all()
    assert (at_four.reason == "no random session").all()
    train = pq.read_table(sorted((tmp_path / "etl" / "train").glob("*.parquet"))[0]).to_pandas()
    assert (train[train.position == 4].w_click == 1).all()


@pytest.mark.parametrize("config", [CONFIG, CLUSTER])
def test_a_damaged_file_stops_the_run_and_the_old_result_stays(folder: Path, tmp_path: Path, config: EtlConfig) -> None:
    run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    before = (tmp_path / "etl" / "etl.json").read_text()
    path = folder / FIRST
    data = bytearray(path.read_bytes())
    data[4:3000] = b"\x00" * 2996
    path.write_bytes(bytes(data))
    with pytest.raises(BadFileError, match=r"part-000.parquet: breaks off or is damaged"):
        run(logs.spec(), folder, tmp_path / "etl", config)
    assert (tmp_path / "etl" / "etl.json").read_text() == before


@pytest.mark.parametrize("damage", ["pages", "footer"])
def test_a_file_that_cannot_be_read_may_be_skipped_and_is_recorded(tmp_path: Path, damage: str) -> None:
    root = logs.write(tmp_path / "logs", days=3, sessions=40)
    path = root / FIRST
    bad = path.with_name("part-001.parquet")
    table = pq.read_table(path)
    ids = pa.array(range(10_000, 10_000 + len(table)))
    pq.write_table(table.set_column(0, "impression_id", ids), bad)
    whole = bad.read_bytes()
    data = bytearray(whole)
    if damage == "pages":
        data[4:3000] = b"\x00" * 2996
    bad.write_bytes(bytes(data) if damage == "pages" else whole[:-20])
    with pytest.raises(BadFileError, match=r"part-001.parquet"):
        run(logs.spec(), root, tmp_path / "etl", CONFIG)
    skip = CONFIG.model_copy(update={"on_bad_file": "skip"})
    summary = run(logs.spec(), root, tmp_path / "etl", skip)
    (skipped,) = summary["skipped"]
    assert skipped["file"] == str(bad)
    assert skipped["rows"] == (160 if damage == "pages" else None)
    number = "160" if damage == "pages" else "an unknown number of"
    assert summary["warnings"][0].startswith(f"{bad}: skipped, {number} rows: ")
    assert summary["num_train_rows"] == 320
    assert run(logs.spec(), root, tmp_path / "etl", skip) == summary  # nothing to do
    bad.write_bytes(whole)  # mended
    again = run(logs.spec(), root, tmp_path / "etl", skip)
    assert again["skipped"] == []
    assert again["num_train_rows"] == 480


@pytest.mark.filterwarnings("ignore::sparsefeed.errors.DataWarning")
def test_a_job_made_again_after_its_worker_died_gives_what_it_gave(tmp_path: Path) -> None:
    root, spec = logs.write(tmp_path / "logs", days=2, sessions=60), logs.spec()
    opened = LogFolder.open(root, spec)
    read = ReadImpressions.prepare(spec, opened, 50, tmp_path / "scratch")
    feed = FeedWorkflow(spec, tmp_path / "etl")
    partitions = opened.partitions(50)
    for operator in feed.operators:
        merged = operator.merge([operator.collect(read(p), p.number) for p in partitions])
        jobs = operator.jobs(merged, len(partitions))
        once = [job() for job in jobs]
        kept = {p: p.read_bytes() for p in (tmp_path / "etl").rglob("*") if p.is_file()}
        assert [job() for job in jobs] == once
        assert {p: p.read_bytes() for p in (tmp_path / "etl").rglob("*") if p.is_file()} == kept
        operator.fit_finalize((merged, once))
    assert feed.map_ids.maps["post"].num_admitted == 30
    assert not list((tmp_path / "etl" / "runs").rglob("*.arrow"))


def test_a_worker_that_is_killed_in_the_middle_is_survived(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=3, sessions=300)
    config = EtlConfig(cluster=ClusterConfig(workers=2), partition_rows=40, row_group_rows=100)
    chosen: list[int] = []
    killed: list[int] = []

    def kill(process_id: int) -> None:
        os.kill(process_id, signal.SIGKILL)
        killed.append(process_id)

    def choose(done: int, total: int, what: str) -> None:
        if len(chosen) < done <= 2:  # once while fitting, once while writing
            pids = global_dask_client().run(os.getpid)
            chosen.append(next(iter(pids.values())))
            threading.Timer(0.05, kill, (chosen[-1],)).start()

    run(logs.spec(), root, tmp_path / "killed", config, choose)
    assert len(set(killed)) == 2
    run(logs.spec(), root, tmp_path / "whole", config)
    for name in ("train", "eval"):
        one, other = (sorted((tmp_path / run_name / name).glob("*.parquet")) for run_name in ("killed", "whole"))
        assert [path.name for path in one] == [path.name for path in other]
        for a, b in zip(one, other, strict=True):
            assert pq.read_table(a).equals(pq.read_table(b))
    for name in ("member", "post"):
        headers = [(tmp_path / n / "ids" / name / "id_map.json").read_text() for n in ("killed", "whole")]
        assert headers[0] == headers[1]


@pytest.mark.parametrize("rows", [30, 10_000])
def test_neither_the_cut_into_partitions_nor_the_names_of_files_change_ids_or_weights(
    tmp_path: Path, rows: int
) -> None:
    root = logs.write(tmp_path / "logs", days=3, sessions=100)
    run(logs.spec(), root, tmp_path / "one", CONFIG)
    for path in root.glob("impressions/*/part-000.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.slice(250), path.with_name("a.parquet"), row_group_size=20)
        pq.write_table(table.slice(0, 250), path, row_group_size=33)
    run(logs.spec(), root, tmp_path / "other", CONFIG.model_copy(update={"partition_rows": rows}))
    for name in ("train", "eval"):
        one, other = (tables(tmp_path / n / name).sort_values("impression_id") for n in ("one", "other"))
        pd.testing.assert_frame_equal(one.reset_index(drop=True), other.reset_index(drop=True))
    for name in ("ids/post/id_map.json", "inverse/post/inverse.json", "transform/plan.json", "snapshot/snapshot.json"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "other" / name).read_text()
    assert (tmp_path / "one" / "ips.parquet").read_bytes() == (tmp_path / "other" / "ips.parquet").read_bytes()


def test_days_outside_the_window_are_not_read_and_their_actions_only_where_they_belong(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=5, sessions=40)
    window = CONFIG.model_copy(update={"since": date(2026, 11, 3), "until": date(2026, 11, 5)})
    summary = run(logs.spec(), root, tmp_path / "etl", window)
    assert summary["train_days"] == ["2026-11-03", "2026-11-04"]
    assert summary["eval_days"] == ["2026-11-05"]
    shutil.rmtree(root / "impressions" / "day=2026-11-02")
    shutil.rmtree(root / "actions" / "day=2026-11-02")
    shutil.rmtree(root / "impressions" / "day=2026-11-06")
    run(logs.spec(), root, tmp_path / "alone", CONFIG)
    for name in ("train", "eval"):
        pd.testing.assert_frame_equal(tables(tmp_path / "etl" / name), tables(tmp_path / "alone" / name))
    with pytest.raises(DataError, match=r"no impressions from 2027-01-01 to the last; there are days 2026-11-03 to"):
        run(logs.spec(), root, tmp_path / "none", CONFIG.model_copy(update={"since": date(2027, 1, 1)}))


def test_as_many_files_as_asked_for_where_row_groups_allow_and_a_warning_where_not(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=3, sessions=60)
    wanted = CONFIG.model_copy(update={"min_files": 6})
    summary = run(logs.spec(), root, tmp_path / "few", wanted)
    assert "2 training files, etl.min_files is 6: row groups are not cut" in summary["warnings"][-1]
    for path in root.glob("impressions/*/*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=40)
    run(logs.spec(), root, tmp_path / "many", wanted)
    files = sorted((tmp_path / "many" / "train").glob("*.parquet"))
    assert len(files) >= 6
    pd.testing.assert_frame_equal(tables(tmp_path / "few" / "train"), tables(tmp_path / "many" / "train"))


def test_shuffled_files_hold_the_same_rows_in_another_order_that_the_seed_decides(folder: Path, tmp_path: Path) -> None:
    shuffled = CONFIG.model_copy(update={"shuffle": True})
    run(logs.spec(), folder, tmp_path / "logged", CONFIG)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run(logs.spec(), folder, tmp_path / name, shuffled.model_copy(update={"shuffle_seed": seed}))
    logged, one, same, other = (tables(tmp_path / name / "train") for name in ("logged", "one", "same", "other"))
    assert one["impression_id"].tolist() == same["impression_id"].tolist()
    assert len({tuple(frame["impression_id"]) for frame in (logged, one, other)}) == 3
    for frame in (one, other):
        ordered = frame.sort_values("impression_id").reset_index(drop=True)
        pd.testing.assert_frame_equal(ordered, logged.sort_values("impression_id").reset_index(drop=True))


def test_ids_of_any_length_nulls_and_columns_nobody_named_are_no_trouble(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=60)
    path = root / FIRST
    table = pq.read_table(path)
    posts = table["post_id"].to_pylist()
    posts[0], posts[1], posts[2], posts[3] = "x" * 10_000, None, "", "日本\x00é"
    logs.change(path, post_id=pa.array(posts))
    extra = pa.array([{"a": [1, 2]}] * len(table))
    pq.write_table(pq.read_table(path).append_column("nobodys", extra), path)
    empty = path.with_name("empty.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), empty)
    spec = logs.spec(logs={"surface": "surface", "actions": {}, "max_null_share": 0.05})
    summary = run(spec, root, tmp_path / "etl", CONFIG)
    assert 'column "post_id": 2 of 240 ids are null or empty; they read row 1' in summary["warnings"]
    train = tables(tmp_path / "etl" / "train").set_index("impression_id").sort_index()
    assert train["post_id"].iloc[1:3].tolist() == [1, 1]
    inverse = Inverse.load(tmp_path / "etl" / "inverse" / "post")
    assert inverse.decode(train["post_id"].iloc[[0, 3]].to_numpy()).to_pylist() == [posts[0], posts[3]]


def test_a_full_disk_is_told_and_leaves_the_old_result(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    try:
        run(logs.spec(), folder, small / "etl", CONFIG)
        before = {p.relative_to(small): p.read_bytes() for p in small.rglob("*") if p.is_file()}
        more = logs.write(tmp_path / "more", days=3, sessions=3000)
        with pytest.raises(OSError, match=r"the disk of .* is full"):
            run(logs.spec(), more, small / "etl", CONFIG)
        assert {p.relative_to(small): p.read_bytes() for p in small.rglob("*") if p.is_file()} == before
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)  # maps of it may be open still


def test_what_a_crashed_run_left_is_cleared_away(folder: Path, tmp_path: Path) -> None:
    left = tmp_path / ".etl.partial"
    (left / "ids").mkdir(parents=True)
    (left / "ids" / "half").write_text("half")
    run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etl", "logs"]


def test_a_folder_that_is_something_else_is_left_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "etl").mkdir()
    (tmp_path / "etl" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match=r"etl: exists and is no finished ETL result"):
        run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    assert (tmp_path / "etl" / "thesis.txt").read_text() == "years of work"


def test_too_few_days_are_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 days of impressions, eval_days = 2: none is left to train on"):
        run(logs.spec(), folder, tmp_path / "etl", EtlConfig(eval_days=2))


def test_without_ips_no_weight_is_written(folder: Path, tmp_path: Path) -> None:
    run(logs.spec(ips="none"), folder, tmp_path / "etl", CONFIG)
    schema = pq.read_schema(sorted((tmp_path / "etl" / "train").glob("*.parquet"))[0])
    assert not [name for name in schema.names if name.startswith(("w_", "cell_"))]
    assert not (tmp_path / "etl" / "ips.parquet").exists()


def tables(folder: Path) -> pd.DataFrame:
    return pa.concat_tables([pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]).to_pandas()


@pytest.mark.parametrize("ips", ["none", {"position_edges": [1, 2, 3, 4]}])
def test_sampled_rows_weigh_one_over_their_rate_and_no_random_row_is_left_out(tmp_path: Path, ips: object) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=400)
    sampling = {"rates": {"click": 0.8}, "others": 0.25}
    run(logs.spec(ips=ips), root, tmp_path / "all", CONFIG)
    summary = run(logs.spec(ips=ips, sampling=sampling), root, tmp_path / "some", CONFIG)
    everything, some = (tables(tmp_path / name / "train").set_index("impression_id") for name in ("all", "some"))
    assert summary["num_train_rows"] == len(some) < 0.75 * len(everything)
    assert set(some.index) < set(everything.index)
    assert some["random"].sum() == everything["random"].sum()
    same = everything.loc[some.index]
    rate = np.where(same["y_like"] > 0, 1.0, np.where(same["y_click"] > 0, 0.8, 0.25))
    rate[same["random"] == 1] = 1.0
    for response in ("click", "like"):
        before = same[f"w_{response}"] if ips != "none" else 1.0
        np.testing.assert_allclose(some[f"w_{response}"], before / rate, rtol=1e-5)
        weights = pq.read_table(tmp_path / "some" / "ips.parquet").to_pandas()
        of_cell = weights[weights["response"] == response].groupby("cell")["weight"].agg(["min", "max"])
        of_cell.loc[0] = 1.0
        cells = some[f"cell_{response}"]
        np.testing.assert_allclose(some[f"w_{response}"], of_cell["max"].reindex(cells).to_numpy(), rtol=1e-5)
        assert (of_cell["max"] - of_cell["min"]).max() < 1e-12
    production = everything["random"] == 0
    total = (some["w_click"] * (some["random"] == 0)).sum() if ips == "none" else production.sum()
    assert abs(total - production.sum()) < 0.1 * production.sum()
    for name in ("ids", "snapshot", "transform"):  # what is fitted is fitted on all rows
        for path in (tmp_path / "all" / name).rglob("*.npy"):
            assert path.read_bytes() == (tmp_path / "some" / path.relative_to(tmp_path / "all")).read_bytes()
    pd.testing.assert_frame_equal(
        tables(tmp_path / "all" / "eval").filter(regex="^(y_|post_|member_)"),
        tables(tmp_path / "some" / "eval").filter(regex="^(y_|post_|member_)"),
    )


def test_only_sessions_with_a_response_are_trained_on_if_so_declared(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=200)
    for path in root.glob("impressions/*/*.parquet"):
        table = pq.read_table(path)
        session = pa.array([f"s{i // 4}" for i in table["impression_id"].to_pylist()])
        pq.write_table(table.append_column("visit", session), path, row_group_size=50)  # some are cut in two
    spec = logs.spec(logs={"surface": "surface", "actions": {}, "session": "visit"})
    run(spec, root, tmp_path / "all", CONFIG)
    config = CONFIG.model_copy(update={"partition_rows": 50})
    changed = spec.model_dump() | {"sampling": {"sessions": "engaged"}}
    run(FeedSpec.parse(changed), root, tmp_path / "engaged", config)
    everything, engaged = (tables(tmp_path / name / "train") for name in ("all", "engaged"))
    visit = everything["impression_id"] // 4
    responded = (everything[["y_click", "y_like"]].max(axis=1) > 0).groupby(visit).transform("max")
    assert 0 < responded.sum() < len(everything)
    assert engaged["impression_id"].tolist() == everything["impression_id"][responded].tolist()
    assert len(tables(tmp_path / "engaged" / "eval")) == len(tables(tmp_path / "all" / "eval"))
    with pytest.raises(SpecError, match=r'sampling.sessions: "engaged" needs logs.session'):
        logs.spec(sampling={"sessions": "engaged"})


def test_what_the_weights_do_is_told(folder: Path, tmp_path: Path) -> None:
    summary = run(logs.spec(ips={"position_edges": [1, 2, 3, 4], "clip": 1.2}), folder, tmp_path / "etl", CONFIG)
    train = tables(tmp_path / "etl" / "train")
    for response in ("click", "like"):
        weights = train[train[f"cell_{response}"] > 0][f"w_{response}"].to_numpy(np.float64)
        told = summary["ips"][response]
        assert told["num_weighted_rows"] == len(weights)
        assert told["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-3)
        assert 0 < told["num_clipped_rows"] <= len(weights)


def test_histories_of_windows_and_frequencies_are_written_and_snapshot(folder: Path, tmp_path: Path) -> None:
    spec = logs.spec()
    features = [f.model_dump() for f in spec.features]
    history = next(f for f in features if f["name"] == "clicked_posts")
    features += [
        {**history, "name": "often", "order": "frequent", "max_length": 5},
        {**history, "name": "lately", "window_days": 0.1},
    ]
    root = logs.write(tmp_path / "more", days=3, sessions=200)
    run(logs.spec(features=features), root, tmp_path / "etl", CONFIG)
    train = tables(tmp_path / "etl" / "train")
    assert train["lately"].map(len).sum() < train["clicked_posts"].map(len).sum()
    assert (train["often"].map(len) == train["often"].map(lambda ids: len(set(ids)))).all()
    assert (tmp_path / "etl" / "snapshot" / "member" / "often.npy").exists()


def test_a_feed_without_members_actions_sessions_and_positions_runs_too(folder: Path, tmp_path: Path) -> None:
    spec = logs.spec(
        tables=[{"name": "post", "dim": 4}],
        features=[{"kind": "id", "name": "post_id", "table": "post", "side": "candidate"}],
        responses=[{"name": "click", "column": "click"}],
        logs={"member": None, "position": None},
        sessions=None,
        ips="none",
    )
    summary = run(spec, folder, tmp_path / "etl", CONFIG)
    table = pq.read_table(sorted((tmp_path / "etl" / "train").glob("*.parquet"))[0])
    assert table.schema.names == ["y_click", "post_id", "impression_id", "position", "random"]
    assert summary["num_train_rows"] == len(table) == 160


def test_a_cluster_that_runs_already_gives_the_same_rows(logs_folder: Path, etl_folder: Path, tmp_path: Path) -> None:
    address = f"tcp://127.0.0.1:{free_port()}"
    program = str(Path(sys.executable).parent / "dask")
    commands = (
        [program, "scheduler", "--host", "127.0.0.1", "--port", address.rsplit(":", 1)[1], "--no-dashboard"],
        # Two threads: kernels of one worker run at the same time.
        [
            program,
            "worker",
            address,
            "--nthreads",
            "2",
            "--no-dashboard",
            "--local-directory",
            str(tmp_path / "worker"),
        ],
    )
    with ExitStack() as running:
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            running.callback(process.wait)
            running.callback(process.terminate)
        config = EtlConfig(cluster=ClusterConfig(address=address), row_group_rows=100)
        run(logs.spec(), logs_folder, tmp_path / "etl", config)
    for part in sorted(etl_folder.glob("*/*.parquet")):
        assert pq.read_table(part).equals(pq.read_table(tmp_path / "etl" / part.relative_to(etl_folder)))


def test_a_scheduler_that_is_not_there_is_named(logs_folder: Path, tmp_path: Path) -> None:
    config = EtlConfig(cluster=ClusterConfig(address=f"tcp://127.0.0.1:{free_port()}"))
    with pytest.raises(ToolError, match=r"cluster\.address: no scheduler answers at tcp://127\.0\.0\.1"):
        run(logs.spec(), logs_folder, tmp_path / "etl", config)
