"""Statistic: a StatOperator that is fitted beside others by one reading of the logs.

NVTabular fits each operator by a pass of its own. Here a fit is three steps: a `Collector` reduces the partitions of a
task, `merge` joins what tasks gave, and `jobs` are what is left to do on the workers once all is collected (building a
map from the runs that were written). `fit` takes any number of operators through them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import dask
from dask import delayed
from merlin.core.utils import global_dask_client
from merlin.dag import ColumnSelector
from nvtabular.ops import StatOperator

from sparsefeed.etl.cluster import compute, gathered

__all__ = ["Collector", "Job", "Reader", "Statistic", "fit"]

Job = Callable[[], Any]
Result = TypeVar("Result")
_MOST_PER_TASK = 8  # partitions that one task reduces: more are fewer runs, and more to do again when a worker dies


class Collector:
    """Reduces the partitions of one task, one after the other; here each by itself."""

    def __init__(self, operator: Statistic) -> None:
        self._operator = operator
        self._parts: list[Any] = []

    def add(self, part: Any, number: int) -> None:
        """Take in partition `number`."""
        self._parts.append(self._operator.collect(part, number))

    def result(self) -> Any:
        """What `merge` takes."""
        return self._operator.merge(self._parts)


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

    def collector(self) -> Collector:
        """Make what reduces the partitions of a task."""
        return Collector(self)

    def merge(self, parts: Sequence[Any]) -> Any:
        """Join what several partitions or tasks gave, in any order."""
        raise NotImplementedError

    def jobs(self, merged: Any, num_partitions: int) -> list[Job]:
        """What to do on the workers once all is collected; the results go to `fit_finalize`.

        A job may be made again, even after it ended, when the worker that has its result dies: it must leave what it
        reads, and write the same again.
        """
        return []

    def fit(self, col_selector: ColumnSelector, ddf: Any) -> Any:
        """Fit as NVTabular's own Workflow.fit asks it to: alone, and where a task reads ahead of the others."""
        collect = delayed(lambda part, number: [self.collect(part, number)])
        tasks = [collect(part, number, pure=False) for number, part in enumerate(ddf.to_delayed())]
        client = global_dask_client()
        parts = gathered(client, client.compute(tasks)) if client else dask.compute(*tasks, scheduler="synchronous")
        return delayed(_finished([self], parts, len(parts))[0], pure=False)

    # fit_finalize(self, dask_stats: tuple[merged, results of jobs]): what NVTabular calls with what `fit` gave.


class Reader(Protocol):
    """What reads partitions, and works on them where they are read (impressions.ReadImpressions)."""

    def over(
        self, partitions: Sequence[Any], work: Callable[[Iterable[tuple[int, Any]]], Result], most_per_task: int = 1
    ) -> list[Result]:
        """What `work` gave for the numbered frames of each task's partitions, in order."""


def fit(operators: Sequence[Statistic], read: Reader, partitions: Sequence[Any]) -> None:
    """Fit operators of raw columns by reading every partition once.

    A task takes some partitions and reduces each before it reads another, so a worker holds one at a time.

    Args:
        operators: to be fitted together.
        read: makes frames with the columns of all operators.
        partitions: to be read.
    """
    parts = read.over(partitions, partial(_collect, operators), _MOST_PER_TASK)
    for operator, statistics in zip(operators, _finished(operators, parts, len(partitions)), strict=True):
        operator.fit_finalize(statistics)
        operator.fitted = True


def _finished(
    operators: Sequence[Statistic], parts: Sequence[list[Any]], num_partitions: int
) -> list[tuple[Any, list[Any]]]:
    """Merge what tasks gave, which is small, and do what is left to do."""
    merged = [operator.merge(column) for operator, column in zip(operators, zip(*parts, strict=True), strict=True)]
    jobs = [operator.jobs(part, num_partitions) for operator, part in zip(operators, merged, strict=True)]
    results = iter(compute([job for some in jobs for job in some]))
    return [(part, [next(results) for _ in some]) for part, some in zip(merged, jobs, strict=True)]


def _collect(operators: Sequence[Statistic], frames: Iterable[tuple[int, Any]]) -> list[Any]:
    collectors = [operator.collector() for operator in operators]
    for number, part in frames:
        for collector in collectors:
            collector.add(part, number)
        del part  # before the next is read
    return [collector.result() for collector in collectors]
