"""ParameterStore: every table of one bundle behind one lookup, with NVIDIA's `hps` contract.

Opening maps the files and reads nothing; the pages are shared by all server processes of a machine.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, RequestError
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.models.store.table import TableFile

__all__ = ["FORMAT", "ParameterStore", "write_index", "write_tables"]

FORMAT = 1
_INDEX = "tables.json"


@dataclass(frozen=True)
class ParameterStore:
    """The tables of one bundle, in the spec's order (docs/contracts/lookup.md).

    Example:
        >>> store = ParameterStore.open(bundle.tables)  # doctest: +SKIP
        >>> store.lookup(np.array([0, 3, 7]), np.array([2, 1], np.int32))  # doctest: +SKIP
    """

    tables: tuple[TableFile, ...]

    @classmethod
    def open(cls, folder: Path) -> ParameterStore:
        """Memory-map the tables that `tables.json` names.

        Raises:
            BundleError: the index is unreadable or of another format, or a table is not what it says.
        """
        path = Path(folder) / _INDEX
        try:
            index = json.loads(path.read_text("utf-8"))
            if index["format"] != FORMAT:
                raise ValueError(f"format {index['format']}; this version reads {FORMAT}")
            tables = tuple(TableFile.open(Path(folder), entry["name"], entry["rows"]) for entry in index["tables"])
            found = [_entry(table) for table in tables]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path}: not an index of tables: {error!r}; export the bundle again") from error
        if found != index["tables"]:
            wrong = next(got for got, said in zip(found, index["tables"], strict=True) if got != said)
            raise BundleError(f"{path}: the files hold {wrong}, the index says otherwise; export the bundle again")
        return cls(tables)

    def lookup(
        self, keys: NDArray[np.int64], num_keys: NDArray[np.int32], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """One vector per key, no pooling.

        Args:
            keys: int64, flat, table-major.
            num_keys: int32 [tables]: how many of them are each table's.
            out: float32, flat, of sum(num_keys * dim) floats; a new array when None.

        Returns:
            float32, flat, table-major: sum over tables of num_keys[t] * dim[t] floats.

        Raises:
            RequestError: num_keys does not fit the tables or the keys, or a key is outside its table.
        """
        counts = [int(count) for count in num_keys]
        if len(counts) != len(self.tables) or min(counts, default=0) < 0 or sum(counts) != len(keys):
            names = ", ".join(table.name for table in self.tables)
            raise RequestError(
                f"NUMKEYS: got {counts} for {len(keys)} KEYS; must be one count >= 0 for each of {names}, "
                "and their sum the number of KEYS"
            )
        sizes = [count * table.dim for count, table in zip(counts, self.tables, strict=True)]
        if out is None:
            out = np.empty(sum(sizes), np.float32)
        elif out.shape != (sum(sizes),):
            raise ValueError(f"out: got shape {list(out.shape)}; must be [{sum(sizes)}]")
        first_key = first_float = 0
        for table, count, size in zip(self.tables, counts, sizes, strict=True):
            part = out[first_float : first_float + size].reshape(count, table.dim)
            table.lookup(keys[first_key : first_key + count], part)
            first_key, first_float = first_key + count, first_float + size
        return out

    @property
    def table_by_name(self) -> dict[str, TableFile]:
        """Tables by name, in order."""
        return {table.name: table for table in self.tables}

    @property
    def bytes_by_table(self) -> dict[str, int]:
        """Bytes each table takes when all of it is in memory."""
        return {table.name: table.bytes for table in self.tables}


def write_tables(
    folder: Path, tables: Mapping[str, NDArray[np.float32]], row_format: RowFormat, order: Sequence[str]
) -> None:
    """Write a folder of tables, whole or not at all: beside, then renamed.

    Args:
        folder: made by this call; it must not exist.
        tables: float32 [capacity_rows, dim] by name; row 0 zero.
        row_format: of every table.
        order: the names in the spec's order.

    Raises:
        BundleError: `order` and `tables` differ, the folder exists, or a table cannot be stored.
    """
    folder = Path(folder)
    if sorted(order) != sorted(tables):
        raise BundleError(
            f"{folder}: got tables {sorted(tables)}; the spec has {sorted(order)}; give each of them once"
        )
    if folder.exists():
        raise BundleError(f"{folder}: exists; tables are never changed in place, write them to a new folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for name in order:
            TableFile.write(partial, name, tables[name], row_format)
        write_index(partial, {name: len(tables[name]) for name in order})
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_index(folder: Path, capacity_rows: Mapping[str, int]) -> None:
    """Write `tables.json` for the table files of a folder; the mapping's order is that of the lookups."""
    entries = [_entry(TableFile.open(folder, name, rows)) for name, rows in capacity_rows.items()]
    text = json.dumps({"format": FORMAT, "tables": entries}, indent=1) + "\n"
    (Path(folder) / _INDEX).write_text(text, "utf-8")


def _entry(table: TableFile) -> dict[str, str | int]:
    return {
        "name": table.name,
        "dim": table.dim,
        "rows": table.rows,
        "row_format": table.row_format,
        "overlay_rows": len(table.overlay_rows),
    }
