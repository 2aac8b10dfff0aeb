"""Admitted strings whose 64-bit keys are equal: told apart by the string itself.

Among 10^9 ids 0.03 such pairs are expected by chance, but XXH64 is no cryptographic hash and whoever
chooses ids can make them; so they are listed, completely, when the map is built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.etl.ids.keys import Strings
from sparsefeed.etl.ids.probe import Tail

__all__ = ["Exceptions", "string_at"]

_NOT_UTF8 = "surrogateescape"


@dataclass(frozen=True)
class Exceptions:
    """Immutable: key -> string -> row, for keys that belong to two or more admitted strings.

    Attributes:
        by_key: the first string of a key is the one whose row a lookup by key returns.
    """

    by_key: Mapping[int, Mapping[bytes, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, strings: Mapping[int, Sequence[bytes]], first_rows: Sequence[int], num_rows: int) -> Exceptions:
        """Give rows to the strings of each key: its own row to the first, new ones from num_rows on to the others."""
        by_key = {}
        for (key, same), row in zip(strings.items(), first_rows, strict=True):
            by_key[key] = dict(zip(same, [row, *range(num_rows, num_rows + len(same) - 1)], strict=True))
            num_rows += len(same) - 1
        return cls(by_key)

    def __bool__(self) -> bool:
        return bool(self.by_key)

    @property
    def num_extra(self) -> int:
        """Strings beyond the first of each key."""
        return sum(len(rows) - 1 for rows in self.by_key.values())

    def mask(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which keys are listed: bool [len(keys)]."""
        return np.isin(keys, np.array(list(self.by_key), np.uint64))

    def tell_apart(
        self,
        keys: NDArray[np.uint64],
        valid: NDArray[np.bool_],
        strings: Strings,
        rows: NDArray[np.int64],
        tail: Tail,
    ) -> None:
        """Overwrite the rows of strings whose key is listed; the tail's for one that is not itself."""
        for i in np.flatnonzero(self.mask(keys) & valid) if self else ():
            key = int(keys[i])
            rows[i] = self.by_key[key].get(string_at(strings, int(i)), tail.of_key(key))

    def without(self, keys: NDArray[np.uint64]) -> Exceptions:
        """Leave these keys out."""
        gone = set(keys[self.mask(keys)].tolist()) if self else set()
        return Exceptions({key: rows for key, rows in self.by_key.items() if key not in gone}) if gone else self

    def extended(self, key: int, rows: Mapping[bytes, int]) -> Exceptions:
        """Add strings of a key after those it has."""
        return Exceptions({**self.by_key, key: {**self.by_key.get(key, {}), **rows}})

    def to_json(self) -> dict[str, dict[str, int]]:
        """Write as plain JSON: key in hexadecimal -> string -> row; bytes that are no UTF-8 as lone surrogates."""
        return {
            f"{key:#018x}": {string.decode(errors=_NOT_UTF8): row for string, row in rows.items()}
            for key, rows in self.by_key.items()
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, int]]) -> Exceptions:
        """Read what `to_json` wrote."""
        return cls(
            {
                int(key, 16): {string.encode(errors=_NOT_UTF8): int(row) for string, row in rows.items()}
                for key, rows in value.items()
            }
        )


def string_at(strings: pa.Array | pa.ChunkedArray, index: int) -> bytes:
    """Return the bytes of one string of an Arrow array."""
    value = strings[index]
    if isinstance(value, pa.DictionaryScalar):
        value = value.value
    return bytes(value.cast(pa.large_binary()).as_py())
