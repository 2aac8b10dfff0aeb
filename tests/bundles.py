"""Small bundles and deltas with a known truth, for every test that needs some."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.models.bundle import Bundle, Manifest, open_version, publish_version
from sparsefeed.models.delta import Delta, IdChange, RowChange, write_delta
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.models.store.store import write_tables

SPEC_DIGEST = "0123456789abcdef"
DIMS = {"member": 4, "post": 8}
CAPACITY_ROWS = 64
TAIL_ROWS = 4
FIRST_ROW = 2 + TAIL_ROWS
NUM_IDS = 20
KEYS = np.arange(1, NUM_IDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


def values(dim: int, num_rows: int = CAPACITY_ROWS, seed: int = 0) -> NDArray[np.float32]:
    """Rows of a table: random, row 0 zero."""
    rows = np.random.default_rng([seed, dim]).normal(size=(num_rows, dim)).astype(np.float32)
    rows[0] = 0
    return rows


def manifest(id: str = "v1", **changes: Any) -> Manifest:
    """The manifest of a full training; `changes` replace fields."""
    fields: dict[str, Any] = {
        "id": id,
        "created": "2026-11-02T03:00:00Z",
        "code_version": "0.1.0",
        "spec_digest": SPEC_DIGEST,
        "step": 1000,
        "trained_days": ("2026-11-01",),
        "row_format": "int8",
    }
    return Manifest(**fields | changes)


def fill(folder: Path, id: str = "v1", row_format: RowFormat = "int8", seed: int = 0) -> None:
    """Every file of a bundle of two tables, each with NUM_IDS ids."""
    tables = {name: values(dim, seed=seed) for name, dim in DIMS.items()}
    write_tables(folder / "tables", tables, row_format, list(DIMS))
    for name in DIMS:
        counts = np.ones(NUM_IDS, np.int64)
        IdMap.build(KEYS, counts, table=name, key_seed=0, tail_rows=TAIL_ROWS).save(folder / "ids" / name)
    (folder / "spec.json").write_text("{}\n")
    (folder / "metrics.json").write_text("{}\n")
    (folder / "MODEL_CARD.md").write_text(f"# {id}\n")
    fill_dense(folder, seed)
    manifest(id, row_format=row_format).save(folder)


def side(keys: Sequence[int], seed: int) -> SnapshotSide:
    """Members or posts of these keys, whose features and lists tell the seed."""
    sorted_keys = np.array(sorted(keys), np.uint64)
    random = np.random.default_rng([seed, len(keys)])
    lengths = random.integers(0, 4, len(keys))
    return SnapshotSide(
        sorted_keys,
        random.normal(size=(len(keys), 2)).astype(np.float32),
        {"creator": sorted_keys + np.uint64(seed)},
        {"tags": (np.r_[np.int64(0), np.cumsum(lengths)], np.full(lengths.sum(), seed + 1, np.uint64))},
    )


def snapshot(keys: Sequence[int], seed: int) -> Snapshot:
    """What is known of members and posts of these keys, as of the seed's millisecond."""
    return Snapshot(side(keys[::2], seed), side(keys, seed), seed, 0, SPEC_DIGEST)


def fill_dense(folder: Path, seed: int) -> None:
    """What a refresh brings beside rows and ids: dense model, calibration, plan; and a snapshot."""
    (folder / "transform").mkdir(parents=True)
    (folder / "dense.onnx").write_bytes(f"dense {seed}".encode())
    (folder / "calibration.json").write_text(f'{{"seed": {seed}}}\n')
    (folder / "transform" / "plan.json").write_text(f'{{"seed": {seed}}}\n')
    snapshot((KEYS + np.uint64(seed % 2)).tolist(), seed).save(folder / "snapshot")


def publish(root: Path, id: str = "v1", row_format: RowFormat = "int8", seed: int = 0) -> Bundle:
    """Publish such a bundle."""
    publish_version(root, id, lambda folder: fill(folder, id, row_format, seed))
    return open_version(root, id)


def rows_of(rows: list[int], vectors: NDArray[np.float32]) -> RowChange:
    """A change of these rows."""
    return RowChange(np.array(rows, np.int64), vectors)


def ids_of(upserts: dict[int, int], deletes: list[int]) -> IdChange:
    """A change of these keys: key -> row, and keys that lose theirs."""
    return IdChange(
        np.array(list(upserts), np.uint64), np.array(list(upserts.values()), np.int64), np.array(deletes, np.uint64)
    )


def delta(
    parent: Bundle,
    new_id: str,
    out: Path,
    rows: Mapping[str, RowChange] | None = None,
    ids: Mapping[str, IdChange] | None = None,
    seed: int = 1,
    build: Callable[[Path], None] | None = None,
) -> Delta:
    """Write a delta; by default the first id's row of `post` changes, and what `fill_dense` brings."""
    if rows is None:
        rows = {"post": rows_of([FIRST_ROW], values(DIMS["post"], 2, seed)[1:])}
    return write_delta(
        parent, new_id, out,
        step=parent.manifest.step + 10, created="2026-11-03T03:00:00Z", code_version="0.1.0",
        trained_days=("2026-11-01", "2026-11-02"), rows=rows, ids=ids or {},
        build=build or (lambda folder: fill_dense(folder, seed)),
    )  # fmt: skip


def tree(root: Path) -> dict[str, bytes]:
    """Every file under a folder, with its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
