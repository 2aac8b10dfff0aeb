"""Columns of ids that take every path of a lookup, and a map to look them up in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from sparsefeed.etl.ids import IdMap, hash_strings

KEY_SEED = 7
TAIL_ROWS = 97
# XXH64 under KEY_SEED is the same: in the second 32 bytes the first word undoes what it did in the first 32.
EQUAL_KEYS = (
    "feed/one/tests/equal-keys/of-xxhpost/one/tests/equal-keys/of-xxh",
    "7VuqvXic/tests/equal-keys/of-xxh{$DGe+Q[/tests/equal-keys/of-xxh",
    "8fRLt/BD/tests/equal-keys/of-xxhD2n)ey(#/tests/equal-keys/of-xxh",
)


def random_strings(num: int, seed: int) -> list[str]:
    """Different strings of 1 to 100 bytes, so that they begin at odd addresses too; every length occurs."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz0123456789_é"))
    lengths = np.r_[np.arange(1, 101), generator.integers(1, 40, max(num - 100, 0))][:num]
    found = ["".join(generator.choice(letters, length)) for length in lengths]
    return list(dict.fromkeys(found))


def column(strings: list[str], seed: int) -> pa.Array:
    """The strings in random order, with nulls, empty ones and all of EQUAL_KEYS among them."""
    values = [*strings, *EQUAL_KEYS, *[None, ""] * (len(strings) // 20 + 1)]
    order = np.random.default_rng(seed).permutation(len(values))
    return pa.array([values[i] for i in order], pa.string())


def changed_map(strings: list[str], fingerprint_bits: int) -> IdMap:
    """A map of the first half and two of EQUAL_KEYS; then the next quarter is added and every fifth id removed."""
    half, more = len(strings) // 2, 3 * len(strings) // 4
    first = [*strings[:half], *EQUAL_KEYS[:2]]
    id_map = IdMap.build(
        hash_strings(first, KEY_SEED)[0],
        np.r_[np.ones(half + 1, np.int64), 2],
        table="post",
        key_seed=KEY_SEED,
        tail_rows=TAIL_ROWS,
        fingerprint_bits=fingerprint_bits,
        strings=pa.array(first),
    )
    id_map, _ = id_map.add(hash_strings(strings[half:more], KEY_SEED)[0], pa.array(strings[half:more]))
    return id_map.remove(hash_strings(strings[:more:5], KEY_SEED)[0])
