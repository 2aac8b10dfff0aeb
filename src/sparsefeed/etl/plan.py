"""ServingPlan: what the fitted workflow does to one request, as data.

It is made from a FeedSpec and the fitted statistics, saved as JSON, and run on numpy arrays; a parity
test holds it equal to nvtabular's `Workflow.transform`. numpy and the standard library alone, so that
a Triton step loads it without pydantic, dask or nvtabular; `DensePlan.apply` needs numba, which the dense step has not.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError

__all__ = ["FORMAT", "DensePlan", "LookupPlan", "ServingPlan", "TablePlan"]

FORMAT = 1


@dataclass(frozen=True)
class TablePlan:
    """One embedding table.

    Attributes:
        name: the table's.
        dim: floats per row.
        paired_rows: of a tail whose ids are two rows each (etl.ids.codes), so that each id of the table is two keys
            of a lookup; 0: an id is one.
    """

    name: str
    dim: int
    paired_rows: int = 0

    @property
    def keys_per_id(self) -> int:
        """Keys of a lookup that an id is."""
        return 2 if self.paired_rows else 1


@dataclass(frozen=True)
class LookupPlan:
    """One feature that reads a table; `max_length` is 1 for an `id` feature."""

    name: str
    kind: Literal["id", "ids", "history"]
    side: Literal["member", "candidate"]
    table: str
    max_length: int
    pooling: Literal["mean", "sum", "learned"]


@dataclass(frozen=True)
class DensePlan:
    """The dense features of one side and their fitted statistics, a number each, in order."""

    names: tuple[str, ...]
    fill: tuple[float, ...]
    log: tuple[bool, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, raw: NDArray[np.float32]) -> NDArray[np.float32]:
        """Fill, log and standardise raw values [n, D] -> float32 [n, D]; `raw` is left as it is."""
        out = np.empty_like(raw)
        standardise_rows, *columns = self._kernel
        standardise_rows(raw, *columns, out)
        return out

    @cached_property
    def _kernel(self) -> tuple[Any, ...]:
        """The kernel, and fill, log, mean and std as it takes them."""
        from sparsefeed.etl.kernels.dense import standardise_rows

        std = np.array(self.std, np.float32)
        std[~(std > 0)] = 1
        fill, mean = np.array(self.fill, np.float32), np.array(self.mean, np.float32)
        return standardise_rows, fill, np.array(self.log, np.bool_), mean, std


@dataclass(frozen=True)
class ServingPlan:
    """Everything the serving steps need to know of the spec and its fitted statistics.

    `member` and `post` name the id features a request is made of (`member` may be None); `lookups`
    stand in the order of the declaration, which is the order of KEYS within a table.
    """

    name: str
    spec_digest: str
    key_seed: int
    tables: tuple[TablePlan, ...]
    lookups: tuple[LookupPlan, ...]
    member_dense: DensePlan
    candidate_dense: DensePlan
    member: str | None
    post: str
    responses: tuple[str, ...]
    score_weights: tuple[float, ...]

    def save(self, path: Path) -> None:
        """Write plan.json."""
        path.write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n", "utf-8")

    @classmethod
    def load(cls, path: Path) -> ServingPlan:
        """Read plan.json; BundleError when it is unreadable or of another format."""
        try:
            value = json.loads(Path(path).read_text("utf-8"))
            if value.pop("format") != FORMAT:
                raise ValueError(f"another format than {FORMAT}")
            value["tables"] = tuple(TablePlan(**t) for t in value["tables"])
            value["lookups"] = tuple(LookupPlan(**item) for item in value["lookups"])
            for side in ("member_dense", "candidate_dense"):
                value[side] = DensePlan(**{key: tuple(column) for key, column in value[side].items()})
            for key in ("responses", "score_weights"):
                value[key] = tuple(value[key])
            return cls(**value)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"{path}: not a serving plan: {error}; export the bundle again") from error
