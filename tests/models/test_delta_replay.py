"""Deltas: chains of random ones against plain dicts, and every fault that must be refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.etl.ids import IdMap
from sparsefeed.models.bundle import Bundle, open_version, publish_version, seal, verify, versions
from sparsefeed.models.delta import RowChange, apply_delta, verify_delta, write_delta
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat
from sparsefeed.models.store.store import ParameterStore, write_tables
from tests import bundles
from tests.bundles import DIMS, FIRST_ROW, KEYS, NUM_IDS, TAIL_ROWS
from tests.children import ask_child

FRESH_KEYS = [int(key) for key in np.arange(1, 31, dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)]


@dataclass
class Truth:
    """What a table must answer: each key's row, and each row's vector."""

    dim: int
    row_of: dict[int, int]
    vectors: NDArray[np.float32]
    next_row: int = FIRST_ROW + NUM_IDS
    deleted: set[int] = field(default_factory=set)

    def grow(self, row: int) -> None:
        while len(self.vectors) <= row:
            self.vectors = np.concatenate([self.vectors, np.zeros_like(self.vectors)])


def check(bundle: Bundle, truths: Mapping[str, Truth], scratch: Path) -> None:
    """The version answers what one written whole from the truth answers, bit for bit."""
    row_format = bundle.manifest.row_format
    write_tables(scratch, {name: truth.vectors for name, truth in truths.items()}, row_format, list(DIMS))
    whole, store = ParameterStore.open(scratch), ParameterStore.open(bundle.tables)
    assert [(t.name, t.dim, t.rows) for t in store.tables] == [(t.name, t.dim, t.rows) for t in whole.tables]
    keys = np.concatenate([np.arange(len(truth.vectors)) for truth in truths.values()])
    num_keys = np.array([len(truth.vectors) for truth in truths.values()], np.int32)
    np.testing.assert_array_equal(store.lookup(keys, num_keys), whole.lookup(keys, num_keys))
    for name, truth in truths.items():
        id_map = IdMap.load(bundle.ids(name))
        known = np.array(list(truth.row_of), np.uint64)
        np.testing.assert_array_equal(id_map.lookup(known), list(truth.row_of.values()))
        deleted = np.array(sorted(truth.deleted), np.uint64)
        np.testing.assert_array_equal(id_map.lookup(deleted), 2 + deleted % TAIL_ROWS)
    verify(bundle.path)


@pytest.mark.parametrize("row_format", ROW_FORMATS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_chain_of_deltas_answers_what_a_bundle_written_whole_answers(
    tmp_path_factory: pytest.TempPathFactory, row_format: RowFormat, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("chain")
    bundle = bundles.publish(root, "v0", row_format)
    truths = {
        name: Truth(
            dim,
            dict(zip(KEYS.tolist(), IdMap.load(bundle.ids(name)).lookup(KEYS).tolist(), strict=True)),
            bundles.values(dim),
        )
        for name, dim in DIMS.items()
    }
    check(bundle, truths, root / "whole-0")
    for sequence in range(1, data.draw(st.integers(1, 3), label="deltas") + 1):
        rows, ids = {}, {}
        for name in data.draw(st.sets(st.sampled_from(list(DIMS))), label="tables"):
            truth = truths[name]
            deletes = data.draw(st.sets(st.sampled_from(sorted(truth.row_of)), max_size=5), label="deletes")
            absent = [key for key in FRESH_KEYS + KEYS.tolist() if key not in truth.row_of]
            added = data.draw(st.lists(st.sampled_from(absent), unique=True, max_size=20), label="adds")
            upserts = {key: truth.next_row + i for i, key in enumerate(added)}
            touched = data.draw(st.sets(st.integers(1, len(truth.vectors) - 1), max_size=10), label="rows")
            changed = sorted(touched | set(upserts.values()))
            truth.next_row += len(upserts)
            truth.row_of = {key: row for key, row in truth.row_of.items() if key not in deletes} | upserts
            truth.deleted = (truth.deleted | deletes) - set(upserts)
            truth.grow(max(changed, default=0))
            truth.vectors[changed] = bundles.values(truth.dim, len(changed) + 1, seed=sequence)[1:]
            rows[name] = bundles.rows_of(changed, truth.vectors[changed])
            ids[name] = bundles.ids_of(upserts, sorted(deletes))
        parent_tree = bundles.tree(bundle.path)
        bundles.delta(bundle, f"v{sequence}", root / f"delta-{sequence}", rows, ids, seed=sequence)
        assert apply_delta(root, root / f"delta-{sequence}") == f"v{sequence}"
        assert bundles.tree(bundle.path) == parent_tree
        bundle = open_version(root, f"v{sequence}")
        check(bundle, truths, root / f"whole-{sequence}")


@dataclass
class Site:
    """A root with v1, and a delta v1 -> v2 that was not applied yet."""

    root: Path
    parent: Bundle
    delta: Path

    def refuses(self, message: str) -> None:
        before = bundles.tree(self.root)
        with pytest.raises(BundleError, match=message):
            apply_delta(self.root, self.delta)
        assert bundles.tree(self.root) == before

    def rewrite(self, **changes: Any) -> None:
        """Change fields of delta.json and seal again, as a faulty writer would."""
        path = self.delta / "delta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        self.reseal()

    def reseal(self) -> None:
        for name in ("SHA256SUMS", "READY"):
            (self.delta / name).unlink()
        seal(self.delta)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    parent = bundles.publish(tmp_path / "root")
    ids = {"post": bundles.ids_of({FRESH_KEYS[0]: FIRST_ROW + NUM_IDS}, [int(KEYS[3])])}
    rows = {"post": bundles.rows_of([7, FIRST_ROW + NUM_IDS], bundles.values(8, 3, seed=5)[1:])}
    bundles.delta(parent, "v2", tmp_path / "delta", rows, ids)
    return Site(tmp_path / "root", parent, tmp_path / "delta")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parent_digest": "0" * 64}, "parent_digest: got 0000"),
        ({"sequence": 2}, "sequence: got 2; .*must be 1"),
        ({"parent": "v0"}, 'is delta 1 of "v0", which is not in .*there are: v1'),
        ({"spec_digest": "f" * 16}, "spec_digest: got f"),
        ({"row_format": "fp32"}, "row_format: got fp32; .*must be int8"),
        ({"capacity_rows": {"member": 64, "post": 64, "posts": 64}}, '"posts" is not a table .*did you mean "post"'),
        ({"capacity_rows": {"member": 64}}, 'capacity_rows of "post": got 0; must be at least 64'),
        ({"capacity_rows": {"member": 64, "post": 32}}, 'capacity_rows of "post": got 32'),
        ({"stepp": 3}, '"stepp" is not a key'),
        ({"format": 2}, "format: got 2"),
        ({"sequence": 0}, "sequence: got 0"),
        ({"id": "v.2"}, "got 'v.2'; string should match"),
    ],
)
def test_a_delta_json_that_does_not_fit_is_refused(site: Site, changes: dict[str, Any], message: str) -> None:
    site.rewrite(**changes)
    site.refuses(message)


@pytest.mark.parametrize(
    ("file", "array", "message"),
    [
        ("tables/post.rows.npy", np.array([7, 7]), "ascending and unique"),
        ("tables/post.rows.npy", np.array([9, 7]), "ascending and unique"),
        ("tables/post.rows.npy", np.array([0, 7]), "row 0 is padding"),
        ("tables/post.rows.npy", np.array([7, 9], np.int32), "must be int64"),
        ("tables/post.rows.npy", np.array([7, 64]), "row 64 is not below its capacity_rows, 64"),
        ("tables/post.values.npy", np.zeros((3, 8), np.float32), r"must be float32 \[2, dim\]"),
        ("tables/post.values.npy", np.zeros((2, 8)), "got float64"),
        ("tables/post.values.npy", np.zeros((2, 4), np.float32), "got dim 4; it has 8"),
        ("tables/post.values.npy", np.full((2, 8), np.nan, np.float32), "NaN"),
        ("tables/posts.rows.npy", np.array([7]), r"posts\.values\.npy: missing"),
        ("tables/post.value.npy", np.array([7]), r"post\.value\.npy: extra"),
        ("ids/post.upserts.npy", np.array([1], np.int64), "must be uint64"),
        ("ids/post.upserts.npy", np.array([1, 2], np.uint64), "1 rows; must be one for each of 2 keys"),
        ("ids/post.upserts.npy", KEYS[3:4], "both an upsert and a delete"),
        ("ids/post.deletes.npy", np.array([1, 1], np.uint64), "no two alike"),
        ("ids/post.upsert_rows.npy", np.array([2]), r"row 2 can't be an id's; allowed: 6 \(below"),
        ("ids/post.upsert_rows.npy", np.array([FIRST_ROW]), "row 6 is another id's; allowed: rows from 26 on"),
        ("ids/post.upsert_rows.npy", np.array([64]), "row 64 is not below its capacity_rows, 64"),
        ("ids/posts.deletes.npy", np.array([7], np.uint64), r"posts\.upsert"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(site: Site, file: str, array: NDArray[Any], message: str) -> None:
    np.save(site.delta / file, array)
    site.reseal()
    site.refuses(message)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("fault", [remove, cut, flip])
def test_any_file_that_is_missing_cut_or_altered_is_refused(site: Site, fault: Callable[[Path], None]) -> None:
    files = sorted(path for path in site.delta.rglob("*") if path.is_file())
    assert len(files) == 22
    for path in files:
        content = path.read_bytes()
        fault(path)
        site.refuses(path.name.replace("READY", "READY|SHA256SUMS"))
        path.write_bytes(content)
    assert apply_delta(site.root, site.delta) == "v2"


def test_a_delta_of_an_older_program_than_its_parents_is_refused(site: Site, tmp_path: Path) -> None:
    path = site.delta / "delta.json"
    path.write_text(path.read_text().replace('"0.1.0"', '"0.0.9"'))
    seal(site.delta)
    with pytest.raises(BundleError, match=r'code_version: got 0\.0\.9; "v1" was written by 0\.1\.0, which is newer'):
        apply_delta(site.root, site.delta)


def test_recorded_scores_of_the_parent_are_not_taken_for_the_new_versions(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        bundles.fill(folder)
        (folder / "recorded.json").write_text("{}")

    publish_version(tmp_path, "v1", build)
    bundles.delta(open_version(tmp_path, "v1"), "v2", tmp_path / "delta")
    apply_delta(tmp_path, tmp_path / "delta")
    assert not (tmp_path / "versions" / "v2" / "recorded.json").exists()


def test_a_process_killed_anywhere_in_an_application_leaves_the_old_state_and_a_repeated_one_finishes(
    site: Site, tmp_path: Path
) -> None:
    told: list[str] = []
    other = tmp_path / "other"
    shutil.copytree(site.root, other)
    apply_delta(other, site.delta, lambda done, total, what: told.append(what))
    before = bundles.tree(site.root)

    def apply_until(step: int) -> None:
        count = iter(range(len(told)))

        def die(done: int, total: int, what: str) -> None:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        apply_delta(site.root, site.delta, die)

    for step in range(0, len(told), 4):
        code, _ = ask_child(partial(apply_until, step))
        assert code == -signal.SIGKILL
        assert versions(site.root) == ["v1"]
        assert {name: data for name, data in bundles.tree(site.root).items() if "/." not in name} == before
    apply_delta(site.root, site.delta)
    assert bundles.tree(site.root) == bundles.tree(other)


def test_an_altered_parent_is_refused_before_it_spreads(site: Site) -> None:
    flip(site.parent.ids("member") / "id_map.json")
    site.refuses(r"id_map\.json: altered")


def test_a_delta_of_an_unsealed_parent_is_refused(site: Site) -> None:
    (site.parent.path / "READY").unlink()
    site.refuses("there are: none")


def test_a_full_disk_leaves_the_old_state(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((os, "link"), (shutil, "copyfile"), (os, "fsync")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            site.refuses("No space left on device")
    assert apply_delta(site.root, site.delta) == "v2"


def test_a_delta_that_would_be_refused_is_not_written(site: Site, tmp_path: Path) -> None:
    for rows, message in (
        ({"posts": bundles.rows_of([7], np.zeros((1, 8), np.float32))}, '"posts" is not a table'),
        ({"post": bundles.rows_of([7], np.zeros((1, 4), np.float32))}, "got dim 4; it has 8"),
        ({"post": bundles.rows_of([0], np.zeros((1, 8), np.float32))}, "row 0 is padding"),
    ):
        with pytest.raises(BundleError, match=message):
            bundles.delta(site.parent, "v2", tmp_path / "bad", rows)
    with pytest.raises(BundleError, match="exists"):
        bundles.delta(site.parent, "v2", site.delta)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["delta", "root"]


def test_a_delta_may_change_nothing_but_the_dense_model(site: Site, tmp_path: Path) -> None:
    bundles.delta(site.parent, "v2", tmp_path / "dense", rows={}, seed=9)
    apply_delta(site.root, tmp_path / "dense")
    child = open_version(site.root, "v2")
    assert child.dense_onnx.read_bytes() == b"dense 9"
    for path in site.parent.tables.glob("*.npy"):
        assert path.samefile(child.tables / path.name)


def test_a_dense_model_in_two_formats_is_replaced_in_both(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        bundles.fill(folder)
        (folder / "dense.int8.onnx").write_bytes(b"int8 0")

    publish_version(tmp_path / "root", "v1", fill)
    parent = open_version(tmp_path / "root", "v1")
    assert parent.dense_formats == ("fp32", "int8")

    def write(out: Path, *files: str) -> None:
        write_delta(
            parent, "v2", out,
            step=1, created="now", code_version="1", trained_days=(), rows={}, ids={},
            build=lambda folder: [(folder / file).write_bytes(b"new") for file in files] and None,
        )  # fmt: skip

    for files, missing in ((["dense.onnx"], "dense.int8.onnx"), (["dense.int8.onnx"], "dense.onnx")):
        with pytest.raises(BundleError, match=rf"holds {files[0]} without {missing}; the formats of one dense model"):
            write(tmp_path / "half", *files)
    write(tmp_path / "both", "dense.onnx", "dense.int8.onnx")
    apply_delta(tmp_path / "root", tmp_path / "both")
    child = open_version(tmp_path / "root", "v2")
    assert {(child.path / file).read_bytes() for file in ("dense.onnx", "dense.int8.onnx")} == {b"new"}
    write(tmp_path / "neither")  # what a delta does not hold stays the parent's
    assert verify_delta(tmp_path / "neither").manifest.id == "v2"


def test_a_replaced_folder_replaces_all_of_the_parents(site: Site, tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "transform").mkdir()
        (folder / "transform" / "other.json").write_text("{}")
        (folder / "metrics.json").write_text('{"auc": 1}')

    manifest = site.parent.manifest
    write_delta(
        site.parent, "v2", tmp_path / "new",
        step=1, created="now", code_version="1", trained_days=(), rows={}, ids={}, build=build,
    )  # fmt: skip
    apply_delta(site.root, tmp_path / "new")
    child = open_version(site.root, "v2")
    assert [path.name for path in (child.path / "transform").rglob("*")] == ["other.json"]
    assert bundles.tree(child.snapshot) == bundles.tree(site.parent.snapshot)
    assert (child.path / "metrics.json").read_text() == '{"auc": 1}'
    assert child.dense_onnx.samefile(site.parent.dense_onnx)
    assert child.manifest.row_format == manifest.row_format


def test_an_overlaid_table_keeps_its_overlay_when_a_later_delta_leaves_it_alone(site: Site, tmp_path: Path) -> None:
    apply_delta(site.root, site.delta)
    second = open_version(site.root, "v2")
    change = RowChange(np.array([9]), bundles.values(4, 2, seed=3)[1:])
    bundles.delta(second, "v3", tmp_path / "delta-2", {"member": change})
    apply_delta(site.root, tmp_path / "delta-2")
    third = open_version(site.root, "v3")
    assert (third.tables / "post.overlay.npy").samefile(second.tables / "post.overlay.npy")
    np.testing.assert_array_equal(
        ParameterStore.open(third.tables).table_by_name["post"].lookup(np.arange(64)),
        ParameterStore.open(second.tables).table_by_name["post"].lookup(np.arange(64)),
    )


def test_unchanged_arrays_of_a_changed_map_are_linked(site: Site) -> None:
    apply_delta(site.root, site.delta)
    child = open_version(site.root, "v2")
    linked = {path.name for path in child.ids("post").iterdir() if path.stat().st_nlink > 1}
    assert any(name.startswith("keys-") for name in linked)
    assert not any(name.startswith("overlay_keys-") or name == "id_map.json" for name in linked)


def test_a_version_is_found_again_after_its_delta_was_verified_alone(site: Site) -> None:
    read = verify_delta(site.delta)
    assert read.manifest.parent == "v1"
    assert read.rows["post"].rows.tolist() == [7, FIRST_ROW + NUM_IDS]
    assert read.ids["post"].deletes.tolist() == [int(KEYS[3])]
    assert versions(site.root) == ["v1"]
