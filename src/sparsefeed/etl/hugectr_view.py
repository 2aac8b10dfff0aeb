"""HugeCTR's view of the training rows: its columns instead of the contract's (docs/contracts/hugectr.md).

HugeCTR knows no weight of a sample; its loss weighs label columns and leaves out labels below 0. So a response has a
column per distinct weight, y in the sample's own and -1 in the others. Where there are more weights than `MAX_COLUMNS`,
the columns are the bits of the weight in fixed point instead: y where the bit is set, and a column weighs its bit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from sparsefeed.etl.spec import FeedSpec, IdFeature

__all__ = [
    "FORMAT",
    "MAX_COLUMNS",
    "HugectrView",
    "LabelColumns",
    "inverse_length",
    "label_name",
    "mean_pooled",
    "read_labelled",
]

FORMAT = 1  # of hugectr.json
MAX_COLUMNS = 256
BITS = 24  # as many as a float32 has


@dataclass(frozen=True)
class LabelColumns:
    """The label columns of one response.

    Attributes:
        weights: float64 [K]: what each column weighs in the loss.
        member: bool [cells, K]: whether a row of a cell has its label in a column; the row weighs the sum of them.
    """

    weights: NDArray[np.float64]
    member: NDArray[np.bool_]

    @classmethod
    def of(cls, weight_by_cell: Mapping[int, float]) -> LabelColumns:
        """Columns for these weights, each at least 0: one per distinct weight, or one per bit."""
        cells = np.fromiter(weight_by_cell, np.int64)
        weights = np.fromiter(weight_by_cell.values(), np.float64)
        distinct, column = np.unique(weights, return_inverse=True)
        if len(distinct) <= MAX_COLUMNS:
            member = np.zeros((cells.max() + 1, len(distinct)), bool)
            member[cells, column] = True
            return cls(distinct, member)
        bit = weights.max() / (2**BITS - 1)
        fixed = np.rint(weights / bit).astype(np.int64)
        member = np.zeros((cells.max() + 1, BITS), bool)
        member[cells] = fixed[:, None] >> np.arange(BITS) & 1
        return cls(bit * 2.0 ** np.arange(BITS), member)

    def labels(self, y: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.float32]:
        """Labels of rows, float32 [n, K]: y where a column is a row's, else -1."""
        return np.where(self.member[cells], y[:, None], np.float32(-1))


@dataclass(frozen=True)
class HugectrView:
    """What columns HugeCTR gets, and what is in them.

    Attributes:
        spec: the declaration.
        labels: by response.
        watched: rows that are not trained: y is in all label columns, so that HugeCTR's AUC counts each row.
    """

    spec: FeedSpec
    labels: Mapping[str, LabelColumns]
    watched: bool = False

    @classmethod
    def of(cls, spec: FeedSpec, weights: pa.Table | None) -> HugectrView:
        """For these weights: rows with `response`, `cell` and `weight`, as of ips.parquet; None: each row weighs 1."""
        by_cell: dict[str, dict[int, float]] = {response.name: {0: 1.0} for response in spec.responses}
        for row in weights.select(["response", "cell", "weight"]).to_pylist() if weights is not None else ():
            by_cell[row["response"]][row["cell"]] = float(np.float32(row["weight"]))  # as w_<response> has it
        return cls(spec, {name: LabelColumns.of(cells) for name, cells in by_cell.items()})

    @property
    def kinds(self) -> dict[str, list[str]]:
        """Columns by what HugeCTR's metadata calls them; this is their order in the files, too."""
        spec = self.spec
        dense = [feature.name for side in ("member", "candidate") for feature in spec.of_kind("dense", side=side)]
        return {
            "labels": [label_name(number, response.name) for number, response in enumerate(spec.responses)],
            "conts": [*dense, *(inverse_length(name) for name in mean_pooled(spec))],
            "cats": [feature.name for feature in spec.lookups],
        }

    def table(self, rows: pa.Table) -> pa.Table:
        """Rows of the contract's columns -> HugeCTR's."""
        columns: dict[str, Any] = {}
        for number, (response, made) in enumerate(self.labels.items()):
            y = rows.column(f"y_{response}").to_numpy()
            cells = rows.column(f"cell_{response}").to_numpy() if self.spec.weighted else np.zeros(len(y), np.int64)
            many = np.repeat(y[:, None], len(made.weights), axis=1) if self.watched else made.labels(y, cells)
            columns[label_name(number, response)] = _fixed_lists(many) if many.shape[1] > 1 else pa.array(many[:, 0])
        means = mean_pooled(self.spec)
        for name in self.kinds["conts"]:
            if name in rows.column_names:
                columns[name] = rows.column(name)
        for name in means:
            lengths = np.concatenate([np.diff(chunk.offsets.to_numpy()) for chunk in rows.column(name).chunks])
            columns[inverse_length(name)] = pa.array((1 / np.maximum(lengths, 1)).astype(np.float32))
        return pa.table(columns | {name: rows.column(name) for name in self.kinds["cats"]})

    def save(self, folder: Path, what: Mapping[str, Any]) -> None:
        """Write `hugectr.json`, which models/hugectr/train.py reads; `what` is told there, too."""
        spec = self.spec
        said = {
            "format": FORMAT,
            "spec_digest": spec.digest,
            **what,
            "labels": [
                {"name": name, "response": response, "weights": made.weights.tolist()}
                for name, (response, made) in zip(self.kinds["labels"], self.labels.items(), strict=True)
            ],
            "dense": [name for name in self.kinds["conts"] if name in spec.feature_by_name],
            "inverse_lengths": mean_pooled(spec),
            "lookups": [
                {
                    "name": feature.name,
                    "table": spec.table_of(feature).name,
                    "is_list": not isinstance(feature, IdFeature),
                    "max_length": getattr(feature, "max_length", 1),
                }
                for feature in spec.lookups
            ],
        }
        (folder / "hugectr.json").write_text(json.dumps(said, indent=1) + "\n", "utf-8")


def read_labelled(spec: FeedSpec, folder: Path) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Dense features [n, D], labels [n, R] and weights [n, R] of `folder/train`, back from HugeCTR's columns.

    A row without any label column weighs 0, and its label is 0 whatever it was.
    """
    described = json.loads((folder / "hugectr.json").read_text("utf-8"))["labels"]
    columns = [*(feature.name for feature in spec.dense), *(label["name"] for label in described)]
    table = ds.dataset(sorted(map(str, (folder / "train").glob("*.parquet")))).to_table(columns=columns)
    dense = np.empty((len(table), len(spec.dense)), np.float32)
    for number, feature in enumerate(spec.dense):
        dense[:, number] = table.column(feature.name).to_numpy()
    labels, weights = (np.empty((len(table), len(described)), np.float32) for _ in range(2))
    for number, label in enumerate(described):
        column = table.column(label["name"]).combine_chunks()
        values = column.flatten() if pa.types.is_list(column.type) else column
        made = values.to_numpy().reshape(len(table), len(label["weights"]))
        labels[:, number] = np.maximum(made.max(axis=1), 0)
        weights[:, number] = (made >= 0) @ np.asarray(label["weights"])
    return dense, labels, weights


def label_name(number: int, response: str) -> str:
    """HugeCTR cuts the label columns in the order of their names, so names begin with their number."""
    return f"label{number:03d}_{response}"


def inverse_length(feature: str) -> str:
    """Name of the column with 1 / length of a list, 1 of an empty one."""
    return f"_inverse_{feature}"


def mean_pooled(spec: FeedSpec) -> list[str]:
    """Lists whose pooled vector is a mean."""
    return [f.name for f in spec.lookups if not isinstance(f, IdFeature) and f.pooling == "mean"]


def _fixed_lists(values: NDArray[np.float32]) -> pa.ListArray:
    num, width = values.shape
    return pa.ListArray.from_arrays(pa.array(np.arange(num + 1, dtype=np.int32) * width), pa.array(values.reshape(-1)))
