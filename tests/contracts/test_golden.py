"""The golden fixtures: today's code writes them as they are tracked, and reads the tracked ones."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash

from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.workflow import training_columns
from sparsefeed.models.bundle import open_version, read_current, verify
from sparsefeed.models.delta import apply_delta, verify_delta
from sparsefeed.models.store.store import ParameterStore
from tests.contracts import golden
from tests.contracts.golden import FIXTURES, NAMES, SPEC

BUNDLE, DELTA = FIXTURES / "bundle", FIXTURES / "delta"
SNAPSHOT = FIXTURES / "snapshot"


def read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def key(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode(), SPEC.key_seed)


def files(root: Path) -> dict[str, Path]:
    """Every golden file of a folder, by its place."""
    tops = [root / name for name in NAMES]
    found = (path for top in tops for path in (top, *top.rglob("*")))
    return {str(path.relative_to(root)): path for path in found if path.is_file()}


@pytest.fixture(scope="module")
def anew(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fixtures as today's code writes them."""
    out = tmp_path_factory.mktemp("anew") / "fixtures"
    golden.write(out)
    return out


def assert_same(got: Any, want: Any, where: str) -> None:
    """JSON values that are equal, floats to the rounding of another machine's sums."""
    if isinstance(want, dict):
        assert list(got) == list(want), where
        for name in want:
            assert_same(got[name], want[name], f"{where}.{name}")
    elif isinstance(want, list):
        assert len(got) == len(want), where
        for i, (one, other) in enumerate(zip(got, want, strict=True)):
            assert_same(one, other, f"{where}[{i}]")
    elif isinstance(want, float):
        assert got == pytest.approx(want, rel=1e-5, abs=1e-6), where
    else:
        assert got == want, where


def content(path: Path) -> Any:
    """What must not change in a file. Not the bytes of ONNX and parquet, which name their writer's version, nor the
    digests over them: answers.json holds what the graphs compute.
    """
    if path.suffix == ".json":
        value = read_json(path)
        return {**value, "parent_digest": None} if path.name == "delta.json" else value
    if path.suffix == ".npy":
        array = np.load(path, allow_pickle=False)
        return [str(array.dtype), array.shape, array.tobytes()]
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pydict()
    if path.name == "SHA256SUMS":
        return [line.split("  ")[1] for line in path.read_text("utf-8").splitlines()]
    return None if path.suffix == ".onnx" or path.name == "READY" else path.read_text("utf-8")


def test_todays_code_writes_them_as_they_are_tracked(anew: Path) -> None:
    tracked, written = files(FIXTURES), files(anew)
    assert sorted(written) == sorted(tracked)
    for name, path in tracked.items():
        assert_same(content(written[name]), content(path), name)


def test_the_spec_is_the_one_they_were_made_from() -> None:
    assert FeedSpec.load(FIXTURES / "spec.json") == SPEC
    assert (FIXTURES / "spec.json").read_text("utf-8") == SPEC.dump()


def test_the_training_rows_are_what_the_logs_say() -> None:
    columns, rows = (read_json(FIXTURES / "training" / f"{name}.json") for name in ("columns", "rows"))
    assert [column["name"] for column in columns] == training_columns(SPEC)
    row_of = {row["impression_id"]: row for row in rows}
    assert [row_of[i]["y_click"] for i in golden.IMPRESSIONS] == [0, 0, 1, 0, 0]
    assert [row_of[i]["y_like"] for i in golden.IMPRESSIONS] == [0, 0, 1, 0, 0]
    assert [row_of[i]["position"] for i in golden.IMPRESSIONS] == [1, 2, 2, 2, 4]
    assert [row_of[i]["random"] for i in golden.IMPRESSIONS] == [0, 0, 1, 0, 0]
    # Impression 53 shows p5 by c5 (no hashtags) to m8, who had clicked p0 that morning and liked nothing.
    maps = {table.name: IdMap.load(open_version(BUNDLE).ids(table.name)) for table in SPEC.tables}
    p0, p5 = maps["post"].encode(["p0", "p5"]).tolist()
    (m8,), (c5,) = maps["member"].encode(["m8"]).tolist(), maps["creator"].encode(["c5"]).tolist()
    late = row_of[53]
    assert (late["member_id"], late["post_id"], late["creator_id"], late["hashtags"]) == (m8, p5, c5, [])
    assert (late["clicked_posts"], late["liked_creators"]) == ([p0], [])
    # 63 shows p29, whose fourth hashtag is beyond max_length.
    assert row_of[63]["hashtags"] == maps["hashtag"].encode(["h4", "h2", "h0"]).tolist()


def test_the_snapshot_holds_what_the_logs_last_said() -> None:
    snapshot = Snapshot.load(SNAPSHOT)
    last = datetime(2026, 11, 3, 21, 31, 10, tzinfo=timezone.utc)  # m7 liked p25
    assert snapshot.as_of_ms == int(last.timestamp() * 1000) + 1
    assert (snapshot.key_seed, snapshot.spec_digest) == (SPEC.key_seed, SPEC.digest)
    assert len(snapshot.member.keys) == 12
    shown = [key(f"p{i}") for i in range(30) if i != 12]  # on the first two days
    assert snapshot.post.keys.tolist() == sorted(shown)

    def row(side: SnapshotSide, text: str) -> dict[str, Any]:
        (at,) = side.find(np.array([key(text)], np.uint64)).tolist()
        assert at >= 0, text
        lists = {name: values[slice(*offsets[at : at + 2])].tolist() for name, (offsets, values) in side.lists.items()}
        ids = {name: int(values[at]) for name, values in side.ids.items()}
        return {"dense": side.dense[at].tolist(), **ids, **lists}

    member = {
        "m7": (7.0, ["p25"], ["c4"]),
        "m8": (8.0, ["p0"], []),
        "m10": (10.0, [], []),
    }
    for text, (activity, clicked, liked) in member.items():
        state = {"clicked_posts": [key(post) for post in clicked], "liked_creators": [key(c) for c in liked]}
        assert row(snapshot.member, text) == {"dense": [activity], **state}
    # m14 clicked p16 and p2 in one moment; their order among themselves is free.
    assert set(row(snapshot.member, "m14")["clicked_posts"]) == {key("p16"), key("p2")}
    post = {
        "p0": (1.0, 0.0, "c0", []),  # as of its later impression, 32; when 4 was shown it was 0 hours old
        "p29": (30.0, 290.0, "c1", ["h4", "h2", "h0", "h1"]),
    }
    for text, (age, length, creator, hashtags) in post.items():
        ids = {"creator_id": key(creator), "hashtags": [key(hashtag) for hashtag in hashtags]}
        assert row(snapshot.post, text) == {"dense": [age, length], **ids}
    np.testing.assert_array_equal(row(snapshot.post, "p3")["dense"], [np.nan, 30.0])
    assert snapshot.member.find(np.array([key("m0")], np.uint64)).tolist() == [-1]


def test_the_bundle_is_whole_and_the_current_one() -> None:
    bundle = open_version(BUNDLE)
    assert bundle.id == read_current(BUNDLE) == "v1"
    assert verify(bundle.path) == bundle.digest
    assert bundle.manifest.spec_digest == SPEC.digest


def test_the_lookup_gives_its_vectors_bit_for_bit() -> None:
    keys, num_keys, vectors = (np.load(FIXTURES / "lookup" / f"{name}.npy") for name in ("KEYS", "NUMKEYS", "OUTPUT0"))
    tables = open_version(BUNDLE).tables
    got = ParameterStore.open(tables).lookup(keys[0], num_keys[0])
    assert (got.dtype, got.tobytes()) == (vectors.dtype, vectors.tobytes())
    # The same, from the bytes of the files (docs/contracts/tables.md, sentence 5).
    expected, start = [], 0
    for table, count in zip(SPEC.tables, num_keys[0].tolist(), strict=True):
        stored = np.load(tables / f"{table.name}.npy")[keys[0, start : start + count]]
        scale, bias = np.ascontiguousarray(stored[:, table.dim :]).view("<f4").T[..., None]
        expected.append((stored[:, : table.dim].astype(np.float32) * scale + bias).ravel())
        start += count
    np.testing.assert_array_equal(vectors, np.concatenate(expected))


def assert_answers(folder: Path) -> None:
    want = read_json(FIXTURES / "answers.json")
    assert want["request"] == golden.REQUEST
    assert_same(golden.plain(golden.answer(folder)), want[folder.name], folder.name)


def test_the_steps_give_the_bundles_answers() -> None:
    folder = open_version(BUNDLE).path
    assert_answers(folder)
    tensors = golden.answer(folder)
    for name in ("KEYS", "NUMKEYS", "OUTPUT0"):
        np.testing.assert_array_equal(tensors[name], np.load(FIXTURES / "lookup" / f"{name}.npy"))


def test_the_delta_makes_the_version_that_gives_the_refreshed_answers(tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(BUNDLE, root)
    assert apply_delta(root, DELTA) == "v2"
    verify(open_version(root, "v2").path)
    assert_answers(root / "versions" / "v2")
    assert_answers(root / "versions" / "v1")
    assert read_current(root) == "v1"


def test_the_delta_changes_p0_gives_p99_a_row_and_takes_p3s() -> None:
    delta = verify_delta(DELTA)
    (p0,) = IdMap.load(open_version(BUNDLE).ids("post")).encode(["p0"]).tolist()
    assert delta.rows["post"].rows.tolist() == [p0, golden.NEW_ROW]
    assert delta.ids["post"].upserts.tolist() == [key("p99")]
    assert delta.ids["post"].deletes.tolist() == [key("p3")]
    assert delta.manifest.capacity_rows == {"member": 64, "creator": 64, "post": 128, "hashtag": 64}
