"""Snapshot: what serving knows of members and posts, by key (docs/contracts/snapshot.md).

Plain .npy files found by binary search and memory-mapped, so that a snapshot of any size opens in
milliseconds and is shared by all server processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError

__all__ = ["FORMAT", "Snapshot", "SnapshotSide"]

FORMAT = 1
Ragged = tuple[NDArray[np.int64], NDArray[np.uint64]]


@dataclass(frozen=True)
class SnapshotSide:
    """State of all members, or of all posts.

    Attributes:
        keys: uint64 [n], ascending and unique.
        dense: float32 [n, D], raw values, NaN for null.
        ids: per other id feature, uint64 [n], 0 for null.
        lists: per list or history feature, (offsets int64 [n+1], keys uint64).
    """

    keys: NDArray[np.uint64]
    dense: NDArray[np.float32]
    ids: Mapping[str, NDArray[np.uint64]]
    lists: Mapping[str, Ragged]

    def __post_init__(self) -> None:
        n = len(self.keys)
        sizes = {"dense": len(self.dense)}
        sizes |= {name: len(column) for name, column in self.ids.items()}
        sizes |= {f"{name}.offsets": len(offsets) - 1 for name, (offsets, _) in self.lists.items()}
        wrong = {name: size for name, size in sizes.items() if size != n}
        if wrong:
            raise BundleError(f"snapshot: {n} keys, but {wrong} rows; the files are not of one snapshot, make it again")

    def find(self, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Index of each key, -1 where it is unknown; O(log n) memory accesses a key."""
        if len(self.keys) == 0:
            return np.full(len(keys), -1, np.int64)
        at = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[at] == keys, at, -1).astype(np.int64)

    def save(self, folder: Path) -> None:
        """Write the side's .npy files into a new folder."""
        folder.mkdir(parents=True)
        np.save(folder / "keys.npy", self.keys)
        np.save(folder / "dense.npy", self.dense)
        for name, column in self.ids.items():
            np.save(folder / f"{name}.npy", column)
        for name, (offsets, keys) in self.lists.items():
            np.save(folder / f"{name}.offsets.npy", offsets)
            np.save(folder / f"{name}.npy", keys)

    @classmethod
    def load(cls, folder: Path, ids: list[str], lists: list[str]) -> SnapshotSide:
        """Memory-map a side's files."""

        def open_array(name: str) -> NDArray:
            try:
                array: NDArray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise BundleError(
                    f"{folder / name}.npy: not a readable array: {error}; export the bundle again"
                ) from error
            return array

        return cls(
            keys=open_array("keys"),
            dense=open_array("dense"),
            ids={name: open_array(name) for name in ids},
            lists={name: (open_array(f"{name}.offsets"), open_array(name)) for name in lists},
        )


@dataclass(frozen=True)
class Snapshot:
    """Member and post state at `as_of_ms` (milliseconds since the epoch)."""

    member: SnapshotSide
    post: SnapshotSide
    as_of_ms: int
    key_seed: int
    spec_digest: str

    def save(self, folder: Path) -> None:
        """Write both sides; snapshot.json last."""
        sides = {"member": self.member, "post": self.post}
        for name, side in sides.items():
            side.save(folder / name)
        header = {
            "format": FORMAT,
            "as_of": self.as_of_ms,
            "key_seed": self.key_seed,
            "spec_digest": self.spec_digest,
            "sides": {
                name: {"count": len(side.keys), "ids": list(side.ids), "lists": list(side.lists)}
                for name, side in sides.items()
            },
        }
        (folder / "snapshot.json").write_text(json.dumps(header, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Snapshot:
        """Memory-map a snapshot; BundleError when a file is missing or of another format."""
        path = Path(folder) / "snapshot.json"
        try:
            header = json.loads(path.read_text("utf-8"))
            if header["format"] != FORMAT:
                raise ValueError(f"format {header['format']}; this version reads {FORMAT}")
            sides = {
                name: SnapshotSide.load(
                    Path(folder) / name, header["sides"][name]["ids"], header["sides"][name]["lists"]
                )
                for name in ("member", "post")
            }
            return cls(sides["member"], sides["post"], header["as_of"], header["key_seed"], header["spec_digest"])
        except (OSError, ValueError, KeyError) as error:
            raise BundleError(f"{path}: not a snapshot: {error}; export the bundle again") from error
