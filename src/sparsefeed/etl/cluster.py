"""A Dask cluster: worker processes on this machine, one per GPU where there are GPUs, or one that already runs."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from sparsefeed.allocators import KEEP_FREED
from sparsefeed.errors import ToolError
from sparsefeed.etl.config import ClusterConfig

__all__ = ["compute", "computes_with", "gathered", "num_slots", "open_cluster", "use_gpu"]

Result = TypeVar("Result")
_CONNECT_S = 10
_elsewhere: ContextVar[Callable[[Sequence[Callable[[], Any]]], list[Any]] | None] = ContextVar("cluster", default=None)


def compute(calls: Sequence[Callable[[], Result]]) -> list[Result]:
    """Make calls that do not depend on each other, on Merlin's cluster or in this process; results in order.

    A call whose worker dies is made again on another. Inside `computes_with` another cluster makes them.
    """
    if (elsewhere := _elsewhere.get()) is not None:
        return elsewhere(calls)
    from merlin.core.utils import global_dask_client

    client = global_dask_client()
    if client is None:
        return [call() for call in calls]
    return gathered(client, [client.submit(call, pure=False) for call in calls])


@contextmanager
def computes_with(cluster: Callable[[Sequence[Callable[[], Any]]], list[Any]]) -> Iterator[None]:
    """Calls of `compute` go to a cluster that is not Merlin's while this is open."""
    token = _elsewhere.set(cluster)
    try:
        yield
    finally:
        _elsewhere.reset(token)


def gathered(client: Any, futures: Sequence[Any]) -> list[Any]:
    """Results of futures; of an error, once nothing of them runs: tasks write where the caller is about to clear."""
    from distributed import wait

    try:
        return list(client.gather(list(futures)))
    except Exception:
        wait(futures)
        raise


def num_slots() -> int:
    """How many calls run side by side on Merlin's cluster; 1 in this process."""
    from merlin.core.utils import global_dask_client

    client = global_dask_client()
    return max(1, sum(client.nthreads().values())) if client else 1


def use_gpu(config: ClusterConfig) -> bool:
    """Whether partitions are cuDF frames on a LocalCUDACluster; ToolError if demanded and impossible."""
    if config.gpu is False:
        return False
    try:
        import cudf  # noqa: F401
        import cupy

        if cupy.cuda.runtime.getDeviceCount() == 0:
            raise ImportError("no CUDA device")
    except Exception as error:  # cupy raises its own errors without a driver
        if config.gpu:
            raise ToolError(
                f"cluster.gpu is true, but cuDF cannot be used: {error}; install environment.yml on a GPU machine"
            ) from error
        return False
    return True


@contextmanager
def open_cluster(config: ClusterConfig) -> Iterator[Any]:
    """A distributed client that is Merlin's global client while open; None with no workers."""
    if config.workers == 0 and not config.address and not use_gpu(config):
        yield None  # Merlin runs partition by partition in this process
        return
    import dask
    from distributed import Client, LocalCluster
    from merlin.core.utils import set_dask_client

    # What travelled between workers need not be aligned, and Merlin's imports warn of what is not used.
    environment = {"ACERO_ALIGNMENT_HANDLING": "ignore", "PYTHONWARNINGS": "ignore"} | KEEP_FREED
    if config.workers:  # of workers here, each has its share of the cores; other clusters say for themselves
        environment["NUMBA_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // config.workers))
    settings = {
        "distributed.comm.timeouts.connect": "60s",
        "distributed.nanny.pre-spawn-environ": dask.config.get("distributed.nanny.pre-spawn-environ") | environment,
    }
    with dask.config.set(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config.address:
            cluster = None
            try:
                client = Client(config.address, timeout=_CONNECT_S)
            except OSError as error:
                raise ToolError(
                    f"cluster.address: no scheduler answers at {config.address} ({error}); start one, or drop it"
                ) from error
        elif use_gpu(config):
            from dask_cuda import LocalCUDACluster

            cluster = LocalCUDACluster(dashboard_address=None, silence_logs=logging.ERROR)
            client = Client(cluster)
        else:
            # One thread a worker: partitions are numpy and Arrow work that holds the cores already.
            cluster = LocalCluster(
                n_workers=config.workers,
                threads_per_worker=1,
                dashboard_address=None,
                silence_logs=logging.ERROR,
            )
            client = Client(cluster)
        # Import on every worker first: a worker killed during its cold import would take the fit with it.
        client.run(_warm)
    try:
        set_dask_client(client)
        yield client
    finally:
        set_dask_client(None)
        client.close()
        if cluster is not None:
            cluster.close()


def _warm() -> None:
    """Import what tasks need, and load or compile the kernels that the first of them would wait for."""
    import numpy as np
    import pyarrow as pa

    import sparsefeed.etl.workflow  # noqa: F401
    from sparsefeed.etl.ids import IdMap
    from sparsefeed.etl.ids.string_counts import StringCounts
    from sparsefeed.etl.kernels.dense import Moments

    many = pa.array([f"{i}" for i in range(20)])  # more than a table holds without growing
    for column in (many, many.dictionary_encode()):
        counted = StringCounts.of(column, 0)
    counted = counted.merge(StringCounts.of(pa.array(["c"], pa.large_string()), 0))
    built = IdMap.build(counted.keys, counted.counts, table="warm", key_seed=0, tail_rows=1, strings=counted.strings)
    built.encode(pa.array(["a"]))
    for values in (np.zeros(1, np.float32), np.asarray(pa.array([0.0], pa.float32()).to_numpy())):  # the latter fixed
        Moments.of(values, 0.0, False)
