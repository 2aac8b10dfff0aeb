"""Ips: a weight and a cell per response and row, from random against production sessions (kernels.ips)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from merlin.core.dispatch import DataFrameType
from merlin.dag import ColumnSelector
from merlin.schema import ColumnSchema, Schema
from numpy.typing import NDArray

from sparsefeed.errors import DataError, DataWarning
from sparsefeed.etl import frame
from sparsefeed.etl.impressions import POSITION, RANDOM, STRATUM, SURFACE, label
from sparsefeed.etl.kernels import ips as kernel
from sparsefeed.etl.kernels.arrays import array_module
from sparsefeed.etl.kernels.sampling import strata
from sparsefeed.etl.ops.statistic import Statistic
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.spec import Ips as IpsSpec

__all__ = ["Ips", "cell", "weight"]

Counts = dict[str, NDArray[np.int64]]  # surface -> [responses, buckets, 2 (production, random), 2 (y)]


def weight(response: str) -> str:
    """Name of a response's weight column."""
    return f"w_{response}"


def cell(response: str) -> str:
    """Name of a response's cell column."""
    return f"cell_{response}"


def _codes(column: Any, names: Sequence[str]) -> NDArray[np.int64]:
    """Index of each row's surface in `names`, -1 for another or null; in host memory, as dictionaries are."""
    array = frame.arrow(column)
    index = {name: i for i, name in enumerate(names)}
    codes = [np.empty(0, np.int64)]
    for chunk in array.chunks if isinstance(array, pa.ChunkedArray) else [array]:
        encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
        of_entry = np.array([index.get(str(entry), -1) for entry in encoded.dictionary.to_pylist()] + [-1])
        codes.append(of_entry[encoded.indices.fill_null(len(of_entry) - 1).to_numpy(zero_copy_only=False)])
    return np.concatenate(codes)


def count_cells(part: DataFrameType, edges: NDArray[np.int64], responses: Sequence[str]) -> Counts:
    """Impressions of a partition per surface, response, bucket, kind of session and y, counted where columns lie."""
    column = frame.arrow(part[SURFACE])
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    surfaces = sorted({str(s) for chunk in chunks for s in chunk.unique().to_pylist() if s is not None})
    bucket = kernel.position_buckets(frame.values(part[POSITION]).astype(np.int64), edges)
    random = frame.values(part[RANDOM]).astype(bool)
    code = array_module(bucket).asarray(_codes(part[SURFACE], surfaces))
    inside = code >= 0
    per_response = [
        kernel.count(
            code[inside],
            bucket[inside],
            random[inside],
            frame.values(part[label(r)])[inside] > 0,
            len(surfaces),
            len(edges),
        )
        for r in responses
    ]
    return {name: np.stack([counts[i] for counts in per_response]) for i, name in enumerate(surfaces)}


def merge_counts(parts: Sequence[Counts]) -> Counts:
    """Sum the counts of partitions or days."""
    merged: Counts = {}
    for part in parts:
        for surface, counts in part.items():
            merged[surface] = merged[surface] + counts if surface in merged else counts
    return merged


class Ips(Statistic):
    """Write `w_<response>` and `cell_<response>` per row: w = table[cell], the correction for sampling in it.

    Args:
        spec: the declaration; `spec.weighted` must be true.
        folder: where the fitted table goes: `folder/ips.parquet`.
        previous: result that this one adds a day to, whose counts count too; None: none.

    Attributes:
        tables: by response, once fitted; without `spec.ips` of no surface, so that no row is covered.
    """

    def __init__(self, spec: FeedSpec, folder: Path, previous: Path | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.config = spec.ips if isinstance(spec.ips, IpsSpec) else IpsSpec()
        self.folder = folder
        self.previous = previous
        self.responses = [response.name for response in spec.responses]
        self.edges = np.asarray(self.config.position_edges, np.int64)
        self.rates = strata(spec.sampling.rates, spec.sampling.others) if spec.sampling else np.ones(1)
        self.surfaces: list[str] = []
        self.tables: dict[str, kernel.IpsTable] = {}

    @property
    def columns(self) -> list[str]:
        """The columns the operator reads."""
        return [SURFACE, POSITION, RANDOM, STRATUM, *(label(r) for r in self.responses)]

    def collect(self, part: DataFrameType, number: int) -> Counts:
        """Count the cells of a partition."""
        return count_cells(part, self.edges, self.responses) if self.spec.ips != "none" else {}

    def merge(self, parts: Sequence[Counts]) -> Counts:
        """Sum the counts of several partitions."""
        return merge_counts(parts)

    def fit_finalize(self, dask_stats: tuple[Counts, list[Any]]) -> None:
        """Turn counts into weights and write ips.parquet; without any random session this is an error."""
        counted, _ = dask_stats
        if self.previous:
            counted = merge_counts([self._counts_in(self.previous / "ips.parquet"), counted])
        self.surfaces = sorted(counted)
        shape = (len(self.responses), 0, len(self.edges), 2, 2)
        # [responses, surfaces, buckets, 2, 2]
        counts = np.stack([counted[s] for s in self.surfaces], axis=1) if counted else np.zeros(shape, np.int64)
        if counts[:, :, :, 1].sum() == 0 and self.spec.ips != "none":
            sessions = self.spec.sessions
            assert sessions is not None
            raise DataError(
                f'ips: no row has {sessions.column} = "{sessions.random}"; weights need random sessions: '
                f"log some, name the right value in sessions.random, or set ips: none"
            )
        options = (self.config.smoothing, self.config.clip, self.config.self_normalise)
        self.tables = {r: kernel.weigh(counts[i], *options) for i, r in enumerate(self.responses)}
        for response, table in self.tables.items():
            self._warn(response, table)
        self.folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.table(), self.folder / "ips.parquet")

    def _warn(self, response: str, table: kernel.IpsTable) -> None:
        """Name the positions that could not be weighted, and those whose positives weigh nothing."""
        shown = table.counts.sum(axis=(2, 3)) > 0
        told = np.where(table.reason == "no production session", "", table.reason)
        silent = table.covered & (table.by_cell[..., 1] == 0) & (table.counts[:, :, 0, 1] > 0)
        for surface, bucket in np.argwhere(((told != "") & shown) | silent):
            what = told[surface, bucket]
            outcome = (
                f"{what}; weight 1"
                if what
                else "no random response, so production responses weigh 0; join positions or set ips.smoothing"
            )
            warnings.warn(
                f"ips: {response}, surface {self.surfaces[surface]}, position {self.edges[bucket]}: {outcome}",
                DataWarning,
                stacklevel=3,
            )

    def _counts_in(self, path: Path) -> Counts:
        """The counts that a written table was made from."""
        counts: Counts = {}
        for row in pq.read_table(path, filters=[("reason", "!=", "sampling"), ("stratum", "=", 0)]).to_pylist():
            of_surface = counts.setdefault(
                row["surface"], np.zeros((len(self.responses), len(self.edges), 2, 2), np.int64)
            )
            bucket = int(np.searchsorted(self.edges, row["position"]))
            of_cell = of_surface[self.responses.index(row["response"]), bucket]
            of_cell[:, row["y"]] = row["num_production_y"], row["num_random_y"]
        return counts

    def summary(self) -> dict[str, Any]:
        """What the weights do, per response, for etl.json."""
        found = {}
        for response, table in self.tables.items() if self.surfaces else ():
            num = int((table.counts[:, :, 0] * table.covered[..., None]).sum())
            found[response] = {
                "num_weighted_rows": num,
                "effective_sample_size": round(table.effective_sample_size, 1),
                "num_clipped_rows": table.num_clipped(self.config.clip),
                "positions_without_random_sessions": int((table.reason == "no random session").sum()),
            }
        return found

    def table(self) -> pa.Table:
        """The weights as a table: a row per response, surface, position bucket and y that was shown, and stratum.

        Rows with surface "" are the corrections of what is not weighted but sampled.
        """
        rows: list[dict[str, Any]] = []
        num_strata = len(self.rates)
        for response, table in self.tables.items():
            num_buckets = len(self.edges)
            for stratum in range(1, num_strata):
                correction = {"cell": stratum, "weight": 1 / self.rates[stratum], "reason": "sampling"}
                rows.append({**_NO_CELL, "response": response, "stratum": stratum, **correction})
            for s, b in np.argwhere(table.counts.sum(axis=(2, 3)) > 0):
                for y, stratum in np.ndindex(2, num_strata):
                    covered = table.reason[s, b] == ""
                    cell = (1 + (s * num_buckets + b) * 2 + y) * num_strata + stratum
                    low, high = table.bounds[s, b, y]
                    rows.append(
                        {
                            "response": response,
                            "surface": self.surfaces[s],
                            "position": int(self.edges[b]),
                            "y": y,
                            "stratum": stratum,
                            "cell": int(cell) if covered else stratum,
                            "weight": float(table.by_cell[s, b, y] / self.rates[stratum]),
                            "reason": str(table.reason[s, b]),
                            "unclipped": float(table.unclipped[s, b, y]),
                            "low": None if np.isnan(low) else float(low),
                            "high": None if np.isnan(high) else float(high),
                            "num_random": int(table.counts[s, b, 1].sum()),
                            "num_random_y": int(table.counts[s, b, 1, y]),
                            "num_production": int(table.counts[s, b, 0].sum()),
                            "num_production_y": int(table.counts[s, b, 0, y]),
                        }
                    )
        return pa.Table.from_pylist(rows, schema=_SCHEMA)

    def transform(self, col_selector: ColumnSelector, df: DataFrameType) -> DataFrameType:
        """W float32 and cell int32 per response; w = table[cell]; where the columns lie."""
        bucket = kernel.position_buckets(frame.values(df[POSITION]).astype(np.int64), self.edges)
        random, stratum = frame.values(df[RANDOM]).astype(bool), frame.values(df[STRATUM])
        xp = array_module(bucket)
        code = xp.asarray(_codes(df[SURFACE], self.surfaces))
        out: dict[str, Any] = {}
        for response, table in self.tables.items():
            y = frame.values(df[label(response)]) > 0
            cells = kernel.strata_cells(kernel.cells(code, bucket, random, y, table.covered), stratum, len(self.rates))
            weights = xp.asarray(kernel.with_strata(table.weight, self.rates))
            out[weight(response)] = weights[cells].astype(np.float32)
            out[cell(response)] = cells
        return frame.like(df, out)

    def compute_output_schema(
        self, input_schema: Schema, col_selector: ColumnSelector, prev_output_schema: Any = None
    ) -> Schema:
        """float32 weights, int32 cells."""
        columns = []
        for response in self.responses:
            columns += [ColumnSchema(weight(response), dtype=np.float32), ColumnSchema(cell(response), dtype=np.int32)]
        return Schema(columns)

    def clear(self) -> None:
        """Forget the fitted tables."""
        self.tables, self.surfaces = {}, []


_SCHEMA = pa.schema(
    {
        "response": pa.string(),
        "surface": pa.string(),
        "position": pa.int64(),
        "y": pa.int64(),
        "stratum": pa.int64(),
        "cell": pa.int64(),
        "weight": pa.float64(),
        "reason": pa.string(),
        "unclipped": pa.float64(),
        "low": pa.float64(),
        "high": pa.float64(),
        "num_random": pa.int64(),
        "num_random_y": pa.int64(),
        "num_production": pa.int64(),
        "num_production_y": pa.int64(),
    }
)
_NO_CELL = {
    **dict.fromkeys(("position", "y", "num_random", "num_random_y", "num_production", "num_production_y"), 0),
    **{"surface": "", "unclipped": 1.0, "low": None, "high": None},
}
