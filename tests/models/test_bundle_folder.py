"""Publishing, verifying and pointing at versions, with everything that can go wrong on the way."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.models.bundle import (
    Bundle,
    Manifest,
    open_version,
    publish_version,
    read_current,
    set_current,
    verify,
    versions,
)
from tests import bundles

ID = "v1"


def build(id: str, text: str = "hello") -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        bundles.manifest(id).save(folder)
        (folder / "ids" / "post").mkdir(parents=True)
        (folder / "ids" / "post" / "id_map.json").write_text(f'"{text}"')

    return fill


@pytest.fixture
def root(tmp_path: Path) -> Path:
    publish_version(tmp_path, ID, build(ID))
    set_current(tmp_path, ID)
    return tmp_path


def test_a_version_opens_with_its_paths(root: Path) -> None:
    bundle = open_version(root)
    path = root / "versions" / ID
    assert bundle == open_version(root, ID)
    assert (bundle.id, bundle.path) == (ID, path)
    assert bundle.manifest == bundles.manifest(ID)
    assert bundle.ids("post") == path / "ids" / "post"
    assert [bundle.spec, bundle.plan, bundle.dense_onnx, bundle.calibration, bundle.tables, bundle.snapshot] == [
        path / name
        for name in ("spec.json", "transform/plan.json", "dense.onnx", "calibration.json", "tables", "snapshot")
    ]


@pytest.mark.parametrize("id", ["", "v 1", "v.1", ".v1", "../v1", "x" * 121, "é"])
def test_an_id_that_is_no_name_is_refused(tmp_path: Path, id: str) -> None:
    with pytest.raises(BundleError, match="must match"):
        publish_version(tmp_path, id, build(id))
    assert not list(tmp_path.iterdir())


def test_opening_what_is_not_there_lists_what_is(root: Path) -> None:
    with pytest.raises(BundleError, match='"v9" is no READY version; there are: v1'):
        open_version(root, "v9")
    with pytest.raises(BundleError, match="is no READY version"):
        open_version(root, "../versions/v1")
    with pytest.raises(BundleError, match="is no READY version"):
        set_current(root, "v9")
    assert read_current(root) == ID


def test_nothing_is_current_before_a_release(tmp_path: Path) -> None:
    assert read_current(tmp_path) is None
    assert versions(tmp_path) == []
    with pytest.raises(BundleError, match="current: missing"):
        open_version(tmp_path)


def test_a_build_that_fails_leaves_nothing(root: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half.json").write_text("{")
        raise KeyboardInterrupt

    before = bundles.tree(root)
    with pytest.raises(KeyboardInterrupt):
        publish_version(root, "v2", fail)
    assert bundles.tree(root) == before


def test_a_full_disk_at_any_moment_leaves_the_old_state(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bundles.tree(root)
    fsync, calls = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    failing, failures = 0, 0
    while True:
        failing, calls = failing + 1, 0
        try:
            publish_version(root, "v2", build("v2"))
        except BundleError as error:
            assert "not published: [Errno 28]" in str(error)
            failures += 1
            if "v2" in versions(root):  # the rename was done: only its own fsync failed
                verify(root / "versions" / "v2")
                break
            assert bundles.tree(root) == before
        else:
            break
    assert failures >= 5
    publish_version(root, "v2", build("v2"))
    calls, failing = 0, 1
    with pytest.raises(BundleError, match="not set to v2"):
        set_current(root, "v2")
    assert read_current(root) == ID


def test_a_killed_publisher_leaves_no_bundle_and_no_lock(root: Path) -> None:
    script = f"""
import os, pathlib
from sparsefeed.models.bundle import publish_version
def die(folder):
    (folder / "half.json").write_text("{{")
    os._exit(9)
publish_version(pathlib.Path({str(root)!r}), "v2", die)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert (root / "versions" / ".v2.partial" / "half.json").exists()
    assert versions(root) == [ID]
    publish_version(root, "v2", build("v2"))
    assert sorted(path.name for path in (root / "versions").iterdir()) == ["v1", "v2"]
    assert verify(root / "versions" / "v2") == open_version(root, "v2").digest


def test_two_publishers_of_one_id_leave_one_version(tmp_path: Path) -> None:
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(publish_version(tmp_path, ID, build(ID)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / "versions" / ID] * 4
    verify(paths[0])


def test_a_folder_without_ready_is_not_overwritten(root: Path) -> None:
    (root / "versions" / "v2").mkdir()
    with pytest.raises(BundleError, match="is there without READY"):
        publish_version(root, "v2", build("v2"))


def test_a_bundle_of_another_id_is_not_published(root: Path) -> None:
    with pytest.raises(BundleError, match=r'bundle\.json: id: got "v1"; this version is "v2"'):
        publish_version(root, "v2", build("v1"))
    with pytest.raises(BundleError, match=r"bundle\.json: "):
        publish_version(root, "v2", lambda folder: None)
    (root / "versions" / "v1").rename(root / "versions" / "v3")
    with pytest.raises(BundleError, match='the folder is "v3"'):
        open_version(root, "v3")


def test_a_manifest_with_an_unknown_key_names_it(root: Path) -> None:
    def fill(folder: Path) -> None:
        build("v2")(folder)
        path = folder / "bundle.json"
        path.write_text(path.read_text().replace('"step"', '"stepp"'))

    with pytest.raises(BundleError, match='"stepp" is not a key; did you mean "step"'):
        publish_version(root, "v2", fill)


@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "run.py", "noext", "rows.npz"])
def test_a_file_that_may_hold_code_is_not_published(root: Path, name: str) -> None:
    def fill(folder: Path) -> None:
        build("v2")(folder)
        (folder / name).write_bytes(b"")

    with pytest.raises(BundleError, match=f"{name}: not a file a bundle may hold"):
        publish_version(root, "v2", fill)
    assert versions(root) == [ID]


def test_an_array_of_objects_and_a_link_are_not_published(root: Path) -> None:
    def pickled(folder: Path) -> None:
        build("v2")(folder)
        np.save(folder / "ids" / "objects.npy", np.array([{}], object), allow_pickle=True)

    def linked(folder: Path) -> None:
        build("v2")(folder)
        (folder / "outside").symlink_to(root)

    with pytest.raises(BundleError, match=r"objects\.npy: "):
        publish_version(root, "v2", pickled)
    with pytest.raises(BundleError, match="outside: not a file a bundle may hold"):
        publish_version(root, "v2", linked)


@pytest.mark.parametrize("name", ["SHA256SUMS", "READY"])
def test_verify_finds_an_altered_seal(root: Path, name: str) -> None:
    path = root / "versions" / ID / name
    path.write_text(path.read_text().replace(path.read_text()[:4], "0000"))
    with pytest.raises(BundleError, match="SHA256SUMS: altered"):
        verify(root / "versions" / ID)
    with pytest.raises(BundleError, match="SHA256SUMS: altered"):
        open_version(root, ID)


def test_verify_finds_a_link_put_in_later(root: Path) -> None:
    (root / "versions" / ID / "more").symlink_to(root)
    with pytest.raises(BundleError, match="more: extra"):
        verify(root / "versions" / ID)


def test_hashing_tells_where_it_is(tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    path = publish_version(tmp_path, ID, build(ID), progress=lambda *step: told.append(step))
    expected = [(0, 2, "hashing bundle.json"), (1, 2, "hashing ids/post/id_map.json"), (2, 2, "hashed")]
    assert told == expected
    told.clear()
    verify(path, progress=lambda *step: told.append(step))
    assert told == expected


def test_a_reader_of_current_never_sees_half_an_id(root: Path) -> None:
    publish_version(root, "another", build("another"))
    seen: set[str | None] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(read_current(root))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(50):
        set_current(root, ["another", ID][i % 2])
    done.set()
    reader.join()
    assert seen <= {ID, "another"}


def test_a_bundle_cannot_be_changed_in_memory(root: Path) -> None:
    bundle: Bundle = open_version(root)
    with pytest.raises(AttributeError):
        bundle.digest = ""  # type: ignore[misc]
    with pytest.raises(ValueError, match="frozen"):
        bundle.manifest.step = 2
    assert Manifest.load(bundle.path) == bundle.manifest
