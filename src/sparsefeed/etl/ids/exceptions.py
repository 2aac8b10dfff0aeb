"""Admitted strings whose 64-bit keys are equal: told apart by the string itself.

Among 10^9 ids 0.03 such pairs are expected by chance, but XXH64 is no cryptographic hash and whoever
chooses ids can make them; so they are listed, completely, when the map is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["Exceptions", "string_at"]


@dataclass(frozen=True)
class Exceptions:
    """Immutable: key -> string -> row, for keys that belong to two or more admitted strings.

    Attributes:
        by_key: the first string of a key is the one whose row a lookup by key returns.
    """

    by_key: Mapping[int, Mapping[bytes, int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.by_key)

    @property
    def num_extra(self) -> int:
        """Strings beyond the first of each key."""
        return sum(len(rows) - 1 for rows in self.by_key.values())

    def mask(self, keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell which keys are listed: bool [len(keys)]."""
        return np.isin(keys, np.array(list(self.by_key), np.uint64))

    def without(self, keys: NDArray[np.uint64]) -> Exceptions:
        """Leave these keys out."""
        gone = set(keys[self.mask(keys)].tolist()) if self else set()
        return Exceptions({key: rows for key, rows in self.by_key.items() if key not in gone}) if gone else self

    def extended(self, key: int, rows: Mapping[bytes, int]) -> Exceptions:
        """Add strings of a key after those it has."""
        return Exceptions({**self.by_key, key: {**self.by_key.get(key, {}), **rows}})

    def to_json(self) -> dict[str, dict[str, int]]:
        """Write as plain JSON: key in hexadecimal -> string -> row."""
        return {f"{key:#018x}": {s.decode(): row for s, row in rows.items()} for key, rows in self.by_key.items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, int]]) -> Exceptions:
        """Read what `to_json` wrote."""
        return cls({int(key, 16): {s.encode(): int(row) for s, row in rows.items()} for key, rows in value.items()})


def string_at(strings: Any, index: int) -> bytes:
    """Return the UTF-8 bytes of one string of an Arrow array or a sequence."""
    value = strings[index]
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    return value.encode() if isinstance(value, str) else bytes(value)
