"""Keys of three bits, so that most strings collide: proves what 64 bits need a billion ids to show."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparsefeed.etl.ids import hash_strings, id_map
from sparsefeed.etl.ids.distinct import DistinctStrings, Texts
from sparsefeed.etl.ids.probe import NULL_ROW, Probe

__all__ = ["narrow_hash", "use_narrow_keys"]


def narrow_hash(strings: object, seed: int) -> tuple[np.ndarray, np.ndarray]:
    keys, valid = hash_strings(strings, seed)
    return keys & np.uint64(7), valid


def _of_strings(probe: Probe, strings: object, rows: np.ndarray) -> None:
    keys, valid = narrow_hash(strings, int(probe.key_seed))
    probe.of_keys(keys, rows)
    rows[~valid] = NULL_ROW


def use_narrow_keys(patch: pytest.MonkeyPatch) -> None:
    """Truncate the hash wherever a map, or who counts for it, hashes."""
    add = DistinctStrings.add

    def narrow_add(self: DistinctStrings, texts: Texts, *rest: Any, **named: Any) -> int:
        if "keys" not in named:
            data, offsets = texts
            large = pa.py_buffer(offsets.astype(np.int64)), pa.py_buffer(data)
            keys, _ = narrow_hash(
                pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(offsets) - 1, [None, *large]), 0
            )
            named["keys"] = keys
        return add(self, texts, *rest, **named)

    patch.setattr(DistinctStrings, "add", narrow_add)
    patch.setattr(id_map, "hash_strings", narrow_hash)
    patch.setattr(Probe, "of_strings", _of_strings)
