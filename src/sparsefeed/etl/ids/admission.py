"""Which ids get a row of their own, and which of them share a key."""

from __future__ import annotations

from collections import Counter
from operator import index
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.codes import MOST_PAIRED_ROWS
from sparsefeed.etl.ids.exceptions import string_at
from sparsefeed.etl.ids.keys import Strings

__all__ = [
    "Options",
    "admit",
    "check_strings",
    "checked_counts",
    "checked_number",
    "checked_rows",
    "colliding_strings",
    "groups_of_equal_keys",
]

_MOST_COUNTED = 2**63 - 1
_LAST_ROW = 2**62 - 1
_FINGERPRINT_BITS = (8, 16, 32, 64)


def admit(
    keys: NDArray[np.uint64],
    counts: NDArray[np.int64],
    min_count: int,
    max_ids: int | None,
    strings: Strings | None = None,
) -> NDArray[np.int64]:
    """Choose the ids counted at least `min_count` times; of more than `max_ids` the most frequent.

    Ties are broken by key, then by string where strings are given, else by the order given.

    Args:
        keys: uint64 [n].
        counts: int64 [n].
        min_count: rarer ids are left out.
        max_ids: None keeps all.
        strings: [n] or None.

    Returns:
        Indices of the chosen, int64, each once, in no order.
    """
    admitted = np.flatnonzero(counts >= min_count)
    if max_ids is None or len(admitted) <= max_ids:
        return admitted
    admitted_counts = counts[admitted]
    least = np.partition(admitted_counts, -max_ids)[-max_ids]
    above, ties = admitted[admitted_counts > least], admitted[admitted_counts == least]
    ties = ties[np.argsort(keys[ties], kind="stable")]
    num_kept = max_ids - len(above)
    if strings is not None and keys[ties[num_kept - 1]] == keys[ties[min(num_kept, len(ties) - 1)]]:
        first, last = np.searchsorted(keys[ties], keys[ties[num_kept - 1]], "left"), num_kept
        while last < len(ties) and keys[ties[last]] == keys[ties[first]]:
            last += 1
        ties[first:last] = sorted(ties[first:last].tolist(), key=lambda i: string_at(strings, i))
    return np.concatenate([above, ties[:num_kept]])


def groups_of_equal_keys(keys: NDArray[np.uint64], strings: Strings | None, where: str) -> dict[int, list[int]]:
    """Find the keys that stand more than once: key -> indices, ascending.

    Args:
        keys: uint64 [n].
        strings: [n] or None.
        where: begins the message of an error.

    Raises:
        IdError: two of one key are the same string, or there are no strings to tell them apart.
    """
    ordered = keys if (keys[1:] >= keys[:-1]).all() else np.sort(keys)  # as those of counts are
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return {}
    if strings is None:
        raise IdError(
            f"{where}: key {int(repeated[0]):#018x} is given more than once; "
            "give every id once, or the strings that tell equal keys apart"
        )
    groups: dict[int, list[int]] = {}
    for i in np.flatnonzero(np.isin(keys, repeated)).tolist():
        groups.setdefault(int(keys[i]), []).append(i)
    for members in groups.values():
        string, num_given = Counter(string_at(strings, i) for i in members).most_common(1)[0]
        if num_given > 1:
            shown = string.decode(errors="backslashreplace")
            raise IdError(f'{where}: "{shown}" is given {num_given} times; give every id once with its count')
    return groups


class Options(NamedTuple):
    """What an `IdMap` is built with, besides its ids; see there."""

    table: str
    key_seed: int
    tail_rows: int
    paired_tail: bool
    fingerprint_bits: int

    @classmethod
    def checked(cls, table: str, key_seed: int, tail_rows: int, paired_tail: bool, fingerprint_bits: int) -> Options:
        """The options as plain numbers; IdError for one that is out of range."""
        where = f"ids/{table}"
        if fingerprint_bits not in _FINGERPRINT_BITS:
            raise IdError(f"{where}: fingerprint_bits is {fingerprint_bits}; allowed: 8, 16, 32, 64")
        least, most = (4, MOST_PAIRED_ROWS) if paired_tail else (1, 2**31)
        tail_rows = checked_number("tail_rows", tail_rows, least, most, where)
        if paired_tail and tail_rows % 2:
            raise IdError(f"{where}: tail_rows is {tail_rows}; a paired tail has two halves, give an even number")
        key_seed = checked_number("key_seed", key_seed, 0, 2**64 - 1, where)
        return cls(table, key_seed, tail_rows, bool(paired_tail), int(fingerprint_bits))


def checked_number(name: str, value: int, least: int, most: int, where: str) -> int:
    """Return an integer of any kind as Python's; IdError where it is none or out of range."""
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise IdError(f"{where}: {name} is {value!r}; allowed: integers from {least} to {most}")
    return number


def checked_counts(counts: NDArray[np.int64], num: int, where: str) -> NDArray[np.int64]:
    """Return counts as int64 [num]; IdError where they are none."""
    counts = np.asarray(counts)
    if counts.shape != (num,):
        raise IdError(f"{where}: counts are {list(counts.shape)} for {num} keys; give one of each per id")
    if num and (counts.dtype.kind not in "iu" or counts.min() < 0 or counts.max() > _MOST_COUNTED):
        raise IdError(
            f"{where}: counts are {counts.dtype}, the least {counts.min()}; allowed: integers from 0 to 2^63 - 1"
        )
    return counts.astype(np.int64, copy=False)


def checked_rows(rows: NDArray[np.int64], num: int, first_row: int, where: str) -> NDArray[np.int64]:
    """Return rows that ids may have as integers [num]; IdError where they are none."""
    rows = np.asarray(rows)
    if rows.shape != (num,) or rows.dtype.kind not in "iu":
        raise IdError(f"{where}: rows are {rows.dtype} {list(rows.shape)}; allowed: integers [{num}], one a key")
    wrong = rows[(rows < first_row) | (rows > _LAST_ROW)]
    if len(wrong):
        raise IdError(
            f"{where}: row {wrong[0]} can't be an id's; allowed: {first_row} (below it are padding, null and tail) "
            f"to {_LAST_ROW}; apply a delta to the map it was made from"
        )
    return rows.astype(np.int64, copy=False)


def check_strings(keys: NDArray[np.uint64], hashed: tuple[NDArray[np.uint64], NDArray[np.bool_]], where: str) -> None:
    """IdError where keys are not those of their hashed strings: another seed, another order, or nulls among them."""
    own, valid = hashed
    if len(own) != len(keys):
        raise IdError(f"{where}: {len(own)} strings for {len(keys)} keys; give one of each per id")
    if not valid.all():
        raise IdError(f"{where}: string {int(np.argmin(valid))} is null or empty; leave these out, they are row 1")
    if (own != keys).any():
        raise IdError(
            f"{where}: key {int(np.argmax(own != keys))} is not that of its string; "
            "give strings in the order of keys, hashed with the map's key_seed"
        )


def colliding_strings(
    keys: NDArray[np.uint64],
    counts: NDArray[np.int64],
    strings: Strings | None,
    admitted: NDArray[np.int64],
    where: str,
) -> dict[int, list[bytes]]:
    """List the admitted strings of every key that two or more of them have, the most frequent first.

    Args:
        keys: uint64 [n].
        counts: int64 [n].
        strings: [n] or None.
        admitted: indices of the admitted.
        where: begins the message of an error.

    Raises:
        IdError: as `groups_of_equal_keys`.
    """
    groups = groups_of_equal_keys(keys, strings, where)
    chosen = set(admitted.tolist()) if groups else set()
    collisions = {}
    for key, members in sorted(groups.items()):
        named = sorted((-int(counts[i]), string_at(strings, i)) for i in members if i in chosen)
        if len(named) > 1:
            collisions[key] = [string for _, string in named]
    return collisions
