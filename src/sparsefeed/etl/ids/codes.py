"""Codes of a quotient-remainder tail: a rare or unseen id is the sum of two rows of the tail (arXiv 1909.02107).

A tail of T rows is two halves of H = T / 2. Code c in [0, H^2) is row c // H of the first half and row c % H of the
second, so T rows tell (T / 2)^2 ids apart. As a number among rows a code is c - H^2, below zero, where no table has
rows, so that none is taken for an id's own. The two are summed, for tables sum; and row 0, which is zero, stands where
an id has one row alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["FIRST_TAIL_ROW", "MOST_PAIRED_ROWS", "num_codes", "rows_of", "vectors_of"]

FIRST_TAIL_ROW = 2
MOST_PAIRED_ROWS = 92_680  # of a tail, so that its codes are fewer than 2^31

Ids = NDArray[np.int64]


def num_codes(tail_rows: int) -> int:
    """Ids that a tail of so many rows, an even number, tells apart."""
    return (tail_rows // 2) ** 2


def rows_of(ids: Ids, tail_rows: int) -> tuple[Ids, Ids]:
    """The two rows of each id, int64 like `ids`; the second is 0 where the id has one alone."""
    half = tail_rows // 2
    quotient, remainder = np.divmod(ids + half * half, half)
    coded = ids < 0
    first = np.where(coded, FIRST_TAIL_ROW + quotient, ids)
    return first, np.where(coded, FIRST_TAIL_ROW + half + remainder, 0)


def vectors_of(table: NDArray[np.float32], ids: Ids, tail_rows: int) -> NDArray[np.float32]:
    """What each id reads, float32 [n, dim]; `ids` of a hashed tail, too, of which none is below zero."""
    vectors = np.array(table[np.maximum(ids, 0)], np.float32)
    coded = ids < 0
    if coded.any():
        first, second = rows_of(ids[coded], tail_rows)
        vectors[coded] = table[first] + table[second]
    return vectors
