"""Keys of three bits, so that most strings collide: proves what 64 bits need a billion ids to show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsefeed.etl.ids import hash_strings, id_map, string_counts
from sparsefeed.etl.ids.probe import NULL_ROW, Probe
from sparsefeed.etl.ids.string_counts import StringCounts

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
    count = string_counts._count

    def narrow_count(array: object, seed: int) -> StringCounts:
        counted = count(array, seed)
        order = np.argsort(counted.keys & np.uint64(7), kind="stable")
        return replace(counted.take(order), keys=counted.keys[order] & np.uint64(7))

    patch.setattr(string_counts, "_count", narrow_count)
    patch.setattr(id_map, "hash_strings", narrow_hash)
    patch.setattr(Probe, "of_strings", _of_strings)
