"""Columns of the evaluation days' rows alone: what quality is cut by, and no model may see (training.md, 12).

`surface` as logged; `new_member` and `new_post`: 1 where the member or post is in no row of the days before, 0 where it
is, -1 where the row has none. An id that is too rare for a row of its own is known all the same: the snapshot, which
lists every member and post of the fitted days, says it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from merlin.dtypes import string
from merlin.schema import ColumnSchema

from sparsefeed.etl import frame
from sparsefeed.etl.impressions import SURFACE
from sparsefeed.etl.ops.history import keys_of
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.etl.spec import FeedSpec

__all__ = ["held_out_columns", "held_out_schema"]


def held_out_schema(spec: FeedSpec) -> list[ColumnSchema]:
    """Merlin's, in order: those of what the logs have."""
    columns = [ColumnSchema("surface", dtype=string)] if spec.logs.surface else []
    named = {"new_member": spec.logs.member, "new_post": spec.logs.post}
    return columns + [ColumnSchema(name, dtype=np.int8) for name, of in named.items() if of]


def held_out_columns(spec: FeedSpec, snapshot: Snapshot, part: Any) -> Any:
    """The columns, a frame like `part`, one of impressions.

    Args:
        spec: the declaration.
        snapshot: of the fitted days.
        part: as ReadImpressions gives it.
    """
    sides = {"new_member": (snapshot.member, spec.logs.member), "new_post": (snapshot.post, spec.logs.post)}
    columns: dict[str, Any] = {}
    if spec.logs.surface:
        # Plain texts: dictionaries differ by partition, and a dataset wants one type.
        columns["surface"] = frame.arrow(part[SURFACE]).cast(pa.string())
    for name, (side, of) in sides.items():
        if of is not None:
            columns[name] = _newness(side, keys_of(part[of], spec.key_seed).values)
    return frame.like(part, columns)


def _newness(side: SnapshotSide, keys: Any) -> Any:
    return np.where(keys == 0, -1, side.find(keys) < 0).astype(np.int8)
