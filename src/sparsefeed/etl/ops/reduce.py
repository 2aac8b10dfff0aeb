"""One shape for every fit: a function of a partition, then a tree of merges, as one Dask graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dask import delayed
from dask.optimization import SubgraphCallable, cull
from dask.utils import ensure_dict

__all__ = ["tree_reduce"]

Part = TypeVar("Part")


def tree_reduce(
    ddf: Any,
    of_partition: Callable[..., Part],
    merge: Callable[[Sequence[Part]], Part],
    *args: Any,
    anew: bool = False,
    fan_in: int = 8,
) -> Any:
    """A delayed merge of `of_partition(partition, *args)` over all partitions, `fan_in` at a time.

    Args:
        ddf: a Dask frame.
        of_partition: reduces one partition.
        merge: of several parts makes one, in any order.
        args: further arguments; a delayed one is computed first.
        anew: read every partition (again) inside the task that reduces it, so when the delayed `args` are there. A
            second reduction that waits for the result of a first one over the same frame needs it: Dask would else
            read ahead, or keep the partitions of the first in memory until then.
        fan_in: parts merged at a time.
    """
    partitions = ddf.to_delayed()
    if anew:
        # Not dask.graph_manipulation.bind: Dask 2024.1.1 loses arguments where it binds layers that were fused.
        graph = ensure_dict(partitions[0].dask)
        readers = [SubgraphCallable(cull(graph, [p.key])[0], p.key, []) for p in partitions]
        # A persisted partition (its task is a future, not a call) lies in memory anyway.
        anew = all(isinstance(task, tuple | str) for reader in readers for task in reader.dsk.values())
    if anew:
        parts = [delayed(_read_and_reduce)(reader, of_partition, *args) for reader in readers]
    else:
        parts = [delayed(of_partition)(partition, *args) for partition in partitions]
    while True:
        parts = [delayed(merge)(parts[i : i + fan_in]) for i in range(0, len(parts), fan_in)]
        if len(parts) == 1:
            return parts[0]


def _read_and_reduce(read: Callable[[], Any], of_partition: Callable[..., Part], *args: Any) -> Part:
    return of_partition(read(), *args)
