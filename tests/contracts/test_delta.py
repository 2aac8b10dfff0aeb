"""docs/contracts/delta.md, sentence by sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.models.bundle import Bundle, open_version, read_current, seal, set_current, verify
from sparsefeed.models.delta import apply_delta
from sparsefeed.models.fold import fold
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat
from sparsefeed.models.store.store import ParameterStore, write_tables
from tests import bundles
from tests.bundles import DIMS, FIRST_ROW, KEYS, NUM_IDS, SPEC_DIGEST, TAIL_ROWS

NEW_KEY, NEW_ROW = 12345, 70


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def parent(root: Path) -> Bundle:
    return bundles.publish(root)


@pytest.fixture
def delta(parent: Bundle, tmp_path: Path) -> Path:
    rows = {"post": bundles.rows_of([FIRST_ROW, NEW_ROW], bundles.values(DIMS["post"], 3, seed=2)[1:])}
    ids = {"post": bundles.ids_of({NEW_KEY: NEW_ROW}, [int(KEYS[3])])}
    return bundles.delta(parent, "v2", tmp_path / "delta", rows, ids).path


def refused(root: Path, delta: Path, message: str) -> None:
    before = bundles.tree(root)
    with pytest.raises(BundleError, match=message):
        apply_delta(root, delta)
    assert bundles.tree(root) == before


def rewrite(delta: Path, **changes: object) -> None:
    path = delta / "delta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    reseal(delta)


def reseal(delta: Path) -> None:
    for name in ("SHA256SUMS", "READY"):
        (delta / name).unlink()
    seal(delta)


def test_1_delta_json_states_what_it_makes_of_what(delta: Path, parent: Bundle) -> None:
    assert json.loads((delta / "delta.json").read_text()) == {
        "format": 1,
        "id": "v2",
        "created": "2026-11-03T03:00:00Z",
        "code_version": "0.1.0",
        "spec_digest": SPEC_DIGEST,
        "step": 1010,
        "trained_days": ["2026-11-01", "2026-11-02"],
        "row_format": "int8",
        "parent": "v1",
        "sequence": 1,
        "parent_digest": hashlib.sha256((parent.path / "SHA256SUMS").read_bytes()).hexdigest(),
        "capacity_rows": {"member": 64, "post": 128},
    }


def test_1_the_new_versions_bundle_json_is_delta_json_without_the_capacities(root: Path, delta: Path) -> None:
    apply_delta(root, delta)
    stated = json.loads((delta / "delta.json").read_text())
    del stated["capacity_rows"]
    assert json.loads((root / "versions" / "v2" / "bundle.json").read_text()) == stated


def test_2_rows_and_values_replace_and_extend_the_tables(root: Path, delta: Path) -> None:
    rows, values = (np.load(delta / "tables" / f"post.{part}.npy") for part in ("rows", "values"))
    assert (rows.dtype, rows.tolist()) == (np.int64, [FIRST_ROW, NEW_ROW])
    assert (values.dtype, values.shape) == (np.float32, (2, 8))
    apply_delta(root, delta)
    table = ParameterStore.open(open_version(root, "v2").tables).table_by_name["post"]
    assert table.rows == 128
    steps = np.ptp(values, axis=1, keepdims=True) / 255
    assert (np.abs(table.lookup(rows) - values) <= steps / 2 + 1e-6).all()


def test_2_row_0_is_never_among_them(root: Path, delta: Path) -> None:
    np.save(delta / "tables" / "post.rows.npy", np.array([0, NEW_ROW]))
    reseal(delta)
    refused(root, delta, "row 0 is padding")


def test_3_upserts_and_deletes_go_to_the_maps_overlay(root: Path, delta: Path, parent: Bundle) -> None:
    assert {path.name: np.load(path).dtype for path in (delta / "ids").iterdir()} == {
        "post.upserts.npy": np.uint64,
        "post.upsert_rows.npy": np.int64,
        "post.deletes.npy": np.uint64,
    }
    apply_delta(root, delta)
    old, new = (IdMap.load(open_version(root, id).ids("post")) for id in ("v1", "v2"))
    assert new.lookup(np.array([NEW_KEY], np.uint64)).tolist() == [NEW_ROW]
    assert new.lookup(KEYS[3:4]).tolist() == [2 + int(KEYS[3]) % TAIL_ROWS]
    others = np.delete(KEYS, 3)
    np.testing.assert_array_equal(new.lookup(others), old.lookup(others))
    np.testing.assert_array_equal(new.base.keys, old.base.keys)


def test_3_a_file_a_delta_may_not_replace_is_refused(root: Path, delta: Path) -> None:
    (delta / "spec.json").write_text("{}")
    reseal(delta)
    refused(root, delta, r"spec\.json: a delta cannot replace it")


def test_3_members_and_posts_of_its_snapshot_go_to_the_snapshots_overlay(
    root: Path, delta: Path, parent: Bundle, tmp_path: Path
) -> None:
    apply_delta(root, delta)
    new = open_version(root, "v2")
    old, own, known = (Snapshot.load(path) for path in (parent.snapshot, delta / "snapshot", new.snapshot))
    assert known.as_of_ms == own.as_of_ms > old.as_of_ms
    old.with_newer(own).save(tmp_path / "expected")
    known.save(tmp_path / "whole")
    assert bundles.tree(tmp_path / "whole") == bundles.tree(tmp_path / "expected")
    for path in (parent.snapshot / "post").iterdir():
        assert (new.snapshot / "post" / path.name).samefile(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"as_of": -1}, "as of -1 ms, which is before 0; apply it in order"),
        ({"spec_digest": "f" * 16}, "snapshot: spec_digest: got f"),
        ({"key_seed": 9}, "snapshot: key_seed: got 9; the older one has 0"),
    ],
)
def test_3_a_snapshot_of_another_spec_or_an_earlier_moment_is_refused(
    root: Path, delta: Path, changes: dict[str, object], message: str
) -> None:
    path = delta / "snapshot" / "snapshot.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    reseal(delta)
    refused(root, delta, message)


def test_3_every_other_file_replaces_the_parents_whole(root: Path, delta: Path, parent: Bundle) -> None:
    apply_delta(root, delta)
    new = open_version(root, "v2")
    for name in ("dense.onnx", "calibration.json", "transform/plan.json"):
        assert (new.path / name).read_bytes() == (delta / name).read_bytes() != (parent.path / name).read_bytes()
    for name in ("spec.json", "metrics.json", "MODEL_CARD.md"):
        assert (new.path / name).samefile(parent.path / name)


def test_4_unchanged_files_are_hard_links_and_the_parent_is_untouched(root: Path, delta: Path, parent: Bundle) -> None:
    set_current(root, "v1")
    before = bundles.tree(parent.path)
    apply_delta(root, delta)
    assert bundles.tree(parent.path) == before
    assert read_current(root) == "v1"
    new = open_version(root, "v2")
    for name in ("tables/member.npy", "tables/post.npy", "ids/member/id_map.json"):
        assert (new.path / name).samefile(parent.path / name)
    shutil.rmtree(parent.path)
    verify(new.path)  # a version stands on its own


def flip(path: Path) -> None:
    """Alter a file that may have other names, under this one alone."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_4_an_altered_file_that_is_read_is_refused_and_one_that_is_linked_is_found_by_verify(
    root: Path, delta: Path, parent: Bundle, tmp_path: Path
) -> None:
    apply_delta(root, delta)
    second = open_version(root, "v2")
    third = bundles.delta(second, "v3", tmp_path / "third").path
    for name in ("tables/post.overlay.npy", "snapshot/overlay/post/dense.npy", "ids/post/id_map.json", "dense.onnx"):
        shutil.copytree(root, tmp_path / "copy")
        flip(tmp_path / "copy" / "versions" / "v2" / name)
        refused(tmp_path / "copy", third, f"{name}: altered")
        shutil.rmtree(tmp_path / "copy")
    for name in ("tables/member.npy", "snapshot/member/keys.npy"):
        shutil.copytree(root, tmp_path / "copy")
        flip(tmp_path / "copy" / "versions" / "v2" / name)
        apply_delta(tmp_path / "copy", third)
        with pytest.raises(BundleError, match=f"v3/{name}: altered"):
            verify(open_version(tmp_path / "copy", "v3").path)
        shutil.rmtree(tmp_path / "copy")


def test_4_a_base_that_its_overlay_is_folded_into_is_read(root: Path, parent: Bundle, tmp_path: Path) -> None:
    rows = list(range(1, 20))  # more than a quarter of 64
    change = bundles.rows_of(rows, bundles.values(DIMS["post"], 20, seed=2)[1:])
    delta = bundles.delta(parent, "v2", tmp_path / "delta", {"post": change}).path
    flip(parent.tables / "post.npy")
    refused(root, delta, r"tables/post\.npy: altered")


def test_5_applying_twice_is_no_error_and_changes_nothing(root: Path, delta: Path) -> None:
    assert apply_delta(root, delta) == "v2"
    before = bundles.tree(root)
    assert apply_delta(root, delta) == "v2"
    assert bundles.tree(root) == before


def test_5_a_gap_and_a_reorder_are_refused(root: Path, delta: Path, parent: Bundle, tmp_path: Path) -> None:
    other_root = tmp_path / "elsewhere"
    shutil.copytree(root, other_root)
    apply_delta(other_root, delta)
    second = bundles.delta(open_version(other_root, "v2"), "v3", tmp_path / "second").path
    refused(root, second, 'is delta 2 of "v2", which is not in .*apply the deltas before it, in order')
    apply_delta(root, delta)
    assert apply_delta(root, second) == "v3"
    assert bundles.tree(root / "versions" / "v3").keys() >= {"tables/post.overlay.npy", "READY"}


def test_5_a_stated_sequence_that_is_not_the_next_is_refused(root: Path, delta: Path) -> None:
    rewrite(delta, sequence=3)
    refused(root, delta, 'sequence: got 3; after "v1" it must be 1')


def test_5_a_duplicate_sequence_with_other_content_is_refused(
    root: Path, delta: Path, parent: Bundle, tmp_path: Path
) -> None:
    apply_delta(root, delta)
    rival = bundles.delta(parent, "v2b", tmp_path / "rival", seed=7).path
    refused(root, rival, '"v1" has its next version already, "v2", by another delta or a fold')
    same_id = bundles.delta(parent, "v2", tmp_path / "same-id", seed=7).path
    refused(root, same_id, "v2: exists with other content")


def test_5_another_parent_of_the_same_id_is_refused(delta: Path, tmp_path: Path) -> None:
    bundles.publish(tmp_path / "other", seed=5)
    refused(tmp_path / "other", delta, 'parent_digest: got .* after "v1" it must be')


@pytest.mark.parametrize("file", ["delta.json", "tables/post.values.npy", "ids/post.deletes.npy", "dense.onnx"])
def test_5_a_truncated_and_an_altered_file_are_refused(root: Path, delta: Path, file: str) -> None:
    content = (delta / file).read_bytes()
    (delta / file).write_bytes(content[:-1])
    refused(root, delta, f"{file}: altered")
    (delta / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    refused(root, delta, f"{file}: altered")
    (delta / file).unlink()
    refused(root, delta, f"{file}: missing")


def test_5_another_spec_an_unknown_table_and_another_dim_are_refused(root: Path, delta: Path) -> None:
    rewrite(delta, spec_digest="f" * 16)
    refused(root, delta, "spec_digest: got f")
    rewrite(delta, spec_digest=SPEC_DIGEST)
    np.save(delta / "tables" / "post.values.npy", np.zeros((2, 4), np.float32))
    reseal(delta)
    refused(root, delta, 'table "post": got dim 4; it has 8')
    for part in ("rows", "values"):
        (delta / "tables" / f"post.{part}.npy").rename(delta / "tables" / f"posts.{part}.npy")
    reseal(delta)
    refused(root, delta, '"posts" is not a table of "v1"; did you mean "post"')


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_6_the_new_version_answers_what_a_bundle_written_whole_answers(tmp_path: Path, row_format: RowFormat) -> None:
    parent = bundles.publish(tmp_path, row_format=row_format)
    change = bundles.rows_of([1, FIRST_ROW + NUM_IDS, 127], bundles.values(DIMS["post"], 4, seed=2)[1:])
    apply_delta(tmp_path, bundles.delta(parent, "v2", tmp_path / "delta", {"post": change}).path)
    whole = {name: bundles.values(dim) for name, dim in DIMS.items()}
    whole["post"] = np.concatenate([whole["post"], np.zeros((64, DIMS["post"]), np.float32)])
    whole["post"][change.rows] = change.values
    write_tables(tmp_path / "whole", whole, row_format, list(DIMS))
    keys, num_keys = np.concatenate([np.arange(64), np.arange(128)]), np.array([64, 128], np.int32)
    new, written = ParameterStore.open(open_version(tmp_path, "v2").tables), ParameterStore.open(tmp_path / "whole")
    np.testing.assert_array_equal(
        new.lookup(keys, num_keys).view(np.uint32), written.lookup(keys, num_keys).view(np.uint32)
    )


def test_7_overlays_hold_all_that_came_since_the_base(root: Path, delta: Path, tmp_path: Path) -> None:
    apply_delta(root, delta)
    change = bundles.rows_of([9], bundles.values(DIMS["post"], 2, seed=4)[1:])
    ids = bundles.ids_of({NEW_KEY + 1: NEW_ROW + 1}, [])
    second = open_version(root, "v2")
    apply_delta(root, bundles.delta(second, "v3", tmp_path / "v3", {"post": change}, {"post": ids}, seed=2).path)
    third = open_version(root, "v3")
    assert np.load(third.tables / "post.overlay_rows.npy").tolist() == [FIRST_ROW, 9, NEW_ROW]
    keys = IdMap.load(third.ids("post")).overlay.items()[0]
    assert keys.tolist() == sorted([NEW_KEY, NEW_KEY + 1, int(KEYS[3])])
    overlay = Snapshot.load(third.snapshot).overlay
    assert overlay is not None
    days = [Snapshot.load(tmp_path / name / "snapshot").post.keys for name in ("delta", "v3")]
    assert overlay.post.keys.tolist() == sorted({*days[0].tolist(), *days[1].tolist()})


def test_8_a_fold_makes_the_next_version_without_overlays(root: Path, delta: Path, tmp_path: Path) -> None:
    apply_delta(root, delta)
    set_current(root, "v2")
    parent = open_version(root, "v2")
    before = bundles.tree(parent.path)
    folded = open_version(root, fold(root, "v2"))
    assert bundles.tree(parent.path) == before
    assert read_current(root) == "v2"
    verify(folded.path)
    told = folded.manifest
    assert (told.parent, told.parent_digest, told.sequence) == ("v2", parent.digest, parent.manifest.sequence + 1)
    assert (told.step, told.trained_days, told.created) == (
        parent.manifest.step,
        parent.manifest.trained_days,
        parent.manifest.created,
    )
    assert not list(folded.tables.glob("*overlay*"))
    assert not (folded.snapshot / "overlay").exists()
    assert [len(IdMap.load(folded.ids(name)).overlay) for name in DIMS] == [0, 0]
    old, new = (IdMap.load(one.ids("post")) for one in (parent, folded))
    kept = np.append(np.delete(KEYS, 3), np.uint64(NEW_KEY))
    np.testing.assert_array_equal(new.lookup(kept), old.lookup(kept))
    assert KEYS[3] not in new.base.keys
    assert folded.dense_onnx.samefile(parent.dense_onnx)


def test_8_deltas_go_on_from_the_folded_version(root: Path, delta: Path, tmp_path: Path) -> None:
    apply_delta(root, delta)
    late = bundles.delta(open_version(root, "v2"), "v3", tmp_path / "late").path
    folded = fold(root, "v2")
    refused(root, late, f'"v2" has its next version already, "{folded}", by another delta or a fold')
    ids = {"post": bundles.ids_of({NEW_KEY + 1: NEW_ROW + 1}, [NEW_KEY])}
    change = {"post": bundles.rows_of([NEW_ROW + 1], bundles.values(DIMS["post"], 2, seed=4)[1:])}
    following = bundles.delta(open_version(root, folded), "v4", tmp_path / "v4", change, ids, seed=3).path
    assert apply_delta(root, following) == "v4"
    post = IdMap.load(open_version(root, "v4").ids("post"))
    assert post.lookup(np.array([NEW_KEY + 1], np.uint64)).tolist() == [NEW_ROW + 1]
    assert post.lookup(np.array([NEW_KEY], np.uint64)).tolist() == [2 + NEW_KEY % TAIL_ROWS]


def test_8_folded_elsewhere_it_is_the_same_version(root: Path, delta: Path, tmp_path: Path) -> None:
    apply_delta(root, delta)
    shutil.copytree(root, tmp_path / "elsewhere")
    made = fold(root, "v2")
    assert fold(tmp_path / "elsewhere", "v2") == made
    assert bundles.tree(tmp_path / "elsewhere") == bundles.tree(root)
    before = bundles.tree(root)
    assert fold(root, "v2") == made
    assert fold(root, made) == made
    assert bundles.tree(root) == before


def test_8_a_version_that_has_its_next_one_is_not_folded(root: Path, delta: Path, tmp_path: Path) -> None:
    apply_delta(root, delta)
    apply_delta(root, bundles.delta(open_version(root, "v2"), "v3", tmp_path / "v3").path)
    with pytest.raises(BundleError, match=r'has its next version already, "v3"; fold that one, or remove versions/v3'):
        fold(root, "v2")
