"""Is a folder what HugeCTR will take? Asked before a cluster is booked: HugeCTR itself checks next to nothing.

Every number is looked at: HugeCTR reads beyond its tables for an id that is too large, and trains on a NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparsefeed.errors import DataError
from sparsefeed.etl.hugectr_view import FORMAT, HugectrView
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress, silent

__all__ = ["check_hugectr", "problems_of"]


def check_hugectr(folder: Path, gpus: int | None = None, progress: Progress = silent) -> int:
    """Check an ETL result that was written for HugeCTR; the number of rows that were read.

    Args:
        folder: of `sparsefeed etl --for hugectr`.
        gpus: that will train; each needs a file of its own. None: not asked.
        progress: told of the files.

    Raises:
        DataError: something is not as it must be; a line for each, with file and column.
    """
    found = list(problems_of(folder, gpus, progress))
    if found:
        raise DataError("\n".join(found))
    return sum(_json(folder / "hugectr.json")["num_rows"].values())


def problems_of(folder: Path, gpus: int | None = None, progress: Progress = silent) -> Iterator[str]:
    """What is wrong with a folder, one sentence each."""
    try:
        said, spec = _json(folder / "hugectr.json"), FeedSpec.load(folder / "spec.json")
        if said["format"] != FORMAT:
            yield f"{folder / 'hugectr.json'}: format {said['format']}; this version reads {FORMAT}"
            return
        if said["spec_digest"] != spec.digest:
            yield f"{folder / 'hugectr.json'}: is of spec {said['spec_digest']}, spec.json is {spec.digest}"
        widths = {label["name"]: len(label["weights"]) for label in said["labels"]}
        splits = [split for split in ("train", "valid") if said["num_rows"][split]]
        files = {split: _files(folder / split) for split in splits}
    except (DataError, KeyError, TypeError) as error:
        yield f"{folder}: is no result of `sparsefeed etl --for hugectr`: {error}"
        return
    kinds = HugectrView.of(spec, None).kinds
    if gpus and len(files["train"]) < gpus:
        yield (
            f"{folder / 'train'}: has {len(files['train'])} files for {gpus} GPUs, and each reads files of its own: "
            f"set etl.min_files to {gpus} and run the ETL again"
        )
    done, total = 0, sum(map(len, files.values()))
    for split, paths in files.items():
        yield from _metadata_problems(folder / split, kinds, paths, said["num_rows"][split])
        for path in paths:
            progress(done, total, f"{path.parent.name}/{path.name}")
            done += 1
            yield from _file_problems(path, spec, kinds, widths, said["capacity_rows"])
    progress(done, total, "checked")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable: {error}") from error


def _files(folder: Path) -> list[Path]:
    try:
        number, *names = (folder / "_file_list.txt").read_text("utf-8").split()
    except (OSError, ValueError) as error:
        raise DataError(f"{folder / '_file_list.txt'}: not readable: {error}") from error
    if not number.isdigit() or int(number) != len(names):
        raise DataError(f"{folder / '_file_list.txt'}: begins with {number}, and {len(names)} files follow")
    return [folder / name for name in names]


def _metadata_problems(folder: Path, kinds: dict[str, list[str]], paths: list[Path], num_rows: int) -> Iterator[str]:
    """Between `_metadata.json`, the spec's columns and the files' rows."""
    path = folder / "_metadata.json"
    try:
        metadata = _json(path)
        rows = {stats["file_name"]: stats["num_rows"] for stats in metadata["file_stats"]}
        found = {kind: [(c["col_name"], c["index"]) for c in metadata[kind]] for kind in kinds}
    except (DataError, KeyError, TypeError) as error:
        yield f"{path}: not HugeCTR's metadata: {error!r}"
        return
    at = 0
    for kind, names in kinds.items():
        wanted = [(name, at + i) for i, name in enumerate(names)]
        at += len(names)
        if found[kind] != wanted:
            yield f"{path}: {kind} are {found[kind]}; must be {wanted}"
    if sorted(rows) != sorted(p.name for p in paths):
        yield f"{path}: has files {sorted(rows)}, _file_list.txt has {sorted(p.name for p in paths)}"
    for file in paths:
        try:
            footer = pq.ParquetFile(file)
        except (OSError, pa.ArrowException):
            continue  # told of with the file
        with footer:
            if rows.get(file.name, footer.metadata.num_rows) != footer.metadata.num_rows:
                yield f"{path}: says {rows[file.name]} rows of {file.name}, which has {footer.metadata.num_rows}"
    if sum(rows.values()) != num_rows:
        yield f"{path}: has {sum(rows.values())} rows, hugectr.json says {num_rows}"


def _file_problems(
    path: Path, spec: FeedSpec, kinds: dict[str, list[str]], widths: dict[str, int], capacities: dict[str, int]
) -> Iterator[str]:
    """In one file: columns, types, and every value."""
    try:
        file = pq.ParquetFile(path, memory_map=True)
    except (OSError, pa.ArrowException) as error:
        yield f"{path}: not readable as parquet: {error}"
        return
    with file:
        wanted = [name for names in kinds.values() for name in names]
        if file.schema_arrow.names != wanted:
            yield f"{path}: has columns {file.schema_arrow.names}; must be {wanted}, in this order"
            return
        for number in range(file.metadata.num_row_groups):
            try:
                table = file.read_row_group(number, use_threads=False)
            except (OSError, pa.ArrowException) as error:
                yield f"{path}: row group {number}: {error}"
                return
            told = False
            for name in wanted:
                column = table.column(name).combine_chunks()
                if name in widths:
                    wrong = _label_problem(column, widths[name])
                elif name in kinds["conts"]:
                    wrong = _number_problem(column)
                else:
                    feature = spec.feature_by_name[name]
                    capacity = capacities[spec.table_of(feature).name]  # type: ignore[arg-type]
                    wrong = _id_problem(column, capacity, getattr(feature, "max_length", None))
                if wrong:
                    told = True
                    yield f'{path}: row group {number}, column "{name}": {wrong}'
            if told:
                return  # the next ones are the same


def _label_problem(column: pa.Array, width: int) -> str:
    kind = pa.list_(pa.float32()) if width > 1 else pa.float32()
    wrong = _type_problem(column, kind)
    if wrong:
        return wrong
    if width > 1:
        lengths = np.diff(column.offsets.to_numpy())
        if (lengths != width).any():
            return f"has lists of {int(lengths[lengths != width][0])}; all must have {width}"
    values = (column.flatten() if width > 1 else column).to_numpy()
    bad = ~np.isin(values, (-1, 0, 1))
    return f"has label {values[bad][0]}; allowed: 0, 1, and -1 for none" if bad.any() else ""


def _number_problem(column: pa.Array) -> str:
    wrong = _type_problem(column, pa.float32())
    if wrong:
        return wrong
    values = column.to_numpy()
    return "" if np.isfinite(values).all() else f"is {values[~np.isfinite(values)][0]}; must be a number"


def _id_problem(column: pa.Array, capacity: int, max_length: int | None) -> str:
    wrong = _type_problem(column, pa.int64() if max_length is None else pa.list_(pa.int64()))
    if wrong:
        return wrong
    if max_length is not None:
        longest = int(np.diff(column.offsets.to_numpy()).max(initial=0))
        if longest > max_length:
            return f"has a list of {longest}; at most {max_length}"
    found = pc.min_max(column if max_length is None else column.flatten())
    least, most = found["min"].as_py(), found["max"].as_py()
    if least is None or 1 <= least <= most < capacity:
        return ""
    return f"has id {least if least < 1 else most}; allowed: 1 to {capacity - 1}, its table's rows"


def _type_problem(column: pa.Array, kind: pa.DataType) -> str:
    got = column.type
    same = got.value_type == kind.value_type if pa.types.is_list(got) and pa.types.is_list(kind) else got == kind
    if not same:
        return f"is {got}; must be {kind}"
    nulls = column.null_count + (column.flatten().null_count if pa.types.is_list(got) else 0)
    return f"has {nulls} nulls; none may be" if nulls else ""
