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
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparsefeed.errors import DataError, SpecError
from sparsefeed.etl.hugectr_view import FORMAT, HugectrView, blocks, mapped_rows
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress, silent

__all__ = ["check_hugectr", "problems_of"]


def check_hugectr(folder: Path, progress: Progress = silent) -> int:
    """Check an ETL result that was written for HugeCTR; the number of rows that were read.

    Raises:
        DataError: something is not as it must be; a line for each, with file, row and column.
    """
    found = list(problems_of(folder, progress))
    if found:
        raise DataError("\n".join(found))
    return sum(_json(folder / "hugectr.json")["num_rows"].values())


def problems_of(folder: Path, progress: Progress = silent) -> Iterator[str]:
    """What is wrong with a folder, one sentence each."""
    try:
        said, etl = _json(folder / "hugectr.json"), _json(folder / "etl.json")
        spec = FeedSpec.load(folder / "spec.json")
        view = HugectrView.of(spec, pq.read_table(folder / "ips.parquet") if spec.weighted else None)
    except (DataError, SpecError, OSError, pa.ArrowException) as error:
        yield f"{folder}: is no result of `sparsefeed etl --for hugectr`: {error}"
        return
    wanted = {
        "format": FORMAT,
        "spec_digest": spec.digest,
        "capacity_rows": etl.get("capacity_rows"),
        "num_rows": {"train": etl.get("num_train_rows"), "valid": etl.get("num_eval_rows")},
        **view.described(),
    }
    wrong = [key for key in {*wanted, *said} if wanted.get(key) != said.get(key)]
    if etl.get("spec_digest") != spec.digest:
        yield f"{folder / 'etl.json'}: is of spec {etl.get('spec_digest')}, spec.json is {spec.digest}"
    for key in sorted(wrong):
        yield f"{folder / 'hugectr.json'}: {key} is {said.get(key)}; by the files beside it {wanted.get(key)}"
    if wrong:
        return
    splits = {split: num for split, num in said["num_rows"].items() if num}
    done, total = 0, sum(splits.values())
    for split, num in splits.items():
        path = folder / f"{split}.bin"
        if not path.is_file() or path.stat().st_size != num * said["row_bytes"]:
            size = path.stat().st_size if path.is_file() else "no"
            yield f"{path}: has {size} bytes; {num} rows of {said['row_bytes']} have {num * said['row_bytes']}"
            continue
        rows = mapped_rows(path, said)
        told: set[str] = set()  # of a column the first row says it all
        for part in blocks(num):
            progress(done, total, path.name)
            done += len(rows[part])
            for name, row, problem in _problems(rows[part], said, spec):
                if name not in told:
                    told.add(name)
                    yield f'{path}: row {part.start + row}, "{name}": {problem}'
    progress(done, total, "checked")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable: {error}") from error


def _problems(rows: NDArray[Any], said: Any, spec: FeedSpec) -> Iterator[tuple[str, int, str]]:
    """Column, row and what is wrong, of the first row of a column that is not as it must be."""
    at = 0
    for label in said["labels"]:
        made = rows["labels"][:, at : at + len(label["weights"])]
        at += len(label["weights"])
        bad = ~np.isin(made, (-1, 0, 1)).all(axis=1) | ((made == 0).any(axis=1) & (made == 1).any(axis=1))
        if bad.any():
            row = int(np.argmax(bad))
            yield label["response"], row, f"labels are {made[row].tolist()}; -1, or all the same of 0 and 1"
    dense = dict(zip(said["dense"], rows["dense"].T, strict=True))
    for name, values in dense.items():
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            yield name, row, f"is {values[row]}; must be a number"
    at = 0
    for lookup in said["lookups"]:
        name, most = lookup["name"], said["capacity_rows"][lookup["table"]]
        ids = rows["ids"][:, at : at + lookup["max_length"]]
        at += lookup["max_length"]
        outside = ((ids < 0) | (ids >= most)).any(axis=1)
        if outside.any():
            row = int(np.argmax(outside))
            yield name, row, f"ids are {ids[row].tolist()}; allowed: 1 to {most - 1}, its table's rows"
            continue
        if lookup["pooling"] == "one":
            if (ids == 0).any():
                yield name, int(np.argmax(ids == 0)), "is 0, padding; every row has an id"
            continue
        lengths = (ids > 0).sum(axis=1)
        gaps = (ids[np.arange(len(ids)), np.maximum(lengths, 1) - 1] == 0) & (lengths > 0)
        if gaps.any():
            row = int(np.argmax(gaps))
            yield name, row, f"ids are {ids[row].tolist()}; padding stands at the end alone"
            continue
        beside = {f"_pads_{name}": lookup["max_length"] - lengths, f"_inverse_{name}": 1 / np.maximum(lengths, 1)}
        for column, wanted in beside.items():
            off = np.abs(dense[column] - wanted) > 1e-6 if column in dense else np.zeros(len(rows), bool)
            if off.any():
                row = int(np.argmax(off))
                yield column, row, f"is {dense[column][row]}; of {lengths[row]} ids it is {wanted[row]}"
    if rows["ids"][:, at:].any():
        yield "padding", int(np.argmax(rows["ids"][:, at:].any(axis=1))), "the last ids must be 0"
