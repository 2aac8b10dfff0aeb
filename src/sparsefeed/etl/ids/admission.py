"""Which ids get a row of their own, and which of them share a key."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.exceptions import string_at
from sparsefeed.etl.ids.keys import Strings

__all__ = ["admit", "groups_of_equal_keys"]


def admit(
    keys: NDArray[np.uint64], counts: NDArray[np.int64], min_count: int, max_ids: int | None
) -> NDArray[np.int64]:
    """Choose the ids counted at least `min_count` times; of more than `max_ids` the most frequent, ties by key.

    Args:
        keys: uint64 [n].
        counts: int64 [n].
        min_count: rarer ids are left out.
        max_ids: None keeps all.

    Returns:
        Indices of the chosen, int64, each once, in no order.
    """
    admitted = np.flatnonzero(counts >= min_count)
    if max_ids is None or len(admitted) <= max_ids:
        return admitted
    admitted_counts = counts[admitted]
    least = np.partition(admitted_counts, -max_ids)[-max_ids]
    above, ties = admitted[admitted_counts > least], admitted[admitted_counts == least]
    by_key = np.argsort(keys[ties], kind="stable")
    return np.concatenate([above, ties[by_key[: max_ids - len(above)]]])


def groups_of_equal_keys(keys: NDArray[np.uint64], strings: Strings | None, where: str) -> dict[int, list[int]]:
    """Find the keys that stand more than once: key -> indices, ascending.

    Args:
        keys: uint64 [n].
        strings: [n] or None.
        where: begins the message of an error.

    Raises:
        IdError: two of one key are the same string, or there are no strings to tell them apart.
    """
    if (keys[1:] > keys[:-1]).all():  # as KeyCounts gives them
        return {}
    ordered = np.sort(keys)
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
            raise IdError(f'{where}: "{string.decode()}" is given {num_given} times; give every id once with its count')
    return groups
