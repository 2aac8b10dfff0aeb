"""Logs behind URLs: the same rows, no more bytes than needed, and errors that name the URL."""

from __future__ import annotations

import json
import pickle
import shutil
import socketserver
import sys
import threading
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from sparsefeed.errors import BadFileError, DataError, ToolError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.days import AddedDays
from sparsefeed.etl.explain import explain
from sparsefeed.etl.logs import LogFolder, Piece
from sparsefeed.etl.parquet import read_pieces
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.stored_file import StoredFile, find_files
from sparsefeed.workflows.cli import app
from sparsefeed.workflows.measure import real_requests
from tests import logs
from tests.conftest import CONFIG as CLUSTER
from tests.object_store import Store, open_store
from tests.ports import free_port

SPEC = logs.spec()
CONFIG = EtlConfig(cluster=ClusterConfig(workers=0), row_group_rows=100)
SKIP = CONFIG.model_copy(update={"on_bad_file": "skip"})
FIRST = "impressions/day=2026-11-02/part-000.parquet"
SECOND = "impressions/day=2026-11-03/part-000.parquet"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    root = tmp_path_factory.mktemp("store")
    (root / "buckets").mkdir()
    with open_store(root / "buckets", root / "record.txt") as store:
        yield store


@pytest.fixture
def store(running: Store) -> Iterator[Store]:
    """Two days of logs in the bucket `logs`, nothing asked for yet."""
    logs.write(running.folder / "logs", days=2, sessions=40)
    running.forget()
    yield running
    for bucket in running.folder.iterdir():
        shutil.rmtree(bucket)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4:3000] = b"\x00" * 2996
    path.write_bytes(bytes(data))


def assert_same_result(one: Path, other: Path) -> None:
    names = [sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) for root in (one, other)]
    assert names[0] == names[1]
    for name in names[0]:
        if name != "etl.json":  # its seconds differ, and where the logs lay
            assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_file_url_is_the_path(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=40)
    summary = run(SPEC, root, tmp_path / "one", CONFIG)
    other = run(SPEC, f"file://{root}/", tmp_path / "other", CONFIG)
    assert_same_result(tmp_path / "one", tmp_path / "other")
    assert other["logs"] == summary["logs"] == str(root)
    assert other["fingerprint"] == summary["fingerprint"]


def test_workers_read_from_a_store_what_they_read_from_a_folder(store: Store, tmp_path: Path) -> None:
    root, url = store.folder / "logs", f"{store.url}/logs"
    assert explain(SPEC, url, CLUSTER) == explain(SPEC, root, CLUSTER)
    run(SPEC, root, tmp_path / "one", CONFIG)
    summary = run(SPEC, url, tmp_path / "other", CLUSTER)
    assert_same_result(tmp_path / "one", tmp_path / "other")
    assert summary["logs"] == url
    store.forget()
    assert run(SPEC, url, tmp_path / "other", CLUSTER) == summary  # nothing to do
    assert len(store.requests()) == 4  # a footer of each file
    assert real_requests(SPEC, url, 10, 3) == real_requests(SPEC, root, 10, 3)


def test_a_day_is_added_from_a_store_as_from_a_folder(store: Store, tmp_path: Path) -> None:
    logs.write(store.folder / "logs", days=3, sessions=40)
    for root, out in ((store.folder / "logs", tmp_path / "one"), (f"{store.url}/logs", tmp_path / "other")):
        run(SPEC, root, out / "etl", CONFIG.model_copy(update={"until": date(2026, 11, 3)}))
        AddedDays(out / "etl", out / "days").add(SPEC, root, date(2026, 11, 3), CONFIG)
    assert_same_result(tmp_path / "one" / "days" / "2026-11-03", tmp_path / "other" / "days" / "2026-11-03")


def test_the_command_line_takes_a_url(store: Store, tmp_path: Path) -> None:
    recipe = tmp_path / "feed.yaml"
    recipe.write_text(json.dumps({"feed": json.loads(SPEC.dump())}))
    arguments = ["etl", "--recipe", str(recipe), "--workspace", str(tmp_path), "--logs", f"{store.url}/logs"]
    result = CliRunner().invoke(app, [*arguments, "--explain"])
    assert result.exit_code == 0, result.output
    assert "repeats" in result.output
    assert list(tmp_path.iterdir()) == [recipe]


def test_a_file_that_changed_is_read_again(store: Store, tmp_path: Path) -> None:
    summary = run(SPEC, f"{store.url}/logs", tmp_path / "etl", CONFIG)
    path = store.folder / "logs" / FIRST
    pq.write_table(pq.read_table(path).slice(4), path)
    again = run(SPEC, f"{store.url}/logs", tmp_path / "etl", CONFIG)
    assert again["num_train_rows"] == summary["num_train_rows"] - 4


def test_only_the_chunks_of_the_asked_columns_travel(store: Store) -> None:
    random = np.random.default_rng(0)
    columns = {f"c{i}": random.integers(0, 2**62, 40_000) for i in range(10)}
    path = store.folder / "wide" / "day=2026-11-02" / "a.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table(columns), path, row_group_size=20_000, use_dictionary=False)
    (file,) = find_files(f"{store.url}/wide", "day=*/*.parquet")
    store.forget()
    ((_, table),) = read_pieces([Piece(file, (0, 1), 0)], ["c2", "c7"], [])
    assert table.equals(pq.read_table(path, columns=["c2", "c7"]))
    footer = pq.read_metadata(path)
    chunks = sum(footer.row_group(g).column(c).total_compressed_size for g in (0, 1) for c in (2, 7))
    asked = store.requests()
    assert len(asked) == 1 + 2 * 2  # the end of the file with its footer, and two chunks of each row group
    assert sum(request.num_bytes for request in asked) <= chunks + (64 << 10)
    assert len(store.requests("HEAD")) == 1  # whether it is still what it was
    store.forget()
    ((_, table),) = read_pieces([Piece(file, (1,), 20_000)], ["c3", "c4"], [])
    assert len(table) == 20_000
    assert len(store.requests()) == 2  # neighbours come in one


def test_pieces_that_are_fetched_side_by_side_keep_their_order(store: Store) -> None:
    folder = store.folder / "parts" / "day=2026-11-02"
    folder.mkdir(parents=True)
    for i in range(12):
        pq.write_table(pa.table({"i": [i] * (1 + 3000 * (i % 3 == 0))}), folder / f"{i:02}.parquet")
    (folder / "_temporary").mkdir()
    pq.write_table(pa.table({"i": [0]}), folder / "_temporary" / "half.parquet")
    files = find_files(f"{store.url}/parts", "day=*/*.parquet")
    tables = read_pieces([Piece(file, (0,), 0) for file in files], ["i"], [])
    assert [table["i"][0].as_py() for _, table in tables] == list(range(12))


@pytest.mark.parametrize("what", ["gone", "changed", "shorter"])
def test_a_file_that_is_not_what_it_was_is_named(store: Store, tmp_path: Path, what: str) -> None:
    path = store.folder / "logs" / SECOND

    def spoil(done: int, total: int, doing: str) -> None:
        if done != 1 or not path.exists():
            return
        if what == "gone":
            path.unlink()
        elif what == "changed":
            pq.write_table(pq.read_table(path).slice(1), path)
        else:
            path.write_bytes(path.read_bytes()[:1000])

    url = f"{store.url}/logs/{SECOND}"
    expected = "is not there any more" if what == "gone" else "was changed since the run began"
    with pytest.raises(BadFileError, match=f"^{url}: {expected}"):
        run(SPEC, f"{store.url}/logs", tmp_path / "etl", CONFIG, spoil)
    assert not (tmp_path / "etl").exists()


def test_remote_files_that_cannot_be_read_may_be_skipped(store: Store, tmp_path: Path) -> None:
    root, url = store.folder / "logs", f"{store.url}/logs"
    for name in ("pages", "footer", "gone"):
        table = pq.read_table(root / FIRST)
        ids = pa.array(range(10_000 * len(name), 10_000 * len(name) + len(table)))
        pq.write_table(table.set_column(0, "impression_id", ids), root / FIRST.replace("part-000", name))
    bad = {name: root / FIRST.replace("part-000", name) for name in ("pages", "footer", "gone")}
    whole = bad["pages"].read_bytes()
    damage(bad["pages"])
    bad["footer"].write_bytes(bad["footer"].read_bytes()[:-20])

    def remove(done: int, total: int, doing: str) -> None:
        if done == 1:
            bad["gone"].unlink(missing_ok=True)

    summary = run(SPEC, url, tmp_path / "etl", SKIP, remove)
    urls = {name: f"{url}/{FIRST.replace('part-000', name)}" for name in bad}
    skipped = {file["file"]: file["rows"] for file in summary["skipped"]}
    assert skipped == {urls["pages"]: 160, urls["footer"]: None, urls["gone"]: None}
    assert summary["num_train_rows"] == 160
    assert run(SPEC, url, tmp_path / "etl", SKIP) == summary  # nothing to do
    bad["pages"].write_bytes(whole)
    mended = run(SPEC, url, tmp_path / "etl", SKIP)
    assert [file["file"] for file in mended["skipped"]] == [urls["footer"]]
    assert mended["num_train_rows"] == 320


def test_a_file_that_changed_in_the_middle_and_was_skipped_is_read_the_next_time(store: Store, tmp_path: Path) -> None:
    more = store.folder / "logs" / FIRST.replace("000", "001")
    table = pq.read_table(store.folder / "logs" / FIRST)
    table = table.set_column(0, "impression_id", pa.array(range(10_000, 10_000 + len(table))))
    pq.write_table(table, more)

    def change(done: int, total: int, doing: str) -> None:
        if done == 1:
            pq.write_table(table.slice(8), more)

    first = run(SPEC, f"{store.url}/logs", tmp_path / "etl", SKIP, change)
    assert [file["rows"] for file in first["skipped"]] == [152]
    assert first["num_train_rows"] == 160
    second = run(SPEC, f"{store.url}/logs", tmp_path / "etl", SKIP)
    assert (second["skipped"], second["num_train_rows"]) == ([], 312)


def test_a_listing_that_escapes_names_is_understood(store: Store) -> None:
    shutil.copytree(store.folder / "logs", store.folder / "escaped")
    opened = LogFolder.open(f"{store.url}/escaped", logs.spec())
    assert opened.days == LogFolder.open(store.folder / "logs", logs.spec()).days
    assert all("day%3D" in file.path for file in opened.impressions)


def test_a_wrong_bucket_is_named(store: Store) -> None:
    with pytest.raises(DataError, match=r"/no-bucket/impressions: no day=YYYY-MM-DD/\*\.parquet, or no such place"):
        LogFolder.open(f"{store.url}/no-bucket", SPEC)


@pytest.mark.parametrize("config", [CONFIG, SKIP])
def test_a_store_that_refuses_or_is_silent_stops_the_run_whatever_may_be_skipped(
    store: Store, tmp_path: Path, config: EtlConfig
) -> None:
    (store.folder / "logs").rename(store.folder / "denied")
    with pytest.raises(DataError, match=r"denied/impressions: the store refuses or does not answer .*403.*credentials"):
        run(SPEC, f"{store.url}/denied", tmp_path / "etl", config)
    nobody = f"http://127.0.0.1:{free_port()}/logs"
    with pytest.raises(DataError, match=f"{nobody}/impressions: the store refuses or does not answer"):
        run(SPEC, nobody, tmp_path / "etl", config)


def test_a_store_that_is_lost_in_the_middle_is_no_bad_file(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "buckets" / "logs", days=2, sessions=10)
    with open_store(root.parent, tmp_path / "record.txt") as lost:
        (partition, *_) = LogFolder.open(f"{lost.url}/logs", SPEC).partitions(1000)
    with pytest.raises(DataError, match=r"part-000.parquet: the store refuses or does not answer") as caught:
        list(read_pieces(partition.pieces, ["click"], []))
    assert not isinstance(caught.value, BadFileError)


def test_a_store_that_hangs_up_does_not_say_that_a_file_is_gone() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as deaf:
        threading.Thread(target=deaf.serve_forever, daemon=True).start()
        with pytest.raises(DataError, match=r"a\.parquet: the store refuses or does not answer"):
            StoredFile.at(f"http://127.0.0.1:{deaf.server_address[1]}/a.parquet")
        deaf.shutdown()


@pytest.mark.parametrize(
    ("url", "says"), [("s3://bucket/logs", "Install s3fs to access S3"), ("s4://b", "Protocol not known: s4")]
)
def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, url: str, says: str) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)  # as if it were not installed
    with pytest.raises(ToolError, match=f"{url}/impressions: no driver reads it here \\({says}\\)"):
        LogFolder.open(url, SPEC)


def test_a_file_travels_to_workers_and_its_identity_into_json(store: Store) -> None:
    file = StoredFile.at(f"{store.url}/logs/{FIRST}")
    assert pickle.loads(pickle.dumps(file)) == file
    assert json.loads(json.dumps(file.identity)) == file.identity
    assert file.size == (store.folder / "logs" / FIRST).stat().st_size
    assert StoredFile.at(f"{store.url}/logs/none.parquet").identity is None


def test_rows_that_are_read_over_http_are_those_of_the_path(store: Store) -> None:
    frames = [logs.read(root, SPEC) for root in (store.folder / "logs", f"{store.url}/logs")]
    pd.testing.assert_frame_equal(*frames)
