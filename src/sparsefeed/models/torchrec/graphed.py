"""Tensors -> tensors as one CUDA graph: what a host launches in 150 calls is recorded once and launched in one.

A small batch keeps a GPU busy for less time than its host takes to ask for a step. A graph is of one shape: tensors of
another, as of an epoch's last batch, go through the function itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Graphed"]

_CALLS_BEFORE = 3  # of one shape: libraries make themselves at home in the first ones


class Graphed:
    """A function of tensors that lie on one device; on a CPU the function as it is.

    Args:
        function: Reads its arguments and tensors that stay where they are; what it does depends on nothing else.
    """

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self._function = function
        self._shapes: list[torch.Size] = []
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._given: list[Tensor] = []
        self._found: tuple[Tensor, ...] = ()

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What the function gives; the next call may overwrite it."""
        shapes = [tensor.shape for tensor in given]
        if self._graph is None and given[0].is_cuda:
            self._calls = self._calls + 1 if shapes == self._shapes else 1
            self._shapes = shapes
            if self._calls > _CALLS_BEFORE:
                self._record(given)
        if self._graph is None or shapes != self._shapes:
            return self._function(*given)
        torch._foreach_copy_(self._given, list(given))
        self._graph.replay()
        return self._found

    def _record(self, given: tuple[Tensor, ...]) -> None:
        self._given = [tensor.clone() for tensor in given]
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory and watch collectives meanwhile, which is no part of it.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._found = self._function(*self._given)
        self._graph = graph
