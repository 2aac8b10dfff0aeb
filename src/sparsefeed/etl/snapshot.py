"""Snapshot: what serving knows of members and posts, by key (docs/contracts/snapshot.md).

Plain .npy files found by binary search and memory-mapped, so that a snapshot of any size opens in
milliseconds and is shared by all server processes. What deltas brought since lies beside it as a snapshot of its own,
the overlay, which is asked first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.etl.array_file import ArrayFile
from sparsefeed.etl.kernels.ragged import gather_lists, list_lengths
from sparsefeed.etl.kernels.state import find_sorted, read_only

__all__ = ["FORMAT", "OVERLAY", "SideWriter", "Snapshot", "SnapshotSide", "write_header"]

FORMAT = 1
OVERLAY = "overlay"  # the folder in a snapshot's
_SIDES = ("member", "post")
Ragged = tuple[NDArray[np.int64], NDArray[np.uint64]]


@dataclass(frozen=True)
class SnapshotSide:
    """State of all members, or of all posts.

    Attributes:
        keys: uint64 [n], ascending and unique.
        dense: float32 [n, D], raw values, NaN for null.
        ids: per other id feature, uint64 [n], 0 for null.
        lists: per list or history feature, (offsets int64 [n+1], keys uint64).
        newer: the overlay's side, whose members or posts win over those of their key here.
    """

    keys: NDArray[np.uint64]
    dense: NDArray[np.float32]
    ids: Mapping[str, NDArray[np.uint64]]
    lists: Mapping[str, Ragged]
    newer: SnapshotSide | None = None

    def __post_init__(self) -> None:
        n = len(self.keys)
        sizes = {"dense": len(self.dense)}
        sizes |= {name: len(column) for name, column in self.ids.items()}
        sizes |= {f"{name}.offsets": len(offsets) - 1 for name, (offsets, _) in self.lists.items()}
        wrong = {name: size for name, size in sizes.items() if size != n}
        if wrong:
            raise BundleError(f"snapshot: {n} keys, but {wrong} rows; the files are not of one snapshot, make it again")

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Index of each key in these arrays, -1 where they have it not; O(log n) memory accesses a key."""
        found = np.empty(len(keys), np.int64)
        find_sorted(self.views.keys, keys, found)
        return found

    @cached_property
    def views(self) -> SnapshotSide:
        """The same arrays as kernels take them, made once: a view costs a request more than what a kernel does."""
        return SnapshotSide(
            read_only(self.keys),
            read_only(self.dense),
            {name: read_only(column) for name, column in self.ids.items()},
            {name: (read_only(offsets), read_only(values)) for name, (offsets, values) in self.lists.items()},
        )

    def whole(self) -> SnapshotSide:
        """The same members or posts without an overlay."""
        return self if self.newer is None else _with_newer(replace(self, newer=None), self.newer)

    def save(self, folder: Path) -> None:
        """Write the side's .npy files, without those of an overlay, into a new folder."""
        with SideWriter(folder, self.dense.shape[1], list(self.ids), list(self.lists)) as writer:
            writer.append(self)

    @classmethod
    def load(cls, folder: Path, ids: list[str], lists: list[str]) -> SnapshotSide:
        """Memory-map a side's files."""

        def open_array(name: str, dtype: type[np.generic] = np.uint64, dimensions: int = 1) -> NDArray:
            try:
                array: NDArray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise BundleError(
                    f"{folder / name}.npy: not a readable array: {error}; export the bundle again"
                ) from error
            if array.dtype != dtype or array.ndim != dimensions:
                raise BundleError(
                    f"{folder / name}.npy: got {array.dtype} of {array.ndim} dimensions; must be "
                    f"{np.dtype(dtype)} of {dimensions}; export the bundle again"
                )
            return array

        return cls(
            keys=open_array("keys"),
            dense=open_array("dense", np.float32, 2),
            ids={name: open_array(name) for name in ids},
            lists={name: (open_array(f"{name}.offsets", np.int64), open_array(name)) for name in lists},
        )

    def must_hold_on(self, older: SnapshotSide, where: Path) -> None:
        """Be fit to lie over `older`: of its features, keys in order, lists within their values.

        Raises:
            BundleError: names the file that is not, in `where`.
        """
        for what, got, allowed in (
            ("dense", self.dense.shape[1], older.dense.shape[1]),
            ("ids", sorted(self.ids), sorted(older.ids)),
            ("lists", sorted(self.lists), sorted(older.lists)),
        ):
            if got != allowed:
                raise BundleError(f"{where}: {what}: got {got}; the snapshot that it changes has {allowed}")
        if (self.keys[1:] <= self.keys[:-1]).any():
            raise BundleError(f"{where}/keys.npy: must be ascending, no two alike; refresh the day again")
        for name, (offsets, values) in self.lists.items():
            if offsets[0] != 0 or offsets[-1] != len(values) or (offsets[1:] < offsets[:-1]).any():
                raise BundleError(
                    f"{where}/{name}.offsets.npy: must rise from 0 to {len(values)}, the number of {name}.npy; "
                    "refresh the day again"
                )


def _with_newer(older: SnapshotSide, newer: SnapshotSide) -> SnapshotSide:
    """All rows of `newer`, and those of `older` that it has not."""
    kept = np.flatnonzero(newer.find(np.asarray(older.keys)) < 0)
    keys = np.concatenate([older.keys[kept], newer.keys])
    order = np.argsort(keys)

    def column(old: NDArray, new: NDArray) -> NDArray:
        both: NDArray = np.concatenate([old[kept], new])[order]
        return both

    lists = {}
    for name, (old_offsets, old_keys) in older.lists.items():
        new_offsets, new_keys = newer.lists[name]
        values = np.concatenate([old_keys, new_keys])
        # Lists of both, those of `newer` after those of `older`; then the ones there shall be.
        offsets = np.concatenate([old_offsets, new_offsets[1:] - new_offsets[0] + old_offsets[-1]])
        rows = np.concatenate([kept, len(older.keys) + np.arange(len(newer.keys))])[order]
        lengths = np.empty(len(rows), np.int64)
        gathered = np.empty(list_lengths(offsets, rows, lengths), np.uint64)
        gather_lists(values, offsets, rows, gathered)
        lists[name] = np.r_[np.int64(0), np.cumsum(lengths)], gathered
    return SnapshotSide(
        keys[order],
        column(older.dense, newer.dense),
        {name: column(values, newer.ids[name]) for name, values in older.ids.items()},
        lists,
    )


class SideWriter:
    """Writes a side part by part, each of greater keys than the one before."""

    def __init__(self, folder: Path, num_dense: int, ids: Sequence[str], lists: Sequence[str]) -> None:
        """Begin a side in a new folder.

        Args:
            folder: made.
            num_dense: D, dense features of the side.
            ids: its other id features.
            lists: its list and history features.
        """
        folder.mkdir(parents=True)
        self.count = 0
        self._files = {
            "keys": ArrayFile(folder / "keys.npy", np.uint64),
            "dense": ArrayFile(folder / "dense.npy", np.float32, num_dense),
            **{name: ArrayFile(folder / f"{name}.npy", np.uint64) for name in (*ids, *lists)},
        }
        self._offsets = {name: ArrayFile(folder / f"{name}.offsets.npy", np.int64) for name in lists}
        for file in self._offsets.values():
            file.append(np.zeros(1, np.int64))

    def append(self, side: SnapshotSide) -> None:
        """Write some members or posts."""
        self.count += len(side.keys)
        self._files["keys"].append(side.keys)
        self._files["dense"].append(side.dense)
        for name, column in side.ids.items():
            self._files[name].append(column)
        for name, (offsets, keys) in side.lists.items():
            self._offsets[name].append(self._files[name].num_rows + offsets[1:] - offsets[0])
            self._files[name].append(keys)

    def __enter__(self) -> SideWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._files.values(), *self._offsets.values()):
            file.close()


@dataclass(frozen=True)
class Snapshot:
    """Member and post state at `as_of_ms` (milliseconds since the epoch); an overlay's, where there is one."""

    member: SnapshotSide
    post: SnapshotSide
    as_of_ms: int
    key_seed: int
    spec_digest: str

    @property
    def sides(self) -> dict[str, SnapshotSide]:
        """Both sides by name."""
        return {"member": self.member, "post": self.post}

    @property
    def overlay(self) -> Snapshot | None:
        """What deltas brought since the base was written; None where they brought nothing."""
        if self.member.newer is None or self.post.newer is None:
            return None
        return replace(self, member=self.member.newer, post=self.post.newer)

    def whole(self) -> Snapshot:
        """The same without an overlay, in memory."""
        return replace(self, member=self.member.whole(), post=self.post.whole())

    def save(self, folder: Path) -> None:
        """Write both sides, whole, into a folder that has none; snapshot.json last."""
        sides = self.whole().sides
        folder.mkdir(parents=True, exist_ok=True)
        for name, side in sides.items():
            side.save(folder / name)
        shapes = {
            name: {"count": len(side.keys), "ids": list(side.ids), "lists": list(side.lists)}
            for name, side in sides.items()
        }
        write_header(folder, self.as_of_ms, self.key_seed, self.spec_digest, shapes)

    def save_overlay(self, folder: Path, newer: Snapshot) -> None:
        """Write what this snapshot's folder needs beside its own files, `folder/overlay`, to hold a later one, too.

        The overlay is of all that came since the base: this one's with the later one's members and posts on top.

        Args:
            folder: holds the files of this snapshot's base, or links to them.
            newer: as of `must_precede`.
        """
        overlay = self.overlay
        both = newer if overlay is None else overlay.with_newer(newer)
        both.save(folder / OVERLAY)

    def must_precede(self, newer: Snapshot, where: Path) -> None:
        """Be what a later snapshot, of the members and posts of its own days, goes on from.

        Raises:
            BundleError: `newer`, which lies in `where`, is of another spec or other keys, is not later, or damaged.
        """
        for what, got, allowed in (
            ("spec_digest", newer.spec_digest, self.spec_digest),
            ("key_seed", newer.key_seed, self.key_seed),
        ):
            if got != allowed:
                raise BundleError(f"{where}: {what}: got {got}; the older one has {allowed}")
        if newer.as_of_ms < self.as_of_ms:
            raise BundleError(f"{where}: as of {newer.as_of_ms} ms, which is before {self.as_of_ms}; apply it in order")
        for name, side in newer.sides.items():
            side.must_hold_on(self.sides[name], where / name)

    def with_newer(self, newer: Snapshot) -> Snapshot:
        """What is known after a later snapshot, which holds the members and posts of its own days alone; in memory."""
        member = _with_newer(self.member.whole(), newer.member.whole())
        post = _with_newer(self.post.whole(), newer.post.whole())
        return replace(self, member=member, post=post, as_of_ms=newer.as_of_ms)

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """Memory-map a snapshot and its overlay, if it has one.

        Raises:
            BundleError: a file is missing, damaged, or of another format.
        """
        base = cls._load_base(Path(folder))
        if not (Path(folder) / OVERLAY).exists():
            return base
        overlay = cls._load_base(Path(folder) / OVERLAY)
        base.must_precede(overlay, Path(folder) / OVERLAY)
        member, post = replace(base.member, newer=overlay.member), replace(base.post, newer=overlay.post)
        return replace(base, member=member, post=post, as_of_ms=overlay.as_of_ms)

    @classmethod
    def _load_base(cls, folder: Path) -> Snapshot:
        path = folder / "snapshot.json"
        try:
            header = json.loads(path.read_text("utf-8"))
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}; this version reads {FORMAT}")
            said = {name: header["sides"][name] for name in _SIDES}
            sides = {name: SnapshotSide.load(folder / name, of["ids"], of["lists"]) for name, of in said.items()}
            for name, side in sides.items():
                if len(side.keys) != said[name]["count"]:
                    raise ValueError(f"{name}: count {said[name]['count']}; {name}/keys.npy has {len(side.keys)}")
            return cls(
                **sides, as_of_ms=header["as_of"], key_seed=header["key_seed"], spec_digest=header["spec_digest"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: not a snapshot: {error}; export the bundle again") from error


def write_header(
    folder: Path, as_of_ms: int, key_seed: int, spec_digest: str, sides: Mapping[str, Mapping[str, object]]
) -> None:
    """Write snapshot.json of sides that are there: per side its `count`, `ids` and `lists`."""
    header = {"format": FORMAT, "as_of": as_of_ms, "key_seed": key_seed, "spec_digest": spec_digest, "sides": sides}
    (folder / "snapshot.json").write_text(json.dumps(header, indent=1) + "\n", "utf-8")
