"""What the best ranker could answer on simulated logs: the true probabilities without what no request holds.

A ranker knows member, post, time and surface; it does not know the position that the post will have, nor the
hidden relevance of the moment (docs/simulator.md). Both are integrated out of the simulator's equations: positions as
random sessions have them, equally; the hidden relevance, a standard normal, by Gauss-Hermite quadrature.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from sparsefeed.etl.simulate import SimulateConfig
from sparsefeed.etl.simulation.policy import POSTS_PER_SESSION
from sparsefeed.etl.simulation.response import Visits, examination, probabilities
from sparsefeed.etl.simulation.world import DAY_MS, build_world

__all__ = ["knowable"]

NODES = 15  # of the quadrature: six digits


def knowable(config: SimulateConfig, logs: Path, impressions: NDArray[np.int64]) -> NDArray[np.float64]:
    """Probabilities [n, 4] of click, like, comment and reshare, for these impressions of the logs.

    Args:
        config: what the logs were simulated from.
        logs: their folder.
        impressions: int64 [n], the ids as logged.
    """
    world = build_world(config)
    columns = ["impression_id", "time", "member_id", "post_id", "surface"]
    asked = ds.field("impression_id").isin(impressions)
    table = ds.dataset(str(logs / "impressions"), format="parquet").to_table(columns=columns, filter=asked)
    table = table.take(pc.index_in(pa.array(impressions), table["impression_id"].combine_chunks()))
    time_ms = table["time"].cast(pa.int64()).to_numpy()
    member = pc.index_in(table["member_id"], world.members.id).to_numpy()
    post = pc.index_in(table["post_id"], world.posts.id).to_numpy()[:, None]
    is_explore = pc.equal(table["surface"], "explore").to_numpy()
    looked_at = examination(POSTS_PER_SESSION, is_explore).mean(axis=1)
    day = (time_ms - world.start_ms) // DAY_MS
    nodes, shares = np.polynomial.hermite_e.hermegauss(NODES)
    found = np.zeros((len(table), 4))
    for one in np.unique(day):
        of_day = np.flatnonzero(day == one)
        visits = Visits(int(one), time_ms[of_day], member[of_day])
        for node, share in zip(nodes, shares / shares.sum(), strict=True):
            hidden = np.full((len(of_day), 1), node, np.float32)
            # A single post stands at position 1, which is always looked at.
            found[of_day] += share * probabilities(world, visits, post[of_day], hidden, is_explore[of_day])[:, 0]
    return found * looked_at[:, None]
