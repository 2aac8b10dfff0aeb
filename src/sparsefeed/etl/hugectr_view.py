"""HugeCTR's view of the training rows: one raw file, rows of equal length (docs/contracts/hugectr.md).

HugeCTR's embedding collection takes its rows from the reader of raw files alone, and that reader knows lists of one
length alone. So a list is filled up with row 0, and beside it stands how often, for the model to take it off again.

HugeCTR knows no weight of a sample either; its loss weighs label columns and leaves out labels below 0. So a response
has a column per distinct weight, y in the sample's own and -1 in the others. Where there are more weights than
`MAX_COLUMNS`, the columns are the bits of the weight in fixed point instead: y where the bit is set, and a column
weighs its bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import FeedSpec, HistoryFeature, IdFeature, IdListFeature

__all__ = [
    "FORMAT",
    "MAX_COLUMNS",
    "HugectrView",
    "LabelColumns",
    "check_sayable",
    "lists",
    "padded_tables",
    "read_labelled",
]

FORMAT = 1  # of hugectr.json
MAX_COLUMNS = 24
BITS = 24  # as many as a float32 has
_BLOCK_ROWS = 1 << 16


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

    def labels(self, y: NDArray[np.float32], cells: NDArray[np.int64]) -> NDArray[np.int32]:
        """Labels of rows, int32 [n, K]: y where a column is a row's, else -1."""
        return np.where(self.member[cells], y[:, None].astype(np.int32), np.int32(-1))


@dataclass(frozen=True)
class HugectrView:
    """What stands in a row of HugeCTR's file.

    Attributes:
        spec: the declaration.
        labels: by response.
    """

    spec: FeedSpec
    labels: Mapping[str, LabelColumns]

    @classmethod
    def of(cls, spec: FeedSpec, weights: pa.Table | None) -> HugectrView:
        """For these weights: rows with `response`, `cell` and `weight`, as of ips.parquet; None: each row weighs 1.

        Raises:
            SpecError: as `check_sayable`.
        """
        check_sayable(spec)
        by_cell: dict[str, dict[int, float]] = {response.name: {0: 1.0} for response in spec.responses}
        for row in weights.select(["response", "cell", "weight"]).to_pylist() if weights is not None else ():
            by_cell[row["response"]][row["cell"]] = float(np.float32(row["weight"]))  # as w_<response> has it
        return cls(spec, {name: LabelColumns.of(cells) for name, cells in by_cell.items()})

    @property
    def dense(self) -> list[str]:
        """Dense columns: features, then per list how many of its ids are padding, and 1 / length where it is a mean."""
        spec = self.spec
        names = [feature.name for side in ("member", "candidate") for feature in spec.of_kind("dense", side=side)]
        for feature in lists(spec):
            names.append(f"_pads_{feature.name}")
            if feature.pooling == "mean":
                names.append(f"_inverse_{feature.name}")
        return names or ["_none"]  # HugeCTR's reader wants one at least

    def described(self) -> dict[str, Any]:
        """What hugectr.json says of a row, all in the order of its columns."""
        spec = self.spec
        return {
            "labels": [
                {"response": response, "weights": made.weights.tolist()} for response, made in self.labels.items()
            ],
            "dense": self.dense,
            "lookups": [
                {
                    "name": feature.name,
                    "table": spec.table_of(feature).name,
                    "max_length": getattr(feature, "max_length", 1),
                    "pooling": "one" if isinstance(feature, IdFeature) else feature.pooling,
                }
                for feature in spec.lookups
            ],
            "padded_tables": padded_tables(spec),
            "row_bytes": self.dtype.itemsize,
        }

    @property
    def dtype(self) -> np.dtype[Any]:
        """A row: labels int32, dense float32, ids int64 of lookups padded with 0, and a 0 per padded table."""
        width = sum(len(made.weights) for made in self.labels.values())
        ids = sum(getattr(feature, "max_length", 1) for feature in self.spec.lookups)
        return row_type(width, len(self.dense), ids + len(padded_tables(self.spec)))

    def rows(self, table: pa.Table) -> NDArray[Any]:
        """Rows of the contract's columns -> rows of the file, `dtype` [n]."""
        spec, num = self.spec, table.num_rows
        rows = np.zeros(num, self.dtype)
        made = []
        for response, columns in self.labels.items():
            cells = table.column(f"cell_{response}").to_numpy() if spec.weighted else np.zeros(num, np.int64)
            made.append(columns.labels(table.column(f"y_{response}").to_numpy(), cells))
        rows["labels"] = np.concatenate(made, axis=1)
        at = 0
        lengths: dict[str, NDArray[np.int64]] = {}
        for feature in spec.lookups:
            column = table.column(feature.name).combine_chunks()
            if isinstance(feature, IdFeature):
                rows["ids"][:, at] = column.to_numpy()
                at += 1
                continue
            offsets = column.offsets.to_numpy().astype(np.int64)
            lengths[feature.name] = np.diff(offsets)
            filled = np.arange(feature.max_length) < lengths[feature.name][:, None]
            padded = rows["ids"][:, at : at + feature.max_length]
            padded[filled] = column.flatten().to_numpy()
            at += feature.max_length
        for number, name in enumerate(self.dense):
            kind, _, of = name[1:].partition("_")
            if name in table.column_names:
                rows["dense"][:, number] = table.column(name).to_numpy()
            elif kind == "pads":
                rows["dense"][:, number] = _length(spec, of) - lengths[of]
            elif kind == "inverse":
                rows["dense"][:, number] = 1 / np.maximum(lengths[of], 1)
        return rows

    def save(self, folder: Path, what: Mapping[str, Any]) -> None:
        """Write `hugectr.json`, which models/hugectr/train.py reads; `what` is told there, too."""
        said = {"format": FORMAT, "spec_digest": self.spec.digest, **what, **self.described()}
        (folder / "hugectr.json").write_text(json.dumps(said, indent=1) + "\n", "utf-8")


def check_sayable(spec: FeedSpec) -> None:
    """SpecError where HugeCTR cannot say what a spec has."""
    for i, feature in enumerate(spec.features):
        if isinstance(feature, HistoryFeature) and feature.pooling == "learned":
            raise SpecError(
                f'features[{i}].pooling: "{feature.name}" is learned; HugeCTR has no weights of places; '
                "allowed for it: mean, sum"
            )
    for i, table in enumerate(spec.tables):
        if table.paired_tail:
            raise SpecError(
                f'tables[{i}].tail: "{table.name}" is quotient_remainder; HugeCTR\'s rows have one row per id; '
                "allowed for it: hashed"
            )


def row_type(labels: int, dense: int, ids: int) -> np.dtype[Any]:
    """A row with so many of each."""
    return np.dtype([("labels", "<i4", (labels,)), ("dense", "<f4", (dense,)), ("ids", "<i8", (ids,))])


def lists(spec: FeedSpec) -> list[IdListFeature | HistoryFeature]:
    """Lookups of several ids, in the spec's order."""
    return [feature for feature in spec.lookups if not isinstance(feature, IdFeature)]


def padded_tables(spec: FeedSpec) -> list[str]:
    """Tables that lists read, in the order of their first."""
    return list(dict.fromkeys(spec.table_of(feature).name for feature in lists(spec)))


def read_labelled(
    spec: FeedSpec, folder: Path
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], list[NDArray[np.int64]]]:
    """Dense features [n, D], labels [n, R], weights [n, R] and ids of `id` features of `train.bin`, back from its rows.

    A row without any label column weighs 0, and its label is 0 whatever it was.
    """
    said = json.loads((folder / "hugectr.json").read_text("utf-8"))
    rows = mapped_rows(folder / "train.bin", said)
    columns = [said["dense"].index(feature.name) for feature in spec.dense]
    dense = np.empty((len(rows), len(columns)), np.float32)
    labels, weights = (np.empty((len(rows), len(said["labels"])), np.float32) for _ in range(2))
    for part in blocks(len(rows)):
        dense[part] = rows["dense"][part][:, columns]
        at = 0
        for number, label in enumerate(said["labels"]):
            made = rows["labels"][part][:, at : at + len(label["weights"])]
            at += len(label["weights"])
            labels[part, number] = np.maximum(made.max(axis=1), 0)
            weights[part, number] = (made >= 0) @ np.asarray(label["weights"])
    starts = np.cumsum([0, *(lookup["max_length"] for lookup in said["lookups"])])
    of_one = [start for start, lookup in zip(starts, said["lookups"], strict=False) if lookup["pooling"] == "one"]
    return dense, labels, weights, [np.array(rows["ids"][:, start]) for start in of_one]


def mapped_rows(path: Path, said: Mapping[str, Any]) -> NDArray[Any]:
    """The rows of a file, memory-mapped, as `hugectr.json` has them; the file is a whole number of them."""
    ids = sum(lookup["max_length"] for lookup in said["lookups"]) + len(said["padded_tables"])
    kind = row_type(sum(len(label["weights"]) for label in said["labels"]), len(said["dense"]), ids)
    return np.memmap(path, kind, "r") if path.stat().st_size else np.empty(0, kind)


def blocks(num_rows: int) -> Iterator[slice]:
    """Slices that cover so many rows."""
    return (slice(start, start + _BLOCK_ROWS) for start in range(0, num_rows, _BLOCK_ROWS))


def _length(spec: FeedSpec, name: str) -> int:
    return int(getattr(spec.feature_by_name[name], "max_length"))  # noqa: B009  a list has one
