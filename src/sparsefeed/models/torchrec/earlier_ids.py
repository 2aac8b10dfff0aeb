"""Earlier ids: the ids of a day as the maps of an earlier one read them.

So a day judges the models of the days before it, as they would have served it: an id that got its row since reads a
row of the table's tail, as it did then.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import DataError
from sparsefeed.etl.ids import IdMap, Inverse
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.torchrec.columns import etl_fingerprint, ids_fingerprint, num_rows, previous_fingerprint

__all__ = ["earlier_rows"]


def earlier_rows(spec: FeedSpec, chain: Sequence[Path]) -> dict[str, NDArray[np.int64]]:
    """Per table, for every id of the last ETL result of a chain the row that the first one's map gives it.

    Args:
        spec: the declaration.
        chain: ETL results, each but the first a day that was added to the one before, or that goes on from its ids.

    Returns:
        int64 [rows of the last result] by table; row i of an id that was there is i.

    Raises:
        DataError: a result was not added to the one before it.
    """
    for before, day in pairwise(chain):
        if etl_fingerprint(before) not in (previous_fingerprint(day), ids_fingerprint(day)):
            raise DataError(f"{day}: is no day that was added to {before}; run `sparsefeed etl --day` again")
    rows = {}
    for name in num_rows(spec, chain[0]):
        first_map = IdMap.load(chain[0] / "ids" / name)
        first = num_rows(spec, chain[0])[name]
        parts = [np.arange(first)]
        for day in chain[1:]:
            last = num_rows(spec, day)[name]
            strings = Inverse.load(day / "inverse" / name).decode(np.arange(first, last))
            parts.append(first_map.encode(strings))
            first = last
        rows[name] = np.concatenate(parts)
    return rows
