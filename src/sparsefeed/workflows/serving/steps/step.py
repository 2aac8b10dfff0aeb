"""Step: many requests in, checked one by one, computed together, one answer or error for each.

Notable: a step knows nothing of Triton. Requests and answers are mappings of numpy arrays, so that it is tested
and called without a server; a refused request never disturbs the others of its call.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from numpy.typing import NDArray

from sparsefeed.errors import RequestError, ServeError, SparsefeedError
from sparsefeed.workflows.serving.steps.readings import Reading

__all__ = ["Answer", "Step", "Tensors", "require"]

_LONGEST = 500  # characters of a message
_LOG = logging.getLogger(__name__)
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
        """Answer good requests, in order; together where that is faster."""

    def observe(self, answer: Tensors) -> None:
        """Count what an answer tells, beyond what every step counts."""

    def readings(self) -> Iterable[Reading]:
        """What `observe` has counted; may be called from another thread."""
        return ()

    def run(self, requests: Sequence[Tensors]) -> list[Answer]:
        """One answer per request, in order; an error names the bundle, the step and the cause.

        What a step did not foresee is a ServeError for the request that met it, and a traceback in the log.
        """
        checked = [self._checked(request) for request in requests]
        good = [request for request in checked if not isinstance(request, SparsefeedError)]
        computed = iter(self._computed(good))
        return [request if isinstance(request, SparsefeedError) else next(computed) for request in checked]

    def refuse(self, cause: Exception) -> SparsefeedError:
        """The error of one request, to be given instead of an answer; a long message loses its middle."""
        said = f'bundle "{self.bundle}", {self.name}: '
        if isinstance(cause, RequestError):
            return RequestError(_shortened(f"{said}{cause}"))
        _LOG.error("%s", said, exc_info=cause)
        mend = "this is no fault of the request: see the server's log"
        return ServeError(_shortened(f"{said}{type(cause).__name__}: {cause}; {mend}"))

    def _computed(self, good: list[Checked]) -> list[Answer]:
        if not good:
            return []
        try:
            return list(self.compute(good))
        except Exception as error:
            if len(good) == 1:
                return [self.refuse(error)]
        return [answer for request in good for answer in self._computed([request])]

    def _checked(self, request: Tensors) -> Checked | SparsefeedError:
        try:
            return self.check(request)
        except Exception as error:
            return self.refuse(error)


def _shortened(text: str) -> str:
    # A client takes 8 KiB of headers, in which the message stands with up to 12 characters for one that is not ASCII.
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"


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
