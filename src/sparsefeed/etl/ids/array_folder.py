"""A folder of arrays under one JSON header, replaced in one step while others read it.

An array file bears the start of its SHA-256 in its name (`pilots-0f3a....npy`), so a file never changes, an
array that two versions share stays one (hard-linked) file, and a header can only name the arrays
it was written with. The header is renamed into place last: a reader sees the old set or the new one.
The header bears the SHA-256 of itself. Writers wait for each other. Other files in the folder stay. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.lock import only_writer

__all__ = ["StoredArray", "read_array_folder", "sha256_of_header", "stored_arrays", "write_array_folder"]

_CHECKED_BYTES = 1 << 20  # array files up to this size are always compared with their digest
_ATTEMPTS = 5  # reads of a folder whose writer removes the old arrays at the same moment
# numpy reads an array's header with `ast`, which two threads at once break (gh-106905, Python 3.11).
_ONE_AT_A_TIME = threading.Lock()
os.register_at_fork(after_in_child=_ONE_AT_A_TIME._at_fork_reinit)  # type: ignore[attr-defined]  # another thread held it


@dataclass(frozen=True)
class StoredArray:
    """An array file that another version wrote: where it lies, its bytes, and their SHA-256."""

    path: Path
    num_bytes: int
    sha256: str


def stored_arrays(folder: Path, header: Mapping[str, Any]) -> dict[str, StoredArray]:
    """The array files of a header that was read from a folder, by name."""
    return {name: StoredArray(folder / e["file"], e["bytes"], e["sha256"]) for name, e in header["arrays"].items()}


def write_array_folder(
    folder: Path | str,
    header_name: str,
    header: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    stored: Mapping[str, StoredArray] | None = None,
) -> None:
    """Write arrays and header, fsynced; array files that the new header does not name are removed last.

    Args:
        folder: made if it is not there.
        header_name: file name of the header; its stem begins no array's name.
        header: JSON values; `arrays` (name -> file, bytes, sha256) and its own `sha256` are added to it.
        arrays: by name.
        stored: those of them that lie in files already: these are linked, which costs nothing, where they can be.

    Raises:
        OSError: a file cannot be written, as on a full disk; what the folder held before is whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder):
        for left in folder.glob(".*.partial"):  # by a writer that was killed
            left.unlink()
        entries: dict[str, dict[str, Any]] = {}
        for name, array in arrays.items():
            if stored and name in stored and (entry := _linked(stored[name], folder, name)):
                entries[name] = entry
                continue
            with _partial(folder) as partial:
                with partial.open("wb") as stream:
                    digested = _Digested(stream)
                    np.save(digested, array, allow_pickle=False)
                digest = digested.sha256.hexdigest()
                entries[name] = {"file": f"{name}-{digest[:16]}.npy", "bytes": digested.num_bytes, "sha256": digest}
                final = folder / entries[name]["file"]
                if not (final.exists() and _sha256(final) == digest):  # else it stays, with the links to it
                    _rename(partial, final)
        with _partial(folder) as partial:
            whole = {**header, "arrays": entries}
            whole["sha256"] = sha256_of_header(whole)
            partial.write_text(json.dumps(whole, indent=1) + "\n", "utf-8")
            _rename(partial, folder / header_name)
        kept = _named_by_headers(folder)
        for file in folder.glob(f"*-{'[0-9a-f]' * 16}.npy"):
            if file.name not in kept:
                file.unlink()


def _linked(stored: StoredArray, folder: Path, name: str) -> dict[str, Any] | None:
    """Link a stored array into a folder; what the header says of it, None where it must be written."""
    final = folder / f"{name}-{stored.sha256[:16]}.npy"
    try:
        if not (final.exists() and final.samefile(stored.path)):
            final.unlink(missing_ok=True)
            os.link(stored.path, final)
        if final.stat().st_size != stored.num_bytes:
            return None
    except OSError:  # gone since, of another disk, or of one without links
        return None
    return {"file": final.name, "bytes": stored.num_bytes, "sha256": stored.sha256}


def _named_by_headers(folder: Path) -> set[str]:
    """Array files that any header in the folder names."""
    named: set[str] = set()
    for path in folder.glob("*.json"):
        try:
            named |= {entry["file"] for entry in json.loads(path.read_bytes())["arrays"].values()}
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # no header
    return named


def read_array_folder(
    folder: Path | str, header_name: str, format: str, mmap: bool, digest: str | None = None
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read the header and its arrays.

    The size of every file is compared with the header; the digest too for files up to 1 MiB and, without
    `mmap`, for all.

    Args:
        folder: as written.
        header_name: file name of the header.
        format: what the header's `format` must be.
        mmap: open arrays by memory map, read-only, rather than read them.
        digest: the header's `sha256`, where it must be that very version.

    Raises:
        IdError: the folder is not there, of another format or version, incomplete, truncated or altered.
    """
    for _ in range(_ATTEMPTS):
        path = Path(folder) / header_name
        try:
            text = path.read_bytes()
        except OSError as error:
            others = ", ".join(sorted(other.name for other in path.parent.glob("*.json")))
            holds = f"; the folder holds {others}" if others else ""
            raise IdError(
                f"{path}: cannot be read ({error.strerror}){holds}; give the folder that was saved to"
            ) from error
        header = _header(path, text, format)
        if digest not in (None, header["sha256"]):
            raise IdError(
                f"{path}: another version was saved here since; open it anew, or keep versions in folders apart"
            )
        try:
            return header, {name: _read(path.parent, name, entry, mmap) for name, entry in header["arrays"].items()}
        except FileNotFoundError as error:
            missing = error
    raise IdError(
        f"{missing.filename}: missing, though {header_name} names it; restore the whole folder from its bundle"
    )


def _header(path: Path, text: bytes, format: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
        found = header["format"]
        entries = [(Path(entry["file"]), entry["bytes"], entry["sha256"]) for entry in header["arrays"].values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IdError(f"{path}: not a header ({error!r}); restore the whole folder from its bundle") from error
    if found != format:
        raise IdError(f'{path}: format is "{found}"; this version reads "{format}"; make it again')
    for file, _, _ in entries:
        if str(file) != file.name:
            raise IdError(
                f'{path}: array file "{file}" lies outside the folder; restore the whole folder from its bundle'
            )
    if header.get("sha256") != sha256_of_header(header):
        raise IdError(f"{path}: altered: its SHA-256 is not the one it bears; restore the whole folder from its bundle")
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
        with _ONE_AT_A_TIME:
            array: NDArray[Any] = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # numpy has no error of its own: tokenize's, zipfile's and others come through
        raise IdError(f"{path}: {name} is not a npy array ({error}); restore it from its bundle") from error
    array.setflags(write=False)
    return array.view(np.ndarray)


class _Digested:
    """Digests what is written on its way.

    numpy writes to a file of its own with C's `tofile`, which loses the error of the last block: on a full disk
    it would leave a short file and say nothing.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.sha256, self.num_bytes = stream, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.num_bytes += len(data)
        return self.stream.write(data)


class _partial:
    """A path beside the final one, removed if it was not renamed."""

    def __init__(self, folder: Path) -> None:
        handle, name = tempfile.mkstemp(prefix=".", suffix=".partial", dir=folder)
        os.fchmod(handle, 0o644)
        os.close(handle)
        self.path = Path(name)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, _type: object, error: object, _trace: object) -> None:
        self.path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and not error.filename:
            error.filename = str(self.path)  # a failed write does not say where


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


def sha256_of_header(header: Mapping[str, Any]) -> str:
    """Digest a header, in hexadecimal, without the digest it bears."""
    content = {name: value for name, value in header.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
