from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest

from sparsefeed.errors import BundleError, ReleaseError
from sparsefeed.models.bundle import verify, versions
from sparsefeed.models.delta import apply_delta
from sparsefeed.workflows.release.transport import list_versions, pull, pull_delta, push, push_delta
from tests import bundles
from tests.children import ask_child
from tests.object_store import open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    bundles.publish(tmp_path / "here", "v1")
    return tmp_path / "here"


def test_a_bundle_sent_and_fetched_is_the_same(root: Path, tmp_path: Path) -> None:
    store, there = str(tmp_path / "store"), tmp_path / "there"
    assert list_versions(store) == []
    assert push(root, "v1", store) == "v1"
    assert list_versions(store) == ["v1"]
    assert pull(store, "v1", there) == there / "versions" / "v1"
    assert bundles.tree(there) == {name: data for name, data in bundles.tree(root).items() if name != "current"}
    before = bundles.tree(there)
    push(root, "v1", store)
    pull(store, "v1", there)
    assert bundles.tree(there) == before


def test_a_store_in_memory_and_one_over_http_are_stores(root: Path, tmp_path: Path) -> None:
    push(root, "v1", "memory://feed/bundles")
    pull("memory://feed/bundles", "v1", tmp_path / "one")
    push(root, "v1", str(tmp_path / "store"))
    with open_store(tmp_path / "store", tmp_path / "record") as store:
        pull(store.url, "v1", tmp_path / "other")
    assert bundles.tree(tmp_path / "one") == bundles.tree(tmp_path / "other")


def test_a_delta_sent_and_fetched_makes_the_same_version(root: Path, tmp_path: Path) -> None:
    delta = bundles.delta(bundles.publish(root, "v1"), "v2", tmp_path / "delta").path
    store, there = str(tmp_path / "store"), tmp_path / "there"
    push(root, "v1", store)
    assert push_delta(delta, store) == "v2"
    pull(store, "v1", there)
    fetched = pull_delta(store, "v2", tmp_path / "fetched")
    apply_delta(root, delta)
    assert apply_delta(there, fetched) == "v2"
    assert verify(there / "versions" / "v2") == verify(root / "versions" / "v2")


def test_what_is_sent_is_not_there_before_its_ready(root: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    push(root, "v1", str(store))
    (store / "versions" / "v1" / "READY").unlink()
    assert list_versions(str(store)) == []
    with pytest.raises(ReleaseError, match="has no READY"):
        pull(str(store), "v1", tmp_path / "there")
    push(root, "v1", str(store))  # goes on
    assert list_versions(str(store)) == ["v1"]


@pytest.mark.parametrize("fault", ["altered", "cut", "missing"])
def test_what_arrives_otherwise_than_it_was_sent_is_refused_and_not_there(
    root: Path, tmp_path: Path, fault: str
) -> None:
    push(root, "v1", str(tmp_path / "store"))
    path = tmp_path / "store" / "versions" / "v1" / "tables" / "post.npy"
    data = path.read_bytes()
    path.unlink()
    if fault != "missing":
        path.write_bytes(data[:-1] if fault == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ReleaseError if fault == "missing" else BundleError, match=r"post\.npy"):
        pull(str(tmp_path / "store"), "v1", tmp_path / "there")
    assert list((tmp_path / "there" / "versions").iterdir()) == []


def test_a_list_that_names_files_elsewhere_is_refused(root: Path, tmp_path: Path) -> None:
    push(root, "v1", str(tmp_path / "store"))
    sums = tmp_path / "store" / "versions" / "v1" / "SHA256SUMS"
    sums.write_text(sums.read_text().replace("  dense.onnx", "  ../../../evil"))
    with pytest.raises(BundleError, match="inside its folder"):
        pull(str(tmp_path / "store"), "v1", tmp_path / "there")
    assert not (tmp_path / "evil").exists()


def test_another_content_of_the_same_id_is_refused_on_either_side(root: Path, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    push(root, "v1", store)
    bundles.publish(tmp_path / "other", "v1", seed=7)
    with pytest.raises(BundleError, match="is there with other content"):
        push(tmp_path / "other", "v1", store)
    with pytest.raises(BundleError, match="exists with other content than"):
        pull(store, "v1", tmp_path / "other")


def test_a_fetch_killed_anywhere_leaves_nothing_and_a_repeated_one_finishes(root: Path, tmp_path: Path) -> None:
    store, there = str(tmp_path / "store"), tmp_path / "there"
    push(root, "v1", store)
    told: list[str] = []
    pull(store, "v1", tmp_path / "first", lambda done, total, what: told.append(what))

    def pull_until(step: int) -> None:
        count = iter(range(len(told)))

        def die(done: int, total: int, what: str) -> None:
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)

        pull(store, "v1", there, die)

    for step in range(0, len(told), 9):
        code, _ = ask_child(partial(pull_until, step))
        assert code == -signal.SIGKILL
        assert versions(there) == []
    pull(store, "v1", there)
    assert versions(there) == ["v1"]
    assert bundles.tree(there) == bundles.tree(tmp_path / "first")
