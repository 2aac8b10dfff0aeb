"""Step: many requests in, checked one by one, computed together, one answer or error for each.

Notable: a step knows nothing of Triton. Requests and answers are mappings of numpy arrays, so that it is tested
and called without a server; a refused request never disturbs the others of its call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray

from sparsefeed.errors import RequestError, SparsefeedError

__all__ = ["Answer", "Step", "Tensors", "require"]

Tensors = Mapping[str, NDArray[Any]]
Answer = Tensors | SparsefeedError
Checked = TypeVar("Checked")


class Step(ABC, Generic[Checked]):
    """One step of a bundle; `Checked` is a request that has been found good."""

    name: ClassVar[str]

    def __init__(self, bundle: str) -> None:
        self.bundle = bundle

    @abstractmethod
    def check(self, request: Tensors) -> Checked:
        """Validate one request; RequestError says which tensor, what was got and what is allowed."""

    @abstractmethod
    def compute(self, requests: Sequence[Checked]) -> list[Tensors]:
        """Answer good requests, joined into one computation, in order."""

    def run(self, requests: Sequence[Tensors]) -> list[Answer]:
        """One answer per request, in order; a refused one is an error that names the bundle, the step and the cause."""
        checked: list[Checked | RequestError] = []
        for request in requests:
            try:
                checked.append(self.check(request))
            except RequestError as error:
                checked.append(RequestError(f'bundle "{self.bundle}", {self.name}: {error}'))
        good = [request for request in checked if not isinstance(request, RequestError)]
        computed = iter(self.compute(good) if good else [])
        return [request if isinstance(request, RequestError) else next(computed) for request in checked]


def require(request: Tensors, name: str, dtype: type[Any], num_dimensions: int) -> NDArray[Any]:
    """Return the tensor of this name; RequestError when it is missing, or of another type or number of dimensions."""
    tensor = request.get(name)
    if tensor is None:
        raise RequestError(f"{name}: missing; it must be given")
    if tensor.dtype != dtype or tensor.ndim != num_dimensions:
        raise RequestError(
            f"{name}: got {tensor.dtype} with {tensor.ndim} dimensions; must be {dtype.__name__} with {num_dimensions}"
        )
    return tensor
