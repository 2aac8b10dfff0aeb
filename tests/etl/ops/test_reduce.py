from __future__ import annotations

import dask.dataframe as dd
import pandas as pd
from dask import delayed
from distributed import Client

from sparsefeed.etl.ops.reduce import tree_reduce


def total(part: pd.DataFrame, factor: int) -> int:
    return int(part["n"].sum()) * factor


def test_a_frame_that_a_cluster_holds_in_memory_is_reduced_too() -> None:
    frame = dd.from_pandas(pd.DataFrame({"n": range(100)}), npartitions=20)
    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        for given in (frame, frame.persist()):
            for anew in (False, True):
                assert tree_reduce(given, total, sum, delayed(3), anew=anew).compute() == 3 * 4950
