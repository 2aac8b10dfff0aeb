"""docs/contracts/snapshot.md, sentence by sentence, on a real ETL run and its logs."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xxhash
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.etl import pipeline
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.ids import IdMap, hash_strings
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.workflows.serving.steps.transform import TransformStep
from tests import logs

SPEC = logs.spec()
GOLDEN_IDS = json.loads((Path(__file__).parent / "fixtures" / "ids_golden.json").read_text("utf-8"))
IN_PROCESS = EtlConfig(cluster=ClusterConfig(workers=0, gpu=False))


def keys_of(strings: Any, spec: FeedSpec = SPEC) -> NDArray[np.uint64]:
    return hash_strings(list(strings), spec.key_seed)[0]


@pytest.fixture(scope="module")
def folder(etl_folder: Path) -> Path:
    return etl_folder / "snapshot"


@pytest.fixture(scope="module")
def snapshot(folder: Path) -> Snapshot:
    return Snapshot.load(folder)


@pytest.fixture(scope="module")
def fitted(logs_folder: Path) -> pd.DataFrame:
    """The rows of the two fitted days, as logged and joined."""
    return logs.read(logs_folder, SPEC, days=2)


def last_rows(fitted: pd.DataFrame, column: str) -> pd.DataFrame:
    """The last row of every id, in the snapshot's order."""
    last = fitted.sort_values("_time", kind="stable").groupby(column).tail(1)
    return last.iloc[np.argsort(keys_of(last[column]))]


def ragged(side: SnapshotSide, name: str) -> list[list[int]]:
    offsets, values = side.lists[name]
    return [part.tolist() for part in np.split(np.asarray(values), offsets[1:-1])]


@pytest.mark.parametrize("side", ["member", "post"])
def test_1_keys_are_the_ids_keys_ascending_unique_and_mapped(
    folder: Path, snapshot: Snapshot, fitted: pd.DataFrame, side: str
) -> None:
    keys = np.load(folder / side / "keys.npy", allow_pickle=False)
    logged = fitted[f"{side}_id"].unique()
    assert keys.dtype == np.uint64
    assert keys.tolist() == sorted(xxhash.xxh64_intdigest(text.encode(), SPEC.key_seed) for text in logged)
    opened = getattr(snapshot, side)
    assert isinstance(opened.keys, np.memmap)
    assert opened.find(keys).tolist() == list(range(len(keys)))
    assert opened.find(keys[:3] + np.uint64(1)).tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
    ("side", "features"), [("member", ["member_activity"]), ("post", ["post_age_hours", "post_length"])]
)
def test_2_dense_features_are_raw_as_last_logged_and_nan_for_null(
    folder: Path, fitted: pd.DataFrame, side: str, features: list[str]
) -> None:
    dense = np.load(folder / side / "dense.npy", allow_pickle=False)
    assert dense.dtype == np.float32
    np.testing.assert_array_equal(dense, last_rows(fitted, f"{side}_id")[features].to_numpy())
    assert np.isnan(dense).any() == (side == "post")


def test_3_every_other_id_is_its_key_as_last_logged(folder: Path, fitted: pd.DataFrame) -> None:
    creators = np.load(folder / "post" / "creator_id.npy", allow_pickle=False)
    assert creators.dtype == np.uint64
    assert creators.tolist() == keys_of(last_rows(fitted, "post_id")["creator_id"]).tolist()
    assert not (folder / "post" / "post_id.npy").exists()


def test_3_a_null_id_is_0(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=20)
    first = root / "impressions" / "day=2026-11-02" / "part-000.parquet"
    logs.change(first, creator_id=pa.array([None, ""] * 40))
    spec = logs.spec(logs={"surface": "surface", "actions": {}, "max_null_share": 1.0})
    pipeline.run(spec, root, tmp_path / "etl", IN_PROCESS)
    side = Snapshot.load(tmp_path / "etl" / "snapshot").post
    assert len(side.keys) > 0
    assert not np.asarray(side.ids["creator_id"]).any()


def test_4_lists_are_keys_between_offsets(folder: Path, snapshot: Snapshot, fitted: pd.DataFrame) -> None:
    for side, name in (("post", "hashtags"), ("member", "clicked_posts"), ("member", "liked_creators")):
        offsets, values = (np.load(folder / side / f"{name}{part}.npy") for part in (".offsets", ""))
        assert (offsets.dtype, values.dtype) == (np.int64, np.uint64)
        assert (offsets[0], offsets[-1]) == (0, len(values))
    want = [keys_of(tags).tolist() for tags in last_rows(fitted, "post_id")["hashtags"]]
    assert ragged(snapshot.post, "hashtags") == want
    assert {len(tags) for tags in want} >= {0, 4}  # as logged: max_length cuts when they are read


@pytest.mark.parametrize(
    ("name", "item", "response", "max_length"),
    [("clicked_posts", "post_id", "click", 3), ("liked_creators", "creator_id", "like", 2)],
)
def test_4_histories_are_most_recent_first_and_at_most_max_length(
    snapshot: Snapshot, fitted: pd.DataFrame, name: str, item: str, response: str, max_length: int
) -> None:
    lengths = set()
    for key, got in zip(snapshot.member.keys.tolist(), ragged(snapshot.member, name), strict=True):
        moment = f"t_{response}"
        events = fitted[(keys_of(fitted["member_id"]) == key) & (fitted[moment] > 0)]
        # Of one moment's events, the larger key counts as the later: any fixed rule will do.
        ordered = sorted(zip(events[moment], keys_of(events[item]).tolist(), strict=True), reverse=True)
        assert got == [k for _, k in ordered[:max_length]]
        lengths.add(len(got))
    assert max(lengths) == max_length


def test_5_the_header_states_what_the_arrays_are(folder: Path, snapshot: Snapshot, fitted: pd.DataFrame) -> None:
    last = int(fitted[["_time", "t_click", "t_like"]].to_numpy().max())
    assert json.loads((folder / "snapshot.json").read_text("utf-8")) == {
        "format": 1,
        "as_of": last + 1,
        "key_seed": 0,
        "spec_digest": SPEC.digest,
        "sides": {
            "member": {"count": 20, "ids": [], "lists": ["clicked_posts", "liked_creators"]},
            "post": {"count": 30, "ids": ["creator_id"], "lists": ["hashtags"]},
        },
    }
    assert (snapshot.as_of_ms, snapshot.key_seed, snapshot.spec_digest) == (last + 1, 0, SPEC.digest)


def test_5_one_snapshot_serves_another_id_map(etl_folder: Path, snapshot: Snapshot) -> None:
    plan = ServingPlan.load(etl_folder / "transform" / "plan.json")
    maps = {table.name: IdMap.load(etl_folder / "ids" / table.name) for table in SPEC.tables}
    posts = [f"p{i}" for i in reversed(range(30))]
    rebuilt = IdMap.build(keys_of(posts), np.ones(30, np.int64), table="post", key_seed=0, tail_rows=9)
    request = {"member_id": np.array([b"m1"], object), "post_ids": np.array([b"p1"], object)}
    history = {}
    for name, post in (("old", maps["post"]), ("new", rebuilt)):
        (answer,) = TransformStep("v1", plan, {**maps, "post": post}, snapshot, 10).run([request])
        assert not isinstance(answer, Exception)
        start = int(answer["NUMKEYS"][0, :2].sum())  # the history is the first feature of table `post`
        rows = answer["KEYS"][0, start : start + 3]
        history[name] = [text for row in rows for text in posts if post.encode([text])[0] == row]
    assert history["old"] == history["new"] != []


def test_5_a_header_of_another_format_and_arrays_of_another_snapshot_are_refused(tmp_path: Path) -> None:
    empty = SnapshotSide(np.zeros(0, np.uint64), np.zeros((0, 1), np.float32), {}, {})
    Snapshot(empty, empty, 1, 0, SPEC.digest).save(tmp_path / "snapshot")
    header = tmp_path / "snapshot" / "snapshot.json"
    value = json.loads(header.read_text("utf-8"))
    header.write_text(json.dumps(value | {"format": 2}))
    with pytest.raises(BundleError, match="format 2; this version reads 1; export the bundle again"):
        Snapshot.load(tmp_path / "snapshot")
    header.write_text(json.dumps(value))
    np.save(tmp_path / "snapshot" / "post" / "keys.npy", np.arange(3, dtype=np.uint64))
    with pytest.raises(BundleError, match=r"3 keys, but \{'dense': 0\} rows"):
        Snapshot.load(tmp_path / "snapshot")


def test_6_a_training_row_later_than_as_of_has_exactly_this_history(
    etl_folder: Path, snapshot: Snapshot, logs_folder: Path
) -> None:
    later = pd.read_parquet(sorted((etl_folder / "eval").glob("*.parquet"))[0])
    raw = pd.read_parquet(sorted(logs_folder.glob("impressions/day=2026-11-04/*.parquet"))[0])
    raw = raw.set_index("impression_id").loc[later["impression_id"]]
    assert raw["time"].min().timestamp() * 1000 > snapshot.as_of_ms
    at = snapshot.member.find(keys_of(raw["member_id"]))
    assert (at >= 0).all()
    for name, table in (("clicked_posts", "post"), ("liked_creators", "creator")):
        id_map, state = IdMap.load(etl_folder / "ids" / table), ragged(snapshot.member, name)
        want = [id_map.lookup(np.array(state[i], np.uint64)).tolist() for i in at]
        assert [rows.tolist() for rows in later[name]] == want


def test_7_an_unknown_member_has_empty_histories_and_filled_dense_features(
    etl_folder: Path, snapshot: Snapshot
) -> None:
    plan = ServingPlan.load(etl_folder / "transform" / "plan.json")
    maps = {table.name: IdMap.load(etl_folder / "ids" / table.name) for table in SPEC.tables}
    for stranger in (b"nobody", b""):
        assert snapshot.member.find(keys_of([stranger.decode()])).tolist() == [-1]
        request = {"member_id": np.array([stranger], object), "post_ids": np.array([b"p1"], object)}
        (answer,) = TransformStep("v1", plan, maps, snapshot, 10).run([request])
        assert not isinstance(answer, Exception)
        assert (answer["len_clicked_posts"].tolist(), answer["len_liked_creators"].tolist()) == ([0], [0])
        filled = (np.log1p(0.0) - plan.member_dense.mean[0]) / plan.member_dense.std[0]
        np.testing.assert_allclose(answer["member_dense"], [[filled]], rtol=1e-5)


def test_7_a_null_member_is_nobody(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=20)
    logs.change(root / "impressions" / "day=2026-11-02" / "part-000.parquet", member_id=pa.array([None, "m1"] * 40))
    spec = logs.spec(logs={"surface": "surface", "actions": {}, "max_null_share": 1.0})
    pipeline.run(spec, root, tmp_path / "etl", IN_PROCESS)
    assert Snapshot.load(tmp_path / "etl" / "snapshot").member.keys.tolist() == keys_of(["m1"]).tolist()


def test_8_ids_whose_keys_collide_share_the_row_of_the_later_write(tmp_path: Path) -> None:
    early, late = GOLDEN_IDS["collision"]
    spec = logs.spec(key_seed=GOLDEN_IDS["key_seed"], ips="none")
    root = logs.write(tmp_path / "logs", days=2, sessions=2)
    moments = [logs.START + timedelta(hours=hour) for hour in range(8)]
    logs.change(
        root / "impressions" / "day=2026-11-02" / "part-000.parquet",
        member_id=pa.array([early] * 4 + [late] * 4),
        member_activity=pa.array([1.0] * 4 + [2.0] * 4, pa.float32()),
        time=pa.array(moments, pa.timestamp("ms", "UTC")),
    )
    pipeline.run(spec, root, tmp_path / "etl", IN_PROCESS)
    members = Snapshot.load(tmp_path / "etl" / "snapshot").member
    assert members.keys.tolist() == keys_of([early], spec).tolist() == keys_of([late], spec).tolist()
    assert members.dense.tolist() == [[2.0]]


def test_9_the_overlay_is_asked_first_and_tells_the_moment(folder: Path, snapshot: Snapshot, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "snapshot")
    side = snapshot.post
    seen = SnapshotSide(
        side.keys[3:4],
        side.dense[3:4] + np.float32(1),
        {name: values[3:4] for name, values in side.ids.items()},
        {name: (np.zeros(2, np.int64), values[:0]) for name, (_, values) in side.lists.items()},
    )
    none = SnapshotSide(
        snapshot.member.keys[:0],
        snapshot.member.dense[:0],
        {},
        {name: (np.zeros(1, np.int64), values[:0]) for name, (_, values) in snapshot.member.lists.items()},
    )
    day = Snapshot(none, seen, snapshot.as_of_ms + 1, 0, SPEC.digest)
    snapshot.save_overlay(tmp_path / "snapshot", day)
    opened = Snapshot.load(tmp_path / "snapshot")
    assert opened.as_of_ms == snapshot.as_of_ms + 1
    whole = opened.whole()
    assert whole.post.keys.tolist() == side.keys.tolist()
    np.testing.assert_array_equal(whole.post.dense[3], side.dense[3] + 1)
    np.testing.assert_array_equal(np.delete(whole.post.dense, 3, axis=0), np.delete(side.dense, 3, axis=0))
    assert ragged(whole.post, "hashtags")[3] == []
    np.save(tmp_path / "snapshot" / "overlay" / "post" / "hashtags.offsets.npy", np.array([0, 1]))
    with pytest.raises(BundleError, match=r"overlay/post/hashtags\.offsets\.npy: must rise from 0 to 0"):
        Snapshot.load(tmp_path / "snapshot")
