"""Tier: where a parameter server keeps tables by model and key, as NVIDIA HPS does: memory, RocksDB, Redis Cluster.

Serving from one machine needs none of them: `ParameterStore` maps a bundle's own files. A tier holds tables that
several machines share (Redis Cluster), that are larger than memory (RocksDB), or that HPS reads, in its layout.
All tiers answer alike: tests/models/store/test_tiers.py runs one class of tests against each.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.models.store.hps import read_hps
from sparsefeed.models.store.rows import output_for
from sparsefeed.models.store.table import NAME_PATTERN

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "Tier",
    "batches",
    "check_key_bytes",
    "check_lookup",
    "check_row_bytes",
    "check_rows",
    "cut",
    "load",
    "lookup_in_batches",
    "partition_of",
    "tag",
    "unknown_table",
]

_BATCH_KEYS = 4096  # keys of one multi-get or write batch: at dim 128, 2 MB of rows


class Tier(Protocol):
    """Rows by model, table and key; tables exist from their first row on.

    A table is named by its model too, so that versions of a bundle, each a model of its own, stand beside each other.
    Every method that takes a name raises BundleError where it does not match [A-Za-z0-9_-]{1,120}; every method raises
    BundleError where the store behind it is damaged or does not answer.

    Example:
        >>> with RocksDbTier("/data/rows") as tier:  # doctest: +SKIP
        ...     tier.write("feed_v1", "post", np.array([7]), np.ones((1, 8), np.float32))
        ...     out = np.empty((2, 8), np.float32)
        ...     tier.lookup("feed_v1", "post", np.array([7, 9]), 0.0, out)
        1
    """

    def write(self, model: str, table: str, keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        """Add rows, or replace those whose keys are there; of a key given twice the last row wins.

        Reads its arguments in batches, so memory-mapped ones may be larger than memory. A write that ends half-way
        may leave some of its rows written; write it again.

        Args:
            model: the model's name.
            table: the table's name.
            keys: int64 [n], any values. With n = 0 nothing is written, and no table made.
            rows: float32 [n, d], kept bit for bit; d >= 1 is that of the table's other rows.

        Raises:
            BundleError: the table has rows of another dim.
            ValueError: keys or rows are not of these dtypes and shapes.
        """

    def lookup(self, model: str, table: str, keys: NDArray[np.int64], default: float, out: NDArray[np.float32]) -> int:
        """Read rows into `out`; the row of a key that is not there is `default` throughout.

        Args:
            model: the model's name.
            table: the table's name.
            keys: int64 [n], any values, repeated or not.
            default: HPS's `default_value_for_each_table`; ours is 0.
            out: float32 [n, d], C-ordered.

        Returns:
            How many of the n keys are not there.

        Raises:
            BundleError: the table is not there, or has rows of another dim.
            ValueError: keys or `out` are not of these dtypes and shapes.
        """

    def num_rows(self, model: str, table: str) -> int:
        """Count a table's rows, exactly.

        Raises:
            BundleError: the table is not there.
        """

    def tables(self, model: str) -> tuple[str, ...]:
        """Names of a model's tables, sorted; none for a model that is not there."""

    def remove(self, model: str) -> None:
        """Remove every table of a model; a model that is not there is no error."""

    def close(self) -> None:
        """Let go of files and connections; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(tier: Tier, model: str, folder: Path, dims: Mapping[str, int]) -> int:
    """Put sparse folders, `<table>` or `<table>.model`, into a tier; a load that failed can be run again.

    Every folder is checked before the first row is written. Memory: one batch of rows, as the files are mapped.

    Args:
        tier: where to.
        model: the name the tables get there.
        folder: holds one sparse folder per table: of `export_hps`, or a model's version of `export --hps`.
        dims: floats per row by table; these tables are loaded.

    Returns:
        How many rows were written.

    Raises:
        BundleError: a folder is missing or is not of its dim, or the tier has the table with another dim.
    """
    sources = {}
    for table, dim in dims.items():
        suffixed = Path(folder) / f"{table}.model"
        sources[table] = read_hps(suffixed if suffixed.is_dir() else Path(folder) / table, dim)
    for table, (keys, rows) in sources.items():
        tier.write(model, table, keys, rows)
    return sum(len(keys) for keys, _ in sources.values())


def tag(model: str, table: str) -> str:
    """HPS's name of a model's table, `hps_et.<model>.<table>` (HugeCTR 24.06, src/hps/hier_parameter_server.cpp).

    Raises:
        BundleError: a name does not match [A-Za-z0-9_-]{1,120}; a dot in one would make tags ambiguous.
    """
    for kind, name in (("model", model), ("table", table)):
        if not re.fullmatch(NAME_PATTERN, name):
            raise BundleError(f'{kind} "{name}": not a name; must match {NAME_PATTERN}')
    return f"hps_et.{model}.{table}"


def partition_of(keys: NDArray[np.int64], num_partitions: int) -> NDArray[np.int64]:
    """HPS's partition of each key: int64 [n] -> int64 [n] in [0, num_partitions).

    The key's 64 bits, mixed by Pelle Evensen's rrxmrrxmsx_0 (public domain; mostlymangling.blogspot.com, January
    2019), modulo the number of partitions; HugeCTR 24.06, include/hps/database_backend_detail.hpp.
    """
    if num_partitions < 1:
        raise ValueError(f"num_partitions: got {num_partitions}; must be at least 1")
    mixed = np.asarray(keys, np.int64).astype(np.uint64)  # a copy; negative keys wrap
    for first, second, factor in ((25, 50, 0xA24BAED4963EE407), (24, 49, 0x9FB21C651E98DF25)):
        mixed ^= _rotated(mixed, first) ^ _rotated(mixed, second)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(28)
    return (mixed % np.uint64(num_partitions)).astype(np.int64)


def _rotated(words: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    return (words >> np.uint64(bits)) | (words << np.uint64(64 - bits))


def check_rows(keys: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
    """Raise ValueError unless keys are int64 [n] and rows float32 [n, d], d >= 1."""
    _check_keys(keys)
    if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != len(keys) or not rows.shape[1]:
        raise ValueError(
            f"rows: got {rows.dtype} {list(rows.shape)} for {len(keys)} keys; must be float32 [{len(keys)}, d], d >= 1"
        )


def check_lookup(keys: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Raise ValueError unless keys are int64 [n] and `out` is C-ordered float32 [n, d], d >= 1."""
    _check_keys(keys)
    output_for(len(keys), out.shape[1] if out.ndim == 2 and out.shape[1] else 1, out)


def check_row_bytes(model: str, table: str, held: int, dim: int) -> None:
    """Raise BundleError unless a table whose rows have `held` bytes has rows of `dim` floats."""
    if held != dim * 4:
        raise BundleError(
            f'table "{table}" of model "{model}": got dim {dim}, which is {dim * 4} bytes a row; its rows have {held} '
            f"bytes, dim {held / 4:g}; give that dim, or remove the model and load it again"
        )


def check_key_bytes(name: str, keys: Sequence[bytes]) -> None:
    """Raise BundleError unless these keys, found in the table of this tag, have 8 bytes."""
    for key in keys:
        if len(key) != 8:
            raise BundleError(
                f"{name}: holds a key of {len(key)} bytes; keys have 8: let HPS write them with supportlonglong true"
            )


def unknown_table(model: str, table: str, known: Sequence[str]) -> BundleError:
    """The error of a lookup in a table that is not there; `known` are those that are."""
    names = ", ".join(known) or "none"
    return BundleError(f'table "{table}" of model "{model}": not in this tier; the model\'s tables: {names}; load it')


def lookup_in_batches(
    get: Callable[[NDArray[np.int64]], Sequence[bytes | None]],
    model: str,
    table: str,
    keys: NDArray[np.int64],
    default: float,
    out: NDArray[np.float32],
) -> int:
    """Fill `out` by a multi-get that answers one value, or None, per key of a batch.

    Args:
        get: int64 [b] -> b values; b is bounded.
        model: for the message of an error.
        table: likewise.
        keys: int64 [n].
        default: of the rows of missing keys.
        out: float32 [n, d], filled.

    Returns:
        How many keys are missing.

    Raises:
        BundleError: a value is not d floats long; the key is named.
    """
    num_missing, row_bytes = 0, out.shape[1] * 4
    for part in batches(len(keys)):
        values = get(keys[part])
        for i, value in enumerate(values):
            if value is not None and len(value) != row_bytes:
                raise BundleError(
                    f'table "{table}" of model "{model}": key {keys[part][i]}: its row has {len(value)} bytes; the '
                    f"table's rows have {row_bytes}; it is damaged, or something else wrote it: write it again"
                )
        num_missing += _fill(values, default, out[part])
    return num_missing


def _fill(values: Sequence[bytes | None], default: float, out: NDArray[np.float32]) -> int:
    held = [value for value in values if value is not None]
    rows = np.frombuffer(b"".join(held), "<f4").reshape(-1, out.shape[1])
    if len(held) == len(values):
        out[:] = rows
        return 0
    is_held = np.fromiter((value is not None for value in values), bool, len(values))
    out[is_held], out[~is_held] = rows, default
    return len(values) - len(held)


def _check_keys(keys: NDArray[np.int64]) -> None:
    if keys.dtype != np.int64 or keys.ndim != 1:
        raise ValueError(f"keys: got {keys.dtype} {list(keys.shape)}; must be int64 [n]")


def batches(num_keys: int) -> Iterator[slice]:
    """Slices of at most 4096 that cover [0, num_keys) in order."""
    return (slice(start, start + _BATCH_KEYS) for start in range(0, num_keys, _BATCH_KEYS))


def cut(array: NDArray[np.int64] | NDArray[np.float32]) -> list[bytes]:
    """Each entry along the first axis as its little-endian bytes: a key's 8, a row's 4 * d."""
    raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    width = len(raw) // max(len(array), 1)
    return [raw[start : start + width] for start in range(0, len(raw), width or 1)]
