"""RocksDbTier: tables in a RocksDB database on local disk, as NVIDIA HPS's RocksDB backend lays them out.

One column family per tag `hps_et.<model>.<table>`; key: 8 bytes, value: float32, both raw and little endian.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, ToolError
from sparsefeed.models.store.tier import (
    Tier,
    batches,
    check_key_bytes,
    check_lookup,
    check_row_bytes,
    check_rows,
    cut,
    lookup_in_batches,
    tag,
    unknown_table,
)

__all__ = ["RocksDbTier"]

_FORMAT_VERSION = 5  # of table files; HPS 24.06 (RocksDB 6.29) refuses 6, which rocksdict would write


class RocksDbTier(Tier):
    """Tables in one database folder: one process writes, any number read.

    A write is on disk (its log synced) when it returns. Reading costs no more memory than RocksDB's cache; a lookup
    is one multi-get per 4096 keys. `num_rows` reads every key.

    Args:
        path: the database's folder; made when it is not there, unless `read_only`.
        read_only: take no lock. The tier then shows the rows and tables of the moment it was opened.

    Raises:
        BundleError: another process has the database open, it is damaged, or the folder holds something else.
        ToolError: rocksdict is not installed.
    """

    def __init__(self, path: str | Path, read_only: bool = False) -> None:
        try:
            import rocksdict
        except ImportError as error:
            raise ToolError(f"rocksdict cannot be imported ({error}); pip install 'sparsefeed[tiers]'") from error
        self.path = Path(path)
        self.read_only = read_only
        self._library: Any = rocksdict
        self._family_by_tag: dict[str, Any] = {}
        self._row_bytes_by_tag: dict[str, int] = {}
        self._database: Any = None
        is_database = (self.path / "CURRENT").is_file()
        if read_only and not is_database:
            raise BundleError(f"{path}: not a RocksDB database (no file CURRENT); give its folder, or write one first")
        # RocksDB takes a folder without CURRENT for a new database and deletes tables it finds in it.
        if not is_database and self.path.is_dir() and any(self.path.iterdir()):
            raise BundleError(
                f"{path}: holds files, but not a whole RocksDB database (no file CURRENT); give an empty folder, or "
                "restore the database"
            )
        if read_only:
            access = rocksdict.AccessType.read_only(error_if_log_file_exist=False)
        else:
            access = rocksdict.AccessType.read_write()
        with self._errors():
            names = rocksdict.Rdict.list_cf(str(path), self._options()) if is_database else ["default"]
            families = {name: self._options() for name in names}
            self._database = rocksdict.Rdict(str(path), self._options(), families, access)
            # Asked for now: a family that is there later was made by this tier.
            self._family_by_tag = {
                name: self._database.get_column_family(name) for name in names if name.startswith("hps_et.")
            }

    def write(self, model: str, table: str, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """As `Tier.write`; on disk when it returns, batch by batch."""
        name = tag(model, table)
        check_rows(keys, rows)
        self._check_writable()
        if not len(keys):
            return
        held = self._row_bytes(name)
        if held is not None:
            check_row_bytes(model, table, held, rows.shape[1])
        with self._errors():
            if name not in self._family_by_tag:
                self._family_by_tag[name] = self._database.create_column_family(name, self._options())
            handle = self._database.get_column_family_handle(name)
            for part in batches(len(keys)):
                batch = self._library.WriteBatch(raw_mode=True)
                for key, row in zip(cut(keys[part]), cut(rows[part]), strict=True):
                    batch.put(key, row, handle)
                self._database.write(batch)
            self._database.flush_wal(True)

    def lookup(self, model: str, table: str, keys: NDArray[np.int64], default: float, out: NDArray[np.float32]) -> int:
        """As `Tier.lookup`."""
        name = tag(model, table)
        check_lookup(keys, out)
        check_row_bytes(model, table, self._known_row_bytes(model, table), out.shape[1])
        family = self._family_by_tag[name]

        def get(part: NDArray[np.int64]) -> Sequence[bytes | None]:
            found: Sequence[bytes | None] = family.get(cut(part))
            return found

        with self._errors():
            return lookup_in_batches(get, model, table, keys, default, out)

    def num_rows(self, model: str, table: str) -> int:
        """As `Tier.num_rows`, by reading every key: 3 million a second."""
        self._known_row_bytes(model, table)
        count = 0
        with self._errors():
            # keys() of the library would end at a damaged block in silence.
            at = self._family_by_tag[tag(model, table)].iter()
            at.seek_to_first()
            while at.valid():
                count += 1
                at.next()
            at.status()
        return count

    def tables(self, model: str) -> tuple[str, ...]:
        """As `Tier.tables`, by the families that hold rows."""
        prefix = tag(model, "x")[:-1]
        names = (name for name in self._family_by_tag if name.startswith(prefix))
        return tuple(sorted(name[len(prefix) :] for name in names if self._row_bytes(name) is not None))

    def remove(self, model: str) -> None:
        """As `Tier.remove`."""
        prefix = tag(model, "x")[:-1]
        self._check_writable()
        with self._errors():
            for name in [name for name in self._family_by_tag if name.startswith(prefix)]:
                self._row_bytes_by_tag.pop(name, None)
                self._family_by_tag.pop(name).close()  # a dropped family cannot be closed any more
                self._database.drop_column_family(name)

    def close(self) -> None:
        """As `Tier.close`."""
        if self._database is None:
            return
        with self._errors():
            while self._family_by_tag:
                self._family_by_tag.popitem()[1].close()
            self._row_bytes_by_tag.clear()
            database, self._database = self._database, None
            database.close()

    def _known_row_bytes(self, model: str, table: str) -> int:
        held = self._row_bytes(tag(model, table))
        if held is None:
            raise unknown_table(model, table, self.tables(model))
        return held

    def _row_bytes(self, name: str) -> int | None:
        """Bytes of the first row; None where there is no row."""
        self._check_open()
        if name in self._family_by_tag and name not in self._row_bytes_by_tag:
            with self._errors():
                at = self._family_by_tag[name].iter()
                at.seek_to_first()
                if at.valid():
                    check_key_bytes(name, [at.key()])
                    self._row_bytes_by_tag[name] = len(at.value())
                at.status()
        return self._row_bytes_by_tag.get(name)

    def _check_open(self) -> None:
        if self._database is None:
            raise BundleError(f"{self.path}: this tier is closed; open it again")

    def _check_writable(self) -> None:
        self._check_open()
        if self.read_only:
            raise BundleError(f"{self.path}: opened read-only; open it without read_only to change it")

    def _options(self) -> Any:
        options = self._library.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_compression_type(self._library.DBCompressionType.none())  # trained floats do not compress
        blocks = self._library.BlockBasedOptions()
        blocks.set_format_version(_FORMAT_VERSION)
        options.set_block_based_table_factory(blocks)
        return options

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except BundleError as error:
            raise BundleError(f"{self.path}: {error}") from error
        except Exception as error:  # rocksdict raises RocksDB's status as a bare Exception
            said = " ".join(str(error).split())
            if "lock hold" in said or "While lock file" in said:
                mend = "it is open elsewhere for writing; close it there, or open it with read_only=True"
            elif "Corruption" in said:
                mend = "the database is damaged; remove the folder and load the tables again"
            else:
                mend = "look at the path, its permissions and the space on its disk"
            raise BundleError(f"{self.path}: RocksDB: {said}; {mend}") from error
