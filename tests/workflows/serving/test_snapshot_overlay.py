"""A snapshot and what came since, beside it: read as one that is written whole, and refused where it is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import BundleError
from sparsefeed.etl.plan import LookupPlan
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.workflows.serving.steps.state import SideState
from tests import bundles

LOOKUPS = (
    LookupPlan("own", "id", "candidate", "post", 1, "sum"),
    LookupPlan("creator", "id", "candidate", "post", 1, "sum"),
    LookupPlan("tags", "ids", "candidate", "post", 2, "sum"),
)
SOME_KEYS = st.sets(st.one_of(st.integers(0, 12), st.integers(0, 2**64 - 1)), max_size=12)
ASKED = np.array([*range(14), 2**63, 2**64 - 1], np.uint64)


def read(side: SnapshotSide, keys: np.ndarray) -> list[object]:
    """All that a request reads of these members or posts, bit for bit."""
    into = {item.name: np.full((len(keys), item.max_length), 7, np.uint64) for item in LOOKUPS}
    state = SideState.read(side, "own", keys, LOOKUPS, into)
    lists = [values.tolist() for values in (*into.values(), *state.lengths.values())]
    return [state.found.tolist(), state.dense.view(np.uint32).tolist(), *lists]


@settings(max_examples=40, deadline=None)
@given(SOME_KEYS, st.lists(st.tuples(SOME_KEYS, SOME_KEYS), min_size=1, max_size=3))
def test_base_and_overlay_are_read_as_one_written_whole(
    tmp_path_factory: pytest.TempPathFactory, first: set[int], days: list[tuple[set[int], set[int]]]
) -> None:
    folder = tmp_path_factory.mktemp("snapshot")
    known: dict[str, dict[int, int]] = {"member": dict.fromkeys(first, 0), "post": dict.fromkeys(first, 0)}
    base = Snapshot(bundles.side(sorted(first), 0), bundles.side(sorted(first), 0), 0, 0, bundles.SPEC_DIGEST)
    base.save(folder / "0")
    of_day = {0: base}
    for number, (members, posts) in enumerate(days, 1):
        day = Snapshot(
            bundles.side(sorted(members), number),
            bundles.side(sorted(posts), number),
            number,
            0,
            bundles.SPEC_DIGEST,
        )
        of_day[number] = day
        for name, keys in (("member", members), ("post", posts)):
            known[name] |= dict.fromkeys(keys, number)
        base.save(folder / str(number))
        Snapshot.load(folder / str(number - 1)).save_overlay(folder / str(number), day)
        layered = Snapshot.load(folder / str(number))
        layered.save(folder / f"whole-{number}")
        whole = Snapshot.load(folder / f"whole-{number}")
        assert layered.as_of_ms == whole.as_of_ms == number
        assert whole.overlay is None
        for name, last in known.items():
            asked = np.unique(np.concatenate([ASKED, np.array(list(last), np.uint64)]))
            assert read(layered.sides[name], asked) == read(whole.sides[name], asked)
            assert whole.sides[name].keys.tolist() == sorted(last)
            for key, number_of_day in last.items():  # of each the day that saw it last
                one = np.array([key], np.uint64)
                assert read(whole.sides[name], one) == read(of_day[number_of_day].sides[name], one)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    bundles.snapshot([1, 2, 3, 4], 1).save(tmp_path / "snapshot")
    Snapshot.load(tmp_path / "snapshot").save_overlay(tmp_path / "snapshot", bundles.snapshot([3, 4, 5], 2))
    return tmp_path / "snapshot"


def array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def damage(overlay: Path) -> None:
        np.save(overlay / name, change(np.load(overlay / name)))

    return damage


def header(**changes: object) -> Callable[[Path], None]:
    def damage(overlay: Path) -> None:
        path = overlay / "snapshot.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (array("post/keys.npy", lambda keys: keys[::-1]), r"overlay/post/keys\.npy: must be ascending"),
        (array("post/keys.npy", lambda keys: keys.astype(np.int64)), r"post/keys\.npy: got int64 .*must be uint64"),
        (array("post/keys.npy", lambda keys: keys[1:]), "2 keys, but"),
        (array("post/dense.npy", lambda dense: dense[:, :1]), r"overlay/post: dense: got 1; .* has 2"),
        (array("post/dense.npy", lambda dense: dense[0]), r"dense\.npy: got float32 of 1 dim.*float32 of 2"),
        (array("post/tags.offsets.npy", lambda offsets: offsets + 1), r"tags\.offsets\.npy: must rise from 0 to"),
        (array("post/tags.npy", lambda tags: tags[1:]), r"tags\.offsets\.npy: must rise from 0 to"),
        (lambda overlay: (overlay / "post" / "creator.npy").unlink(), r"creator\.npy: not a readable array"),
        (lambda overlay: (overlay / "post" / "keys.npy").write_bytes(b"\x93NUMPY"), r"keys\.npy: not a readable array"),
        (lambda overlay: (overlay / "snapshot.json").unlink(), r"overlay/snapshot\.json: not a snapshot"),
        (header(format=2), "format 2; this version reads 1"),
        (header(spec_digest="other"), "overlay: spec_digest: got other; the older one has"),
        (header(key_seed=3), "overlay: key_seed: got 3; the older one has 0"),
        (header(as_of=0), "overlay: as of 0 ms, which is before 1; apply it in order"),
    ],
)
def test_a_damaged_overlay_is_refused(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    assert read(Snapshot.load(folder).post, np.array([2, 3, 5, 6], np.uint64))[0] == [True, True, True, False]
    damage(folder / "overlay")
    with pytest.raises(BundleError, match=message):
        Snapshot.load(folder)


def test_a_count_that_is_not_the_keys_is_refused(folder: Path) -> None:
    path = folder / "snapshot.json"
    path.write_text(path.read_text().replace('"count": 4', '"count": 3'))
    with pytest.raises(BundleError, match=r"post: count 3; post/keys\.npy has 4"):
        Snapshot.load(folder)
