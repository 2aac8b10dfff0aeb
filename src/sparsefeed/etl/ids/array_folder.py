"""A folder of arrays under one JSON header, replaced in one step while others read it.

An array file bears the start of its SHA-256 in its name (`pilots-0f3a....npy`), so a file never changes, an
array that two versions share stays one (hard-linked) file, and a header can only name the arrays
it was written with. The header is renamed into place last: a reader sees the old set or the new one.
One writer at a time. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import IdError

__all__ = ["read_array_folder", "write_array_folder"]

_CHECKED_BYTES = 1 << 20  # array files up to this size are always compared with their digest
_ATTEMPTS = 5  # reads of a folder whose writer removes the old arrays at the same moment


def write_array_folder(
    folder: Path, header_name: str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write arrays and header, fsynced; array files that the new header does not name are removed last.

    Args:
        folder: made if it is not there.
        header_name: file name of the header; its stem begins no array's name.
        header: JSON values; `arrays` (name -> file, bytes, sha256) is added to it.
        arrays: by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries: dict[str, dict[str, Any]] = {}
    for name, array in arrays.items():
        with _partial(folder) as partial:
            with partial.open("wb") as stream:
                np.save(stream, array, allow_pickle=False)
            digest = _sha256(partial)
            entries[name] = {"file": f"{name}-{digest[:16]}.npy", "bytes": partial.stat().st_size, "sha256": digest}
            final = folder / entries[name]["file"]
            if not (final.exists() and _sha256(final) == digest):  # else it stays, with the links to it
                _rename(partial, final)
    with _partial(folder) as partial:
        partial.write_text(json.dumps({**header, "arrays": entries}, indent=1, ensure_ascii=False) + "\n", "utf-8")
        _rename(partial, folder / header_name)
    kept = {entry["file"] for entry in entries.values()}
    for file in folder.glob("*.npy"):
        if file.name not in kept:
            file.unlink()


def read_array_folder(
    folder: Path, header_name: str, format: str, mmap: bool
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the header and its arrays.

    The size of every file is compared with the header; the digest too for files up to 1 MiB and, without
    `mmap`, for all.

    Args:
        folder: as written.
        header_name: file name of the header.
        format: what the header's `format` must be.
        mmap: open arrays by memory map, read-only, rather than read them.

    Raises:
        IdError: the folder is not there, of another format, incomplete, truncated or altered.
    """
    for _ in range(_ATTEMPTS):
        path = folder / header_name
        try:
            text = path.read_bytes()
        except OSError as error:
            raise IdError(
                f"{path}: cannot be read ({error.strerror}); give the folder that an id map was saved to"
            ) from error
        header = _header(path, text, format)
        try:
            return header, {name: _read(folder, name, entry, mmap) for name, entry in header["arrays"].items()}
        except FileNotFoundError as error:
            missing = error
            if path.read_bytes() == text:  # else a writer replaced the header meanwhile
                break
    raise IdError(
        f"{missing.filename}: missing, though {header_name} names it; restore the whole folder from its bundle"
    )


def _header(path: Path, text: bytes, format: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        found = header["format"]
        entries = [(entry["file"], entry["bytes"], entry["sha256"]) for entry in header["arrays"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise IdError(f"{path}: not a header ({error!r}); restore the whole folder from its bundle") from error
    if found != format:
        raise IdError(f'{path}: format is "{found}"; this version reads "{format}"; build the map again')
    for file, _, _ in entries:
        if Path(file).name != file:
            raise IdError(
                f'{path}: array file "{file}" lies outside the folder; restore the whole folder from its bundle'
            )
    return header  # type: ignore[no-any-return]


def _read(folder: Path, name: str, entry: Mapping[str, Any], mmap: bool) -> NDArray[Any]:
    path = folder / entry["file"]
    num_bytes = path.stat().st_size
    if num_bytes != entry["bytes"]:
        raise IdError(
            f"{path}: truncated or extended: {num_bytes} bytes, {entry['bytes']} written; restore it from its bundle"
        )
    if (num_bytes <= _CHECKED_BYTES or not mmap) and _sha256(path) != entry["sha256"]:
        raise IdError(f"{path}: altered: its SHA-256 is not the one in the header; restore it from its bundle")
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except ValueError as error:
        raise IdError(f"{path}: {name} is not a npy array ({error}); restore it from its bundle") from error
    array.setflags(write=False)
    return array.view(np.ndarray)


class _partial:
    """A path beside the final one, removed if it was not renamed."""

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
        os.fchmod(handle, 0o644)
        os.close(handle)
        self.path = Path(name)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.path.unlink(missing_ok=True)


def _rename(partial: Path, final: Path) -> None:
    """Rename once the bytes, then the name, are on the disk."""
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    partial.replace(final)
    folder = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
