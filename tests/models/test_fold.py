"""Folds: any chain of deltas and folds against plain dicts, and every way that one may end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import BundleError
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.models import fold as fold_module
from sparsefeed.models.bundle import open_version, publish_version, verify, versions
from sparsefeed.models.delta import apply_delta
from sparsefeed.models.fold import fold, latest_fold
from sparsefeed.models.store.rows import ROW_FORMATS, RowFormat
from sparsefeed.models.store.store import ParameterStore
from tests import bundles
from tests.bundles import DIMS, FIRST_ROW, KEYS, NUM_IDS
from tests.children import ask_child

FRESH_KEYS = [int(key) for key in np.arange(1, 40, dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)]


def answers(root: Path, id: str, row_of: dict[str, dict[int, int]], scratch: Path) -> list[object]:
    """All that a version answers of the ids it has, and what a snapshot written whole from it holds."""
    bundle = open_version(root, id)
    verify(bundle.path)
    store = ParameterStore.open(bundle.tables)
    counts = np.array([table.rows for table in store.tables], np.int32)
    keys = np.concatenate([np.arange(count) for count in counts])
    found: list[object] = [counts.tolist(), store.lookup(keys, counts).view(np.uint32).tolist()]
    for name, truth in row_of.items():
        id_map = IdMap.load(bundle.ids(name))
        assert id_map.lookup(np.array(list(truth), np.uint64)).tolist() == list(truth.values())
        assert id_map.num_admitted == len(truth)
        found += [id_map.num_rows, id_map.capacity_rows]
    Snapshot.load(bundle.snapshot).save(scratch)
    return [*found, bundles.tree(scratch)]


@pytest.mark.parametrize("row_format", ROW_FORMATS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_a_folded_version_answers_what_its_parent_answers_and_deltas_go_on(
    tmp_path_factory: pytest.TempPathFactory, row_format: RowFormat, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("chain")
    current = bundles.publish(root, "v0", row_format).id
    rows = IdMap.load(open_version(root, current).ids("post")).lookup(KEYS).tolist()
    row_of = {name: dict(zip(KEYS.tolist(), rows, strict=True)) for name in DIMS}
    next_row = dict.fromkeys(DIMS, FIRST_ROW + NUM_IDS)
    for number in range(1, data.draw(st.integers(2, 4), label="steps") + 1):
        changes, ids = {}, {}
        for name in data.draw(st.sets(st.sampled_from(list(DIMS))), label="tables"):
            truth = row_of[name]
            deletes = data.draw(st.sets(st.sampled_from(sorted(truth)), max_size=5), label="deletes")
            absent = [key for key in FRESH_KEYS + KEYS.tolist() if key not in truth]
            added = data.draw(st.lists(st.sampled_from(absent), unique=True, max_size=9), label="adds")
            upserts = {key: next_row[name] + i for i, key in enumerate(added)}
            next_row[name] += len(upserts)
            row_of[name] = {key: row for key, row in truth.items() if key not in deletes} | upserts
            touched = sorted(data.draw(st.sets(st.integers(1, 50), max_size=6), label="rows") | set(upserts.values()))
            changes[name] = bundles.rows_of(touched, bundles.values(DIMS[name], len(touched) + 1, seed=number)[1:])
            ids[name] = bundles.ids_of(upserts, sorted(deletes))
        delta = bundles.delta(open_version(root, current), f"v{number}", root / f"d{number}", changes, ids, seed=number)
        current = apply_delta(root, delta.path)
        if data.draw(st.booleans(), label="fold"):
            before = answers(root, current, row_of, root / f"parent-{number}")
            current = fold(root, current)
            assert answers(root, current, row_of, root / f"folded-{number}") == before
        else:
            answers(root, current, row_of, root / f"whole-{number}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A version with an overlay of every kind, v2."""
    parent = bundles.publish(tmp_path / "root")
    ids = {"post": bundles.ids_of({FRESH_KEYS[0]: FIRST_ROW + NUM_IDS}, [int(KEYS[3])])}
    rows = {"post": bundles.rows_of([7, FIRST_ROW + NUM_IDS], bundles.values(8, 3, seed=5)[1:])}
    apply_delta(tmp_path / "root", bundles.delta(parent, "v2", tmp_path / "delta", rows, ids).path)
    return tmp_path / "root"


def test_a_process_killed_anywhere_in_a_fold_leaves_the_old_state_and_a_repeated_one_finishes(
    root: Path, tmp_path: Path
) -> None:
    told: list[str] = []
    other = tmp_path / "other"
    shutil.copytree(root, other)
    made = fold(other, "v2", lambda done, total, what: told.append(what))
    assert [what for what in told if what.startswith("folding")] == [
        "folding table member",
        "folding table post",
        "folding ids member",
        "folding ids post",
        "folding the snapshot",
    ]
    before = bundles.tree(root)

    def fold_until(step: int) -> None:
        count = iter(range(len(told)))

        def die(done: int, total: int, what: str) -> None:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        fold(root, "v2", die)

    first = next(i for i, what in enumerate(told) if what.startswith("folding"))
    for step in (0, *range(first, first + 5), *range(first + 5, len(told), 6), len(told) - 1):
        code, _ = ask_child(partial(fold_until, step))
        assert code == -signal.SIGKILL
        assert versions(root) == ["v1", "v2"]
        assert {name: data for name, data in bundles.tree(root).items() if "/." not in name} == before
    assert fold(root, "v2") == made
    assert bundles.tree(root) == bundles.tree(other)


@pytest.mark.parametrize(
    "name",
    ["tables/post.npy", "tables/post.overlay.npy", "snapshot/post/keys.npy", "snapshot/overlay/post/tags.npy"],
)
def test_a_parent_that_was_altered_is_refused_whole(root: Path, name: str) -> None:
    path = root / "versions" / "v2" / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = bundles.tree(root)
    with pytest.raises(BundleError, match=f"{name}: altered"):
        fold(root, "v2")
    assert bundles.tree(root) == before


def test_an_altered_map_is_a_bundles_error(root: Path) -> None:
    path = root / "versions" / "v2" / "ids" / "post" / "id_map.json"
    path.unlink()
    with pytest.raises(BundleError, match=r"id_map\.json: cannot be read"):
        fold(root, "v2")


def test_a_full_disk_leaves_the_old_state(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = bundles.tree(root)
    for name in ("link", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(BundleError, match="No space left on device"):
                fold(root, "v2")
        assert bundles.tree(root) == before
    assert fold(root, "v2") in versions(root)


def test_a_version_of_a_newer_program_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fold_module, "__version__", "0.0.9")
    with pytest.raises(
        BundleError, match=r"was made by 0\.1\.0, this is 0\.0\.9; fold it with that version or a later"
    ):
        fold(root, "v2")


def test_a_version_without_overlays_is_its_own(root: Path) -> None:
    before = bundles.tree(root)
    assert fold(root, "v1") == "v1"
    assert bundles.tree(root) == before


def test_what_the_deltas_left_alone_is_linked(root: Path) -> None:
    parent, folded = open_version(root, "v2"), open_version(root, fold(root, "v2"))
    for name in ("tables/member.npy", "ids/member/id_map.json", "spec.json", "transform/plan.json"):
        assert (folded.path / name).samefile(parent.path / name)
    assert not (folded.path / "tables/post.npy").samefile(parent.path / "tables/post.npy")
    assert folded.id in (folded.path / "MODEL_CARD.md").read_text()


def test_the_last_fold_of_a_version_is_found_and_no_delta_is_taken_for_one(root: Path, tmp_path: Path) -> None:
    parent, folded = open_version(root, "v2"), open_version(root, fold(root, "v2"))
    apply_delta(root, bundles.delta(folded, "v4", tmp_path / "v4", seed=3).path)
    among = [open_version(root, id) for id in versions(root)]
    assert latest_fold(parent, among) == folded
    assert latest_fold(among[0], among) == among[0]
    assert latest_fold(open_version(root, "v4"), among).id == "v4"


def test_an_id_keeps_its_beginning_and_its_length(tmp_path: Path) -> None:
    for id, beginning in (("20261107-a46abb86", "20261107-"), ("v" * 120, "v" * 111 + "-")):
        root = tmp_path / id[:9]
        publish_version(root, "base", lambda folder: bundles.fill(folder, "base"))
        made = fold(root, apply_delta(root, bundles.delta(open_version(root, "base"), id, root / "delta").path))
        assert made.startswith(beginning)
        assert (len(made), made in versions(root)) == (len(beginning) + 8, True)
