"""Rows as a log would hold them if members were shown posts at the snapshot's moment."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.models.bundle import open_version
from tests.e2e.conftest import Run

__all__ = ["shown"]


def shown(run: Run, raw: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """One row a pair of member and post.

    State is taken from the log with pandas, not from the snapshot: an independent account of what was last known.
    `raw` is the training days, by time.
    """
    spec = run.recipe.feed
    assert spec.logs.member is not None
    sides = []
    for named, side, names in (
        (spec.logs.member, "member", [m for m, _ in pairs]),
        (spec.logs.post, "candidate", [p for _, p in pairs]),
    ):
        columns = [f.name for f in spec.of_kind("id", "ids", "dense", side=side)]  # type: ignore[arg-type]
        last = raw.drop_duplicates(named, keep="last").set_index(named, drop=False)
        sides.append(last.loc[names, columns].reset_index(drop=True))
    rows = pd.concat(sides, axis=1)
    as_of_ms = Snapshot.load(open_version(run.workspace.bundles).snapshot).as_of_ms
    for name, value in (("_time", as_of_ms), ("_position", 1), ("_surface", "home"), ("_random", 0), ("_stratum", 0)):
        rows[name] = value
    for response in spec.responses:
        rows[f"y_{response.name}"] = np.float32(0)
        rows[f"t_{response.name}"] = np.int64(0)
    rows["impression_id"] = np.arange(len(rows))
    return rows
