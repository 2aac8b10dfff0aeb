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

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from merlin.core.utils import global_dask_client

from sparsefeed.errors import BadFileError, DataError, ToolError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.days import AddedDays
from sparsefeed.etl.ids import Inverse
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.pipeline import run
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


_KILLED_RUN = """
import os, signal, sys
from datetime import date
from pathlib import Path
from sparsefeed.etl.days import AddedDays
from sparsefeed.etl.pipeline import run
from tests import logs
from tests.etl.test_pipeline import CONFIG

def kill(done, total, what):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

root = Path(sys.argv[1])
if len(sys.argv) > 3:
    AddedDays(root / "etl", root / "days").add(logs.spec(), root / "logs", date(2026, 11, 3), CONFIG, kill)
else:
    run(logs.spec(), root / "logs", root / "etl", CONFIG, kill)
"""


def test_a_run_that_is_killed_is_made_anew_and_leaves_the_old_result(folder: Path, tmp_path: Path) -> None:
    days = AddedDays(tmp_path / "etl", tmp_path / "days")
    old = run(logs.spec(), folder, tmp_path / "etl", CONFIG)

    def killed(*words: str) -> None:
        command = [sys.executable, "-c", _KILLED_RUN, str(tmp_path), *words]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL

    killed("2", "day")  # while it writes
    assert [path.name for path in (tmp_path / "days").iterdir()] == [".2026-11-03.partial"]
    added = days.add(logs.spec(), folder, date(2026, 11, 3), CONFIG)
    assert [path.name for path in (tmp_path / "days").iterdir()] == ["2026-11-03"]
    run(logs.spec(), folder, tmp_path / "whole", CONFIG.model_copy(update={"until": date(2026, 11, 3)}))
    assert added["num_train_rows"] == len(logs.training_rows(tmp_path / "whole" / "eval"))
    logs.change(folder / FIRST, post_length=pa.array(range(160), pa.float32()))
    for step in ("1", "3"):  # while it fits, and while it writes the last rows
        killed(step)
        assert json.loads((tmp_path / "etl" / "etl.json").read_text()) == old
    new = run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    assert new["fingerprint"] != old["fingerprint"]
    assert not list(tmp_path.glob(".etl*"))
    run(logs.spec(), folder, tmp_path / "again", CONFIG)
    for part in sorted((tmp_path / "etl").glob("*/*.parquet")):
        assert pq.read_table(part).equals(pq.read_table(tmp_path / "again" / part.relative_to(tmp_path / "etl")))


def test_a_response_that_nothing_is_counted_for_is_named(folder: Path, tmp_path: Path) -> None:
    responses = [{"name": "click", "column": "click"}, {"name": "lke"}]
    features = [
        f for f in logs.spec().model_dump(mode="json", exclude_unset=True)["features"] if f.get("response") != "like"
    ]
    summary = run(logs.spec(responses=responses, features=features), folder, tmp_path / "etl", CONFIG)
    assert (
        'response "lke": no impression has one; look at its name, and at its column or the actions'
        in summary["warnings"]
    )
    assert not [warning for warning in summary["warnings"] if 'response "click"' in warning]


def test_times_in_another_unit_are_refused_with_the_file(folder: Path, tmp_path: Path) -> None:
    path = folder / FIRST
    micros = pq.read_table(path)["time"].cast(pa.int64()).to_numpy() * 1000
    logs.change(path, time=pa.array(micros))
    with pytest.raises(
        DataError, match=r"part-000.parquet: column \"time\": every time is more than 366 days from 2026-11-02"
    ):
        run(logs.spec(), folder, tmp_path / "etl", CONFIG)


def test_no_file_stays_open_after_a_run(folder: Path, tmp_path: Path) -> None:
    run(logs.spec(), folder, tmp_path / "first", CONFIG)  # what libraries open once
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(logs.spec(), folder, tmp_path / "second", CONFIG)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


def test_no_random_session_is_an_error_and_nothing_is_published(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("impressions/*/*.parquet"):
        logs.change(path, session=pa.array(["production"] * len(pq.read_table(path))))
    with pytest.raises(DataError, match=r'ips: no row has session = "random"; .* or set ips: none'):
        run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    assert not (tmp_path / "etl").exists()


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
        one, other = (logs.training_rows(tmp_path / n / name).sort_values("impression_id") for n in ("one", "other"))
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
        pd.testing.assert_frame_equal(
            logs.training_rows(tmp_path / "etl" / name), logs.training_rows(tmp_path / "alone" / name)
        )
    with pytest.raises(DataError, match=r"no impressions from 2027-01-01 to the last; there are days 2026-11-03 to"):
        run(logs.spec(), root, tmp_path / "none", CONFIG.model_copy(update={"since": date(2027, 1, 1)}))


def test_days_before_train_from_are_fitted_on_and_looked_back_at_but_not_written(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=4, sessions=40)
    whole = run(logs.spec(), root, tmp_path / "whole", CONFIG)
    summary = run(logs.spec(), root, tmp_path / "etl", CONFIG.model_copy(update={"train_from": date(2026, 11, 4)}))
    assert summary["days_before"] == ["2026-11-02", "2026-11-03"]
    assert (summary["train_days"], summary["eval_days"]) == (["2026-11-04"], ["2026-11-05"])
    assert (whole["num_train_rows"], summary["num_train_rows"]) == (480, 160)
    rows = {name: logs.training_rows(tmp_path / name / "train").set_index("impression_id") for name in ("whole", "etl")}
    later = rows["whole"].loc[rows["etl"].index]
    assert later["clicked_posts"].map(len).mean() > 1
    pd.testing.assert_frame_equal(rows["etl"], later)  # the same ids, moments, weights and histories
    pd.testing.assert_frame_equal(*(logs.training_rows(tmp_path / name / "eval") for name in ("whole", "etl")))
    for name in ("ips.parquet", "transform/plan.json", "snapshot/snapshot.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "etl" / name).read_bytes()
    message = r"2026-11-02 to 2026-11-04, train_from = 2026-11-05: none is left; mend etl.train_from"
    with pytest.raises(DataError, match=message):
        run(logs.spec(), root, tmp_path / "none", CONFIG.model_copy(update={"train_from": date(2026, 11, 5)}))


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
    train = logs.training_rows(tmp_path / "etl" / "train").set_index("impression_id").sort_index()
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
