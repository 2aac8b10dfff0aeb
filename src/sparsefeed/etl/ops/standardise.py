"""Standardise: fill, optionally log(1 + x), then subtract the mean and divide by the standard deviation.

One operator rather than NVTabular's chain of FillMissing, Clip, LogOp and Normalize: it is the arithmetic that serving
runs (kernels.dense), and its moments do not depend on how the logs are cut into partitions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema, Tags

from sparsefeed.etl import frame
from sparsefeed.etl.kernels.dense import Moments, standardise
from sparsefeed.etl.ops.statistic import Statistic
from sparsefeed.etl.spec import FeedSpec

__all__ = ["Standardise"]

Scale = tuple[float, float]  # mean and standard deviation


class Standardise(Statistic):
    """Write every `dense` feature of the spec as float32 without nulls.

    Args:
        spec: the declaration.
        scales: of an earlier fit, which then holds; None: to be fitted.

    Attributes:
        scales: mean and standard deviation by feature, once fitted.
    """

    def __init__(self, spec: FeedSpec, scales: Mapping[str, Scale] | None = None) -> None:
        super().__init__()
        self.features = spec.dense
        self.scales = dict(scales or {})
        self.fitted = scales is not None

    @property
    def columns(self) -> list[str]:
        """The raw columns the operator reads."""
        return [feature.name for feature in self.features]

    def collect(self, part: DataFrameType, number: int) -> list[Moments]:
        """Moments of a partition, computed where its columns lie."""
        return [Moments.of(frame.values(part[f.name]), f.fill, f.log) for f in self.features]

    def merge(self, parts: Sequence[list[Moments]]) -> list[Moments]:
        """Moments of several partitions."""
        return [Moments.merge(column) for column in zip(*parts, strict=True)]

    def fit_finalize(self, dask_stats: tuple[list[Moments], list[Any]]) -> None:
        """Keep what rows are standardised with."""
        self.scales = {n: (m.mean, m.std) for n, m in zip(self.columns, dask_stats[0], strict=True)}

    def transform(self, col_selector: ColumnSelector, df: DataFrameType) -> DataFrameType:
        """Standardised features, float32, where the columns lie."""
        out: dict[str, Any] = {}
        for feature in self.features:
            values = frame.values(df[feature.name])
            out[feature.name] = standardise(values, feature.fill, feature.log, *self.scales[feature.name])
        return frame.like(df, out)

    def compute_output_schema(
        self, input_schema: Schema, col_selector: ColumnSelector, prev_output_schema: Any = None
    ) -> Schema:
        """float32, continuous."""
        return Schema([ColumnSchema(name, tags=[Tags.CONTINUOUS], dtype=np.float32) for name in self.columns])

    def clear(self) -> None:
        """Forget what was fitted."""
        self.scales = {}
