"""The delta: what one refresh changed, and how a version becomes the next one (docs/contracts/delta.md).

Applying makes a new version beside the parent: what did not change is hard-linked, touched rows and ids and what is
newly known of members and posts go to overlays, so a daily refresh of a large bundle reads and writes megabytes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparsefeed.errors import BundleError, IdError, did_you_mean
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.snapshot import OVERLAY, Snapshot
from sparsefeed.etl.spec import Name
from sparsefeed.models.bundle import (
    Bundle,
    Manifest,
    is_older_code,
    open_version,
    publish_version,
    read_json,
    seal,
    verify,
    versions,
)
from sparsefeed.models.dense_file import DENSE_FILES
from sparsefeed.models.links import copy, link
from sparsefeed.models.store.store import ParameterStore, write_index
from sparsefeed.progress import Progress, silent

__all__ = [
    "Delta",
    "DeltaManifest",
    "IdChange",
    "RowChange",
    "apply_delta",
    "read_changes",
    "verify_delta",
    "write_changes",
    "write_delta",
]

# Everything else replaces the parent's.
_OWN = frozenset({"delta.json", "tables", "ids", "snapshot", "SHA256SUMS", "READY"})
_REPLACEABLE = frozenset(
    {*DENSE_FILES.values(), "calibration.json", "transform", "ips.parquet", "metrics.json", "MODEL_CARD.md"}
)
_ROW_PARTS, _ID_PARTS = ("rows", "values"), ("upserts", "upsert_rows", "deletes")
# recorded.json: scores of the parent, which are not the new version's.
_MADE_ANEW = frozenset({"bundle.json", "tables", "ids", "snapshot", "recorded.json", "SHA256SUMS", "READY"})
# Large files that are linked and not read: a base of a snapshot, a table or an id map.
_BASE = re.compile(r"tables/[^.]+\.npy|snapshot/(member|post)/.*|ids/[^/]+/(?!overlay)[^/]+\.npy")


class DeltaManifest(Manifest):
    """`delta.json`: the `bundle.json` of the version it makes, and the tables' capacities there."""

    parent: Name
    sequence: int = Field(ge=1)
    parent_digest: str
    capacity_rows: dict[Name, int]


@dataclass(frozen=True)
class RowChange:
    """Rows of one table that replace or extend the parent's.

    Attributes:
        rows: int64 [n], ascending, unique, at least 1.
        values: float32 [n, dim].
    """

    rows: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class IdChange:
    """Keys of one table that got a row or lost it.

    Attributes:
        upserts: uint64 [n], unique.
        upsert_rows: int64 [n], unique: a row the key has already, or one after the parent's last.
        deletes: uint64 [m], unique, none of them an upsert.
    """

    upserts: NDArray[np.uint64]
    upsert_rows: NDArray[np.int64]
    deletes: NDArray[np.uint64]


@dataclass(frozen=True)
class Delta:
    """A delta whose files were read and found whole."""

    path: Path
    manifest: DeltaManifest
    rows: Mapping[str, RowChange]
    ids: Mapping[str, IdChange]


def write_delta(
    parent: Bundle,
    new_id: str,
    out: Path,
    *,
    step: int,
    created: str,
    code_version: str,
    trained_days: tuple[str, ...],
    rows: Mapping[str, RowChange],
    ids: Mapping[str, IdChange],
    build: Callable[[Path], None],
    progress: Progress = silent,
) -> Delta:
    """Write the delta that makes `new_id` of `parent`, whole or not at all; it is checked against the parent.

    Args:
        parent: the version it changes.
        new_id: id of the version it makes.
        out: folder to make; it must not exist.
        step: training step of the new version.
        created: ISO 8601, UTC.
        code_version: of the program that trained it.
        trained_days: days the new version was trained on.
        rows: touched rows by table.
        ids: changed keys by table.
        build: fills a folder with the files that replace the parent's whole: dense.onnx, calibration.json, transform/,
            metrics.json, MODEL_CARD.md; a folder replaces the parent's folder. And with `snapshot/`, the members and
            posts that win over the parent's.
        progress: told of the files hashed.

    Raises:
        BundleError: `out` exists, or the delta would be refused by `apply_delta`.
    """
    if out.exists():
        raise BundleError(f"{out}: exists; write the delta to a new folder")
    capacity_rows = {}
    for table in ParameterStore.open(parent.tables).tables:
        touched = [rows[table.name].rows] if table.name in rows else []
        touched += [ids[table.name].upsert_rows] if table.name in ids else []
        largest = max((int(part.max()) for part in touched if len(part)), default=0)
        capacity_rows[table.name] = table.rows
        while capacity_rows[table.name] <= largest:
            capacity_rows[table.name] *= 2
    manifest = DeltaManifest(
        id=new_id,
        created=created,
        code_version=code_version,
        spec_digest=parent.manifest.spec_digest,
        step=step,
        trained_days=trained_days,
        row_format=parent.manifest.row_format,
        parent=parent.id,
        sequence=parent.manifest.sequence + 1,
        parent_digest=parent.digest,
        capacity_rows=capacity_rows,
    )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_changes(partial, rows, ids)
        build(partial)
        (partial / "delta.json").write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")
        seal(partial, progress)
        delta = verify_delta(partial)
        _check_follows(delta, parent)
        partial.rename(out)
    except OSError as error:
        raise BundleError(f"{out}: not written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Delta(out, manifest, delta.rows, delta.ids)


def verify_delta(delta: Path, progress: Progress = silent) -> Delta:
    """Read every file of a delta and check it on its own.

    Raises:
        BundleError: names the file that is missing, altered, extra, or not what docs/contracts/delta.md says.
    """
    verify(delta, progress)
    return Delta(delta, read_json(DeltaManifest, delta / "delta.json"), *read_changes(delta))


def write_changes(folder: Path, rows: Mapping[str, RowChange], ids: Mapping[str, IdChange]) -> None:
    """Write `tables/` and `ids/` of a delta into a folder, which is made."""
    for parts, name, changes in ((_ROW_PARTS, "tables", rows), (_ID_PARTS, "ids", ids)):
        (folder / name).mkdir(parents=True)
        for table, change in changes.items():
            for part in parts:
                np.save(folder / name / f"{table}.{part}.npy", getattr(change, part))


def read_changes(folder: Path) -> tuple[dict[str, RowChange], dict[str, IdChange]]:
    """Read what `write_changes` wrote; BundleError names the file that is not what docs/contracts/delta.md says."""
    rows = {name: RowChange(*arrays) for name, arrays in _read_arrays(folder / "tables", _ROW_PARTS).items()}
    ids = {name: IdChange(*arrays) for name, arrays in _read_arrays(folder / "ids", _ID_PARTS).items()}
    for name, row_change in rows.items():
        _check_rows(folder / "tables" / name, row_change)
    for name, id_change in ids.items():
        _check_ids(folder / "ids" / name, id_change)
    return rows, ids


def apply_delta(root: Path, delta: Path, progress: Progress = silent) -> str:
    """Make the delta's version of its parent; return the new id. `current` is not touched.

    Applying again gives the same version and is no error. Of the parent what is read is verified first, its overlays;
    its bases are linked and keep their digests, so that one that was altered is found by `verify` of any version.

    Raises:
        BundleError: the delta or the parent is altered, the parent is not here or another one, the sequence is not
            the next or is taken by another version, or spec, tables, dims, rows or ids do not fit. Nothing is written.
    """
    change = verify_delta(Path(delta), progress)
    manifest = change.manifest
    if manifest.parent not in versions(root):
        raise BundleError(
            f'{delta}: is delta {manifest.sequence} of "{manifest.parent}", which is not in {root}; there are: '
            f"{', '.join(versions(root)) or 'none'}; apply the deltas before it, in order"
        )
    parent = open_version(root, manifest.parent)
    for id in versions(root):
        other = open_version(root, id).manifest
        if id != manifest.id and (other.parent, other.sequence) == (manifest.parent, manifest.sequence):
            raise BundleError(
                f'{delta}: "{parent.id}" has its next version already, "{id}", by another delta or a fold; '
                f"write the delta for that one, or remove versions/{id}"
            )
    verify(parent.path, progress, lambda name: not _BASE.fullmatch(name))
    maps = _check_follows(change, parent)
    publish_version(root, manifest.id, lambda folder: _build(change, parent, maps, folder), progress, parent.path)
    return manifest.id


def _check_follows(delta: Delta, parent: Bundle) -> dict[str, IdMap]:
    """Refuse a delta that is not the parent's next; return the changed id maps."""
    manifest = delta.manifest
    for field, got, allowed in (
        ("parent_digest", manifest.parent_digest, parent.digest),
        ("sequence", manifest.sequence, parent.manifest.sequence + 1),
        ("spec_digest", manifest.spec_digest, parent.manifest.spec_digest),
        ("row_format", manifest.row_format, parent.manifest.row_format),
    ):
        if got != allowed:
            raise BundleError(
                f'{delta.path}: {field}: got {got}; after "{parent.id}" it must be {allowed}; '
                "it is a delta of another version, write it for this one"
            )
    if is_older_code(manifest.code_version, parent.manifest.code_version):
        raise BundleError(
            f'{delta.path}: code_version: got {manifest.code_version}; "{parent.id}" was written by '
            f"{parent.manifest.code_version}, which is newer; train the day with that or a later one"
        )
    for path in delta.path.iterdir():
        if path.name not in _OWN | _REPLACEABLE:
            raise BundleError(f"{path}: a delta cannot replace it; it may hold {', '.join(sorted(_REPLACEABLE))}")
    if (snapshot := delta.path / "snapshot").exists():
        Snapshot.load(parent.snapshot).must_precede(Snapshot.load(snapshot), snapshot)
    _check_dense(delta.path, parent)
    _check_tables(delta, parent)
    return {name: _changed_map(delta.path, parent.ids(name), change) for name, change in delta.ids.items()}


def _check_tables(delta: Delta, parent: Bundle) -> None:
    manifest, tables = delta.manifest, ParameterStore.open(parent.tables).table_by_name
    for name in (*delta.rows, *delta.ids, *manifest.capacity_rows):
        if name not in tables:
            raise BundleError(f'{delta.path}: "{name}" is not a table of "{parent.id}"{did_you_mean(name, tables)}')
    for name, table in tables.items():
        capacity = manifest.capacity_rows.get(name, 0)
        if capacity < table.rows:
            raise BundleError(f'{delta.path}: capacity_rows of "{name}": got {capacity}; must be at least {table.rows}')
        if name in delta.rows:
            change = delta.rows[name]
            if change.values.shape[1] != table.dim:
                raise BundleError(f'{delta.path}: table "{name}": got dim {change.values.shape[1]}; it has {table.dim}')
            _check_capacity(delta.path, name, change.rows, capacity)
        if name in delta.ids:
            _check_capacity(delta.path, name, delta.ids[name].upsert_rows, capacity)


def _check_dense(path: Path, parent: Bundle) -> None:
    dense = {path.name for path in path.iterdir()} & set(DENSE_FILES.values())
    needed = {DENSE_FILES["fp32"], *(DENSE_FILES[name] for name in parent.dense_formats)}
    if dense and not needed <= dense:
        raise BundleError(
            f"{path}: holds {', '.join(sorted(dense))} without {', '.join(sorted(needed - dense))}; the formats "
            "of one dense model change together, put both in"
        )


def _check_capacity(delta: Path, table: str, rows: NDArray[np.int64], capacity: int) -> None:
    if len(rows) and int(rows.max()) >= capacity:
        raise BundleError(f'{delta}: table "{table}": row {rows.max()} is not below its capacity_rows, {capacity}')


def _changed_map(delta: Path, folder: Path, change: IdChange) -> IdMap:
    try:
        return IdMap.load(folder).remove(change.deletes).upsert(change.upserts, change.upsert_rows)
    except IdError as error:
        raise BundleError(f"{delta}: {error}") from error


def _build(delta: Delta, parent: Bundle, maps: Mapping[str, IdMap], folder: Path) -> None:
    replaced = {path.name for path in delta.path.iterdir()} - _OWN
    for path in parent.path.iterdir():
        if path.name not in replaced | _MADE_ANEW:
            link(path, folder / path.name)
    for name in replaced:
        copy(delta.path / name, folder / name)
    newer = delta.path / "snapshot"
    for path in parent.snapshot.iterdir():
        if path.name != OVERLAY or not newer.exists():
            link(path, folder / "snapshot" / path.name)
    if newer.exists():
        Snapshot.load(parent.snapshot).save_overlay(folder / "snapshot", Snapshot.load(newer))
    _build_tables(delta, parent, folder)
    for path in (parent.path / "ids").iterdir():
        if path.name in maps:
            maps[path.name].save(folder / "ids" / path.name)
        else:
            link(path, folder / "ids" / path.name)
    Manifest(**delta.manifest.model_dump(exclude={"capacity_rows"})).save(folder)


def _build_tables(delta: Delta, parent: Bundle, folder: Path) -> None:
    (folder / "tables").mkdir()
    store = ParameterStore.open(parent.tables)
    for table in store.tables:
        if table.name in delta.rows:
            change = delta.rows[table.name]
            capacity = delta.manifest.capacity_rows[table.name]
            table.replace_rows(folder / "tables", change.rows, change.values, capacity)
        else:
            for path in parent.tables.glob(f"{table.name}.*npy"):
                link(path, folder / "tables" / path.name)
    # A base that its overlay was folded into was read.
    bases = [f"tables/{table.path.name}" for table in store.tables]
    read = {name for name in bases if not (parent.path / name).samefile(folder / name)}
    verify(parent.path, only=read.__contains__)
    write_index(folder / "tables", {table.name: delta.manifest.capacity_rows[table.name] for table in store.tables})


def _read_arrays(folder: Path, parts: tuple[str, ...]) -> dict[str, list[NDArray[Any]]]:
    found = {path.name for path in folder.glob("*")}
    tables = sorted({name.split(".")[0] for name in found})
    whole = {f"{table}.{part}.npy" for table in tables for part in parts}
    if found != whole:
        odd = min(found ^ whole)
        state = "missing" if odd in whole else "extra"
        raise BundleError(f"{folder / odd}: {state}; a table's files are {', '.join(parts)}; write the delta again")
    return {table: [np.load(folder / f"{table}.{part}.npy", allow_pickle=False) for part in parts] for table in tables}


def _check_rows(where: Path, change: RowChange) -> None:
    rows, values = change.rows, change.values
    if rows.dtype != np.int64 or rows.ndim != 1 or (np.diff(rows) <= 0).any() or (len(rows) and rows[0] < 1):
        raise BundleError(f"{where}.rows.npy: must be int64 [n], ascending and unique, from 1 (row 0 is padding)")
    if values.dtype != np.float32 or values.ndim != 2 or len(values) != len(rows):
        raise BundleError(
            f"{where}.values.npy: got {values.dtype} {list(values.shape)}; must be float32 [{len(rows)}, dim]"
        )
    if not np.isfinite(values).all():
        raise BundleError(f"{where}.values.npy: holds NaN or infinity; look at the training run")


def _check_ids(where: Path, change: IdChange) -> None:
    for part, dtype in (("upserts", np.uint64), ("upsert_rows", np.int64), ("deletes", np.uint64)):
        got = getattr(change, part)
        if got.dtype != dtype or got.ndim != 1 or len(np.unique(got)) != len(got):
            raise BundleError(f"{where}.{part}.npy: must be {np.dtype(dtype)} [n], no two alike")
    rows = change.upsert_rows
    if len(rows) != len(change.upserts):
        raise BundleError(
            f"{where}.upsert_rows.npy: {len(rows)} rows; must be one for each of {len(change.upserts)} keys"
        )
    both = np.intersect1d(change.upserts, change.deletes)
    if len(both):
        raise BundleError(f"{where}: key {both[0]:#018x} is both an upsert and a delete; give it once")
