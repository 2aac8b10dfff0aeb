"""Statistic: a StatOperator that is fitted beside others by one reading of the logs.

NVTabular fits each operator by a pass of its own. Here a fit is three steps: `collect` reduces one partition, `merge`
joins what partitions gave, and `jobs` are what is left to do on the workers once all is collected (building a map
from the runs that `collect` wrote). `fit` takes any number of operators through them together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import dask
from dask import delayed
from merlin.core.utils import global_dask_client
from merlin.dag import ColumnSelector
from nvtabular.ops import StatOperator

from sparsefeed.etl.cluster import compute, gathered

__all__ = ["Job", "Statistic", "fit"]

Job = Callable[[], Any]
Source = TypeVar("Source")


class Statistic(StatOperator):
    """Base of the operators of this package that learn something from the logs.

    What the methods take and give travels between processes.
    """

    @property
    def columns(self) -> list[str]:
        """The raw columns the operator reads."""
        raise NotImplementedError

    def collect(self, part: Any, number: int) -> Any:
        """Reduce partition `number`; it may be run again after a worker died."""
        raise NotImplementedError

    def merge(self, parts: Sequence[Any]) -> Any:
        """Join what several partitions gave, in any order."""
        raise NotImplementedError

    def jobs(self, merged: Any, num_partitions: int) -> list[Job]:
        """What to do on the workers once all is collected; the results go to `fit_finalize`.

        A job may be made again, even after it ended, when the worker that has its result dies: it must leave what it
        reads, and write the same again.
        """
        return []

    def fit(self, col_selector: ColumnSelector, ddf: Any) -> Any:
        """Fit as NVTabular's own Workflow.fit asks it to: alone, and where a task reads ahead of the others."""
        tasks = [delayed(_collect)([self], part, number, pure=False) for number, part in enumerate(ddf.to_delayed())]
        client = global_dask_client()
        parts = gathered(client, client.compute(tasks)) if client else dask.compute(*tasks, scheduler="synchronous")
        return delayed(_finished([self], parts)[0], pure=False)

    # fit_finalize(self, dask_stats: tuple[merged, results of jobs]): what NVTabular calls with what `fit` gave.


def fit(operators: Sequence[Statistic], read: Callable[[Source], Any], sources: Sequence[Source]) -> None:
    """Fit operators of raw columns by reading every source once.

    A task reads one source and reduces it before another is read, so a worker holds one partition at a time.

    Args:
        operators: to be fitted together.
        read: of a source makes a frame with the columns of all operators.
        sources: one per partition.
    """
    parts = compute([partial(_read_and_collect, operators, read, s, number) for number, s in enumerate(sources)])
    for operator, statistics in zip(operators, _finished(operators, parts), strict=True):
        operator.fit_finalize(statistics)
        operator.fitted = True


def _finished(operators: Sequence[Statistic], parts: Sequence[list[Any]]) -> list[tuple[Any, list[Any]]]:
    """Merge what partitions gave, which is small, and do what is left to do."""
    merged = [operator.merge(column) for operator, column in zip(operators, zip(*parts, strict=True), strict=True)]
    jobs = [operator.jobs(part, len(parts)) for operator, part in zip(operators, merged, strict=True)]
    results = iter(compute([job for some in jobs for job in some]))
    return [(part, [next(results) for _ in some]) for part, some in zip(merged, jobs, strict=True)]


def _read_and_collect(
    operators: Sequence[Statistic], read: Callable[[Source], Any], source: Source, number: int
) -> list[Any]:
    return _collect(operators, read(source), number)


def _collect(operators: Sequence[Statistic], part: Any, number: int) -> list[Any]:
    return [operator.collect(part, number) for operator in operators]
