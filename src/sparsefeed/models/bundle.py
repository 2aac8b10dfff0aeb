"""The bundle: one immutable version of everything serving needs (docs/contracts/bundle.md).

A version is written beside, hashed, fsynced, marked READY and renamed; `current` is one atomic pointer file.
So whatever dies when, a reader sees whole versions only, and the one that served goes on serving.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field

from sparsefeed.errors import BundleError, SpecError
from sparsefeed.etl.spec import Frozen, Name, validate
from sparsefeed.lock import only_writer
from sparsefeed.models.dense_file import DENSE_FILES
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.progress import Progress, silent

__all__ = [
    "Bundle",
    "Manifest",
    "is_older_code",
    "open_version",
    "publish_version",
    "read_current",
    "read_json",
    "seal",
    "set_current",
    "verify",
    "versions",
]

_ID = re.compile(r"[A-Za-z0-9_-]{1,120}")
_SUMS, _READY = "SHA256SUMS", "READY"
_SUFFIXES = (".json", ".npy", ".parquet", ".onnx", ".txt", ".md")  # formats that hold no code
_BLOCK_BYTES = 1 << 20


class Manifest(Frozen):
    """`bundle.json`: what this version is and what it came from."""

    format: Literal[1] = 1
    id: Name
    created: str  # ISO 8601, UTC
    code_version: str
    spec_digest: str
    step: int = Field(ge=0)  # of the training run; dense and sparse carry this one number
    trained_days: tuple[str, ...]
    row_format: RowFormat
    parent: Name | None = None  # the version a delta was applied to
    sequence: int = Field(default=0, ge=0)  # deltas since the full training
    parent_digest: str | None = None  # SHA-256 of the parent's SHA256SUMS

    def save(self, folder: Path) -> None:
        """Write `bundle.json`."""
        (folder / "bundle.json").write_text(self.model_dump_json(indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read `bundle.json`; BundleError when it is missing or not one."""
        return read_json(cls, folder / "bundle.json")


@dataclass(frozen=True)
class Bundle:
    """One READY version: where its files are.

    Attributes:
        path: its folder, `versions/<id>`.
        manifest: its `bundle.json`.
        digest: SHA-256 of its SHA256SUMS: equal digests, equal content.
    """

    path: Path
    manifest: Manifest
    digest: str

    @property
    def id(self) -> str:
        """The version's id."""
        return self.manifest.id

    @property
    def spec(self) -> Path:
        """The FeedSpec, `spec.json`."""
        return self.path / "spec.json"

    def ids(self, table: str) -> Path:
        """Return the folder of a table's id map."""
        return self.path / "ids" / table

    @property
    def plan(self) -> Path:
        """The ServingPlan, `transform/plan.json`."""
        return self.path / "transform" / "plan.json"

    @property
    def dense_onnx(self) -> Path:
        """The dense model."""
        return self.path / DENSE_FILES["fp32"]

    @property
    def dense_formats(self) -> tuple[str, ...]:
        """Formats that the dense model is there in: fp32, and int8 where it was asked for."""
        return tuple(name for name, file in DENSE_FILES.items() if (self.path / file).exists())

    @property
    def calibration(self) -> Path:
        """Scale and shift per response."""
        return self.path / "calibration.json"

    @property
    def tables(self) -> Path:
        """The folder that ParameterStore.open reads."""
        return self.path / "tables"

    @property
    def snapshot(self) -> Path:
        """The folder that Snapshot.load reads."""
        return self.path / "snapshot"


def publish_version(
    root: Path, id: str, build: Callable[[Path], None], progress: Progress = silent, parent: Path | None = None
) -> Path:
    """Write one version, whole or not at all; one publisher of a root at a time.

    Args:
        root: holds `versions/` and `current`.
        id: of the version; `bundle.json` must carry the same.
        build: fills an empty folder with every file but SHA256SUMS and READY.
        progress: told of the files hashed.
        parent: the version that some of its files are links to; see `seal`.

    Returns:
        versions/<id>. An id that exists with the same content is left as it is.

    Raises:
        BundleError: the id exists with other content, a file is of no allowed format, bundle.json is of another
            version, or the disk is full. What was there before is untouched.
    """
    if not _ID.fullmatch(id):
        raise BundleError(f'bundle id "{id}": must match {_ID.pattern}')
    target, partial = _version(root, id), Path(root) / "versions" / f".{id}.partial"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with only_writer(partial.parent):
            shutil.rmtree(partial, ignore_errors=True)
            try:
                partial.mkdir()
                build(partial)
                got = Manifest.load(partial).id
                if got != id:
                    raise BundleError(f'{partial / "bundle.json"}: id: got "{got}"; this version is "{id}"')
                digest = seal(partial, progress, parent)
                if (target / _READY).exists():
                    if _digest(target) != digest:
                        raise BundleError(
                            f"{target}: exists with other content; a version never changes, choose a new id"
                        )
                elif target.exists():
                    raise BundleError(
                        f"{target}: is there without READY, so it is no bundle; remove it and publish again"
                    )
                else:
                    partial.rename(target)
                    _sync(target.parent)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise BundleError(f"{target}: not published: {error}; {root} is as it was") from error
    return target


def seal(folder: Path, progress: Progress = silent, parent: Path | None = None) -> str:
    """Write SHA256SUMS, fsync everything, write READY last; return the digest.

    A file that is a hard link of the same one of `parent`, a sealed folder, is not read: it keeps the digest that it
    has there, so that one altered since is found by `verify` here as there.

    Raises:
        BundleError: a file is of a format that may hold code, or an array of objects.
    """
    names = list(_files(folder))
    for name in names:
        _check_holds_no_code(folder / name)
    kept = _listed(parent) if parent else {}
    linked = {name for name in names if parent and name in kept and _is_link(folder / name, parent / name)}
    read = _sums(folder, [name for name in names if name not in linked], progress)
    sums = {name: kept[name] if name in linked else read[name] for name in names}
    (folder / _SUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in sums.items()), "utf-8")
    digest = _sha256(folder / _SUMS)
    for name in (*names, _SUMS):
        _sync(folder / name)
    (folder / _READY).write_text(digest + "\n", "utf-8")
    _sync(folder / _READY)
    for place in (*(path for path in folder.rglob("*") if path.is_dir()), folder):
        _sync(place)
    return digest


def verify(version: Path, progress: Progress = silent, only: Callable[[str], bool] = lambda name: True) -> str:
    """Read every file of a sealed folder; return its digest.

    Args:
        version: the folder.
        progress: told of the files hashed.
        only: which files to read, by name; that no other is missing or extra is looked at all the same.

    Raises:
        BundleError: names the first file that is missing, altered or extra.
    """
    digest = _digest(version)
    listed = _listed(version)
    found = set(_files(version))
    for name in sorted(found | set(listed)):
        if name not in found:
            raise BundleError(f"{version / name}: missing; copy the folder again")
        if name not in listed:
            raise BundleError(f"{version / name}: extra; it is not in {_SUMS}, remove it")
    for name, sha in _sums(version, sorted(filter(only, found)), progress).items():
        if listed[name] != sha:
            raise BundleError(f"{version / name}: altered: SHA-256 {sha}, {_SUMS} says {listed[name]}; copy it again")
    return digest


def versions(root: Path) -> list[str]:
    """List the ids of READY versions, sorted."""
    places = (Path(root) / "versions").glob("*/" + _READY)
    return sorted(ready.parent.name for ready in places if _ID.fullmatch(ready.parent.name))


def read_current(root: Path) -> str | None:
    """Read the id in `current`; None when nothing was ever released."""
    try:
        return (Path(root) / "current").read_text("utf-8").strip()
    except FileNotFoundError:
        return None


def set_current(root: Path, id: str) -> None:
    """Point `current` at a READY version by one atomic rename: release and rollback alike.

    Raises:
        BundleError: the id is no READY version, or the disk is full; `current` is as it was.
    """
    open_version(root, id)
    partial = Path(root) / ".current.partial"
    try:
        with only_writer(Path(root) / "versions"):
            partial.write_text(id + "\n", "utf-8")
            _sync(partial)
            partial.replace(Path(root) / "current")
            _sync(Path(root))
    except OSError as error:
        raise BundleError(f"{root}/current: not set to {id}: {error}; it is as it was") from error


def open_version(root: Path, id: str | None = None) -> Bundle:
    """Open a version, or the current one; its files are not read (`verify` does).

    Raises:
        BundleError: there is no such READY version; the message lists those that are.
    """
    if id is None:
        id = read_current(root)
        if id is None:
            raise BundleError(f"{root}/current: missing; run `sparsefeed export` first")
    path = _version(root, id)
    if not _ID.fullmatch(id) or not (path / _READY).exists():
        raise BundleError(f'{root}: "{id}" is no READY version; there are: {", ".join(versions(root)) or "none"}')
    manifest = Manifest.load(path)
    if manifest.id != id:
        raise BundleError(f'{path / "bundle.json"}: id: got "{manifest.id}"; the folder is "{id}"; copy it again')
    return Bundle(path, manifest, _digest(path))


def is_older_code(version: str, than: str) -> bool:
    """Whether one `code_version` is a release before another; False of what is no release, like a working copy."""
    numbers = [re.match(r"(\d+)\.(\d+)\.(\d+)", one) for one in (version, than)]
    ours, theirs = (tuple(map(int, found.groups())) if found else () for found in numbers)
    return bool(ours and theirs) and ours < theirs


Model = TypeVar("Model", bound=Frozen)


def read_json(model: type[Model], path: Path) -> Model:
    """Read one JSON file of a bundle or delta; BundleError names the file and the field."""
    try:
        return validate(model, json.loads(path.read_text("utf-8")), where=str(path))
    except (OSError, ValueError, SpecError) as error:
        raise BundleError(f"{path}: {error}" if not isinstance(error, SpecError) else str(error)) from error


def _version(root: Path, id: str) -> Path:
    return Path(root) / "versions" / id


def _files(folder: Path) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if (path.is_symlink() or not path.is_dir()) and name not in {_SUMS, _READY}:
            yield name


def _listed(folder: Path) -> dict[str, str]:
    """SHA256SUMS: name -> digest."""
    return {line[66:]: line[:64] for line in (folder / _SUMS).read_text("utf-8").splitlines()}


def _is_link(path: Path, other: Path) -> bool:
    return other.exists() and path.samefile(other)


def _sums(folder: Path, names: list[str], progress: Progress) -> dict[str, str]:
    sums = {}
    for i, name in enumerate(names):
        progress(i, len(names), f"hashing {name}")
        sums[name] = _sha256(folder / name)
    progress(len(names), len(names), "hashed")
    return sums


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _digest(folder: Path) -> str:
    try:
        said, got = (folder / _READY).read_text("utf-8"), _sha256(folder / _SUMS)
    except OSError as error:
        raise BundleError(f"{folder}: {error}; it is not whole, copy or publish it again") from error
    if said != got + "\n":
        raise BundleError(f"{folder / _SUMS}: altered: SHA-256 {got}, {_READY} says {said!r}; copy the folder again")
    return got


def _check_holds_no_code(path: Path) -> None:
    if path.suffix not in _SUFFIXES or path.is_symlink():
        raise BundleError(f"{path}: not a file a bundle may hold; allowed: {', '.join(_SUFFIXES)}, and no links")
    if path.suffix == ".npy":
        try:
            np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise BundleError(f"{path}: {error}; store numbers or fixed-length text") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
