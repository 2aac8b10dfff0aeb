"""docs/contracts/bundle.md, sentence by sentence."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.models.bundle import open_version, publish_version, read_current, set_current, verify, versions
from tests import bundles


@pytest.fixture
def root(tmp_path: Path) -> Path:
    bundles.publish(tmp_path)
    return tmp_path


@pytest.mark.parametrize("id", ["", "a.b", "a/b", ".a", "x" * 121])
def test_1_an_id_is_a_name(tmp_path: Path, id: str) -> None:
    with pytest.raises(BundleError, match="must match"):
        publish_version(tmp_path, id, bundles.fill)


def test_1_no_file_changes_after_ready(root: Path) -> None:
    before = bundles.tree(root / "versions" / "v1")
    set_current(root, "v1")
    bundles.publish(root, "v2", seed=3)
    bundles.publish(root)
    assert bundles.tree(root / "versions" / "v1") == before


def test_2_a_version_is_written_beside_and_ready_comes_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def watched_fsync(descriptor: int) -> None:
        seen.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> Path:
        seen.append(f"{source.name} -> {Path(target).name}")
        return rename(source, target)

    def fill(folder: Path) -> None:
        assert folder == tmp_path / "versions" / ".v1.partial"
        bundles.fill(folder)
        monkeypatch.setattr(os, "fsync", watched_fsync)
        monkeypatch.setattr(Path, "rename", watched_rename)

    publish_version(tmp_path, "v1", fill)
    monkeypatch.undo()
    files = {path.name for path in (tmp_path / "versions" / "v1").rglob("*") if path.is_file()}
    ready = seen.index("READY")
    assert files - {"READY"} == set(seen[:ready])
    assert seen[ready - 1] == "SHA256SUMS"
    assert seen[-3:] == [".v1.partial", ".v1.partial -> v1", "versions"]


def test_2_without_ready_or_with_a_dot_it_is_no_bundle(root: Path) -> None:
    for name in ("half", ".v2.partial"):
        shutil.copytree(root / "versions" / "v1", root / "versions" / name)
    (root / "versions" / "half" / "READY").unlink()
    assert versions(root) == ["v1"]
    for name in ("half", ".v2.partial"):
        with pytest.raises(BundleError, match="is no READY version; there are: v1"):
            open_version(root, name)


def test_2_what_a_crash_left_is_replaced(root: Path) -> None:
    (root / "versions" / ".v2.partial").mkdir()
    (root / "versions" / ".v2.partial" / "junk.bin").write_bytes(b"half")
    bundles.publish(root, "v2")
    assert sorted(path.name for path in (root / "versions").iterdir()) == ["v1", "v2"]
    assert not (root / "versions" / "v2" / "junk.bin").exists()


def test_2_a_failed_write_leaves_what_was_there(root: Path) -> None:
    def full_disk(folder: Path) -> None:
        (folder / "dense.onnx").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = bundles.tree(root)
    with pytest.raises(BundleError, match=r"v2: not published: .*No space left on device"):
        publish_version(root, "v2", full_disk)
    assert bundles.tree(root) == before


def test_3_current_is_one_line_replaced_by_a_rename(root: Path) -> None:
    bundles.publish(root, "v2")
    set_current(root, "v1")
    with (root / "current").open() as reader:  # opened before the switch: reads the old id, whole
        set_current(root, "v2")
        assert reader.read() == "v1\n"
    assert (root / "current").read_text() == "v2\n"
    assert read_current(root) == open_version(root).id == "v2"
    assert sorted(path.name for path in root.iterdir()) == ["current", "versions"]


def test_3_current_never_names_what_is_no_bundle(root: Path) -> None:
    set_current(root, "v1")
    with pytest.raises(BundleError, match="is no READY version"):
        set_current(root, "v2")
    assert read_current(root) == "v1"


def test_4_sums_list_every_file_and_ready_seals_them(root: Path) -> None:
    path = root / "versions" / "v1"
    lines = [line.split("  ") for line in (path / "SHA256SUMS").read_text().splitlines()]
    files = bundles.tree(path)
    assert [name for _, name in lines] == sorted(files.keys() - {"SHA256SUMS", "READY"})
    assert all(sha == hashlib.sha256(files[name]).hexdigest() for sha, name in lines)
    digest = hashlib.sha256(files["SHA256SUMS"]).hexdigest()
    assert files["READY"].decode() == digest + "\n"
    assert verify(path) == open_version(root, "v1").digest == digest


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum")
def test_4_sha256sum_reads_them(root: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(command, cwd=root / "versions" / "v1", check=False).returncode == 0


def test_4_verify_names_the_file_that_is_missing_altered_or_extra(root: Path) -> None:
    path = root / "versions" / "v1"
    (path / "extra.json").write_text("{}")
    with pytest.raises(BundleError, match=r"extra\.json: extra"):
        verify(path)
    (path / "extra.json").unlink()
    (path / "tables" / "post.npy").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"tables/post\.npy: altered"):
        verify(path)
    (path / "dense.onnx").unlink()
    with pytest.raises(BundleError, match=r"dense\.onnx: missing"):
        verify(path)


def test_5_bundle_json_has_these_fields(root: Path) -> None:
    assert json.loads((root / "versions" / "v1" / "bundle.json").read_text()) == {
        "format": 1,
        "id": "v1",
        "created": "2026-11-02T03:00:00Z",
        "code_version": "0.1.0",
        "spec_digest": "0123456789abcdef",
        "step": 1000,
        "trained_days": ["2026-11-01"],
        "row_format": "int8",
        "parent": None,
        "sequence": 0,
        "parent_digest": None,
    }


def test_5_its_id_is_the_folders_name(root: Path) -> None:
    with pytest.raises(BundleError, match='id: got "v1"; this version is "v2"'):
        publish_version(root, "v2", lambda folder: bundles.fill(folder, "v1"))


def test_6_nothing_of_it_holds_code(root: Path) -> None:
    files = [path for path in (root / "versions" / "v1").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".npy", ".parquet", ".onnx", ".md", ".txt", ""}
    for path in files:
        if path.suffix == ".npy":
            np.load(path, allow_pickle=False)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "objects.npy"])
def test_6_a_file_that_may_hold_code_is_not_published(root: Path, name: str) -> None:
    def fill(folder: Path) -> None:
        bundles.fill(folder, "v2")
        with (folder / name).open("wb") as file:
            np.save(file, np.array([{}], object), allow_pickle=True)

    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        publish_version(root, "v2", fill)
    assert versions(root) == ["v1"]


def test_7_the_same_content_again_is_left_as_it_is_and_other_content_is_an_error(root: Path) -> None:
    path = root / "versions" / "v1"
    inode = path.stat().st_ino
    bundles.publish(root)
    assert path.stat().st_ino == inode
    before = bundles.tree(root)
    with pytest.raises(BundleError, match="exists with other content; a version never changes, choose a new id"):
        bundles.publish(root, seed=3)
    assert bundles.tree(root) == before
