"""One shape for every fit: a function of a partition, then a tree of merges, as one Dask graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from dask import delayed

__all__ = ["tree_reduce"]

Part = TypeVar("Part")


def tree_reduce(
    ddf: Any, of_partition: Callable[..., Part], merge: Callable[[Sequence[Part]], Part], *args: Any, fan_in: int = 8
) -> Any:
    """A delayed merge of `of_partition(partition, *args)` over all partitions, `fan_in` at a time."""
    parts = [delayed(of_partition)(partition, *args) for partition in ddf.to_delayed()]
    while True:
        parts = [delayed(merge)(parts[i : i + fan_in]) for i in range(0, len(parts), fan_in)]
        if len(parts) == 1:
            return parts[0]
