"""Training parquet: a file per partition, written whole or not at all, and what trainers read about the files.

Not Merlin's own writer: that keeps a file open in each worker until all is done, so a worker that dies takes rows
with it, and it lists files under the name of the folder they are written into.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from dask import delayed
from merlin.core.utils import global_dask_client
from merlin.schema import Schema
from merlin.schema.io.tensorflow_metadata import TensorflowMetadata

from sparsefeed.etl.cluster import gathered
from sparsefeed.etl.hugectr_view import HugectrView
from sparsefeed.etl.impressions import label
from sparsefeed.etl.spec import FeedSpec

__all__ = ["WriteFile", "describe", "file_writer", "without_nulls", "write_training_data"]


@dataclass(frozen=True)
class WriteFile:
    """Write one partition.

    Attributes:
        folder: of the files.
        columns: in order.
        row_group_rows: rows of a row group.
        texts: columns with few distinct values for their number, worth a dictionary.
        shuffle_seed: rows are put in a random order that it and the partition's number decide; None: they stay.
        view: HugeCTR's rows are written instead; None: these.
    """

    folder: Path
    columns: tuple[str, ...]
    row_group_rows: int
    texts: tuple[str, ...]
    shuffle_seed: int | None
    view: HugectrView | None = None

    def __call__(self, frame: Any, number: int) -> tuple[str, int]:
        """Name and rows of the file; partition `number` is file `number`, also when it is written again.

        There is no file of a partition that has no rows, for all of them repeat others or were not sampled.
        """
        path = self.folder / f"part-{number:05d}.{'bin' if self.view else 'parquet'}"
        if not len(frame):
            return path.name, 0
        to_arrow = getattr(frame, "to_arrow", None)  # cuDF's
        columns = frame[list(self.columns)]
        table = to_arrow() if to_arrow else pa.Table.from_pandas(columns, preserve_index=False)
        table = table.select(self.columns).replace_schema_metadata(None)
        if self.shuffle_seed is not None:
            random = np.random.default_rng([self.shuffle_seed, number])
            table = table.take(pa.array(random.permutation(len(table))))
        partial = path.with_suffix(f".{os.getpid()}.partial")
        if self.view:
            with partial.open("wb") as file:
                file.write(self.view.rows(table).data)
        else:
            pq.write_table(
                without_nulls(table),
                partial,
                compression="none",
                use_dictionary=list(self.texts),
                row_group_size=self.row_group_rows,
                write_statistics=False,
            )
        partial.replace(path)
        return path.name, len(table)


def without_nulls(table: pa.Table) -> pa.Table:
    """Say of every column that has no null that it can have none, lists' values included: read in three quarters."""
    fields, columns = [], []
    for field, column in zip(table.schema, table.columns, strict=True):
        columns.append(_strict(column) if pa.types.is_list(field.type) else column)
        fields.append(pa.field(field.name, columns[-1].type, nullable=column.null_count > 0))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _strict(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    nulls = any(chunk.flatten().null_count for chunk in lists.chunks)
    kind = pa.list_(pa.field(lists.type.value_field.name, lists.type.value_type, nullable=nulls))
    parts = [
        pa.Array.from_buffers(kind, len(part), part.buffers()[:2], part.null_count, part.offset, [part.values])
        for part in lists.chunks
    ]
    return pa.chunked_array(parts, kind)


def file_writer(
    schema: Schema,
    spec: FeedSpec,
    folder: Path,
    row_group_rows: int,
    shuffle_seed: int | None,
    view: HugectrView | None = None,
) -> WriteFile:
    """What writes the files of a folder, which is made; arguments as of `write_training_data`."""
    folder.mkdir(parents=True)
    texts = tuple(f.name for f in spec.of_kind("id")) + (("surface",) if "surface" in schema.column_names else ())
    return WriteFile(folder, tuple(schema.column_names), row_group_rows, texts, shuffle_seed, view)


def write_training_data(
    ddf: Any,
    schema: Schema,
    spec: FeedSpec,
    folder: Path,
    row_group_rows: int,
    shuffle_seed: int | None,
    view: HugectrView | None = None,
) -> int:
    """Write all partitions of a frame below `folder`, which is made; returns the number of rows.

    Args:
        ddf: a Dask frame with the columns of `schema`.
        schema: Merlin's, of the columns, in order.
        spec: says which columns are labels, dense and ids.
        folder: of the files.
        row_group_rows: rows of a row group.
        shuffle_seed: None leaves rows in order.
        view: HugeCTR's rows are written instead, into one file `<folder>.bin`; None: these.
    """
    write = file_writer(schema, spec, folder, row_group_rows, shuffle_seed, view)
    tasks = [delayed(write)(part, number, pure=False) for number, part in enumerate(ddf.to_delayed())]
    client = global_dask_client()
    files = gathered(client, client.compute(tasks)) if client else dask.compute(*tasks, scheduler="synchronous")
    return describe(files, schema, spec, folder, view)


def describe(
    files: Sequence[tuple[str, int]], schema: Schema, spec: FeedSpec, folder: Path, view: HugectrView | None = None
) -> int:
    """Write what trainers read about the files of a folder; returns the number of rows.

    Args:
        files: name and rows of each, in order; of those without rows there is no file.
        schema: Merlin's, of the columns, in order.
        spec: says which columns are labels, dense and ids.
        folder: of the files.
        view: whose rows were written instead, if any: the files become one.
    """
    files = [file for file in files if file[1]]
    if view:
        _join([folder / name for name, _ in files], folder.with_suffix(".bin"))
        folder.rmdir()
        return sum(num for _, num in files)
    index = {name: i for i, name in enumerate(schema.column_names)}
    kinds = {
        "cats": [f.name for f in spec.lookups],
        "conts": [f.name for f in spec.dense],
        "labels": [label(r.name) for r in spec.responses],
    }
    metadata = {
        "file_stats": [{"file_name": name, "num_rows": num} for name, num in files],
        **{kind: [{"col_name": name, "index": index[name]} for name in names] for kind, names in kinds.items()},
    }
    (folder / "_metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", "utf-8")
    # By name: HugeCTR reads them from the folder it is started in.
    names = [name for name, _ in files]
    (folder / "_file_list.txt").write_text("\n".join([str(len(names)), *names]) + "\n", "utf-8")
    described = TensorflowMetadata.from_merlin_schema(schema)
    described.to_proto_text_file(str(folder))
    (folder / ".merlin").mkdir()
    described.to_json_file(str(folder / ".merlin"))
    return sum(num for _, num in files)


def _join(parts: Sequence[Path], path: Path) -> None:
    """One file of all, each part removed as it is taken: the disk holds them once and one part more."""
    with path.open("wb") as whole:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, whole, 1 << 24)
            part.unlink()
