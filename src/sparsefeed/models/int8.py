"""dense.int8.onnx: dense.onnx with the products of its gated layers in 8 bits, and what that changes.

onnxruntime's dynamic quantisation: weights are stored as int8 with a scale per output, and what a layer is given is
quantised when it is given, with one scale for all candidates of a request. So a score depends on the other candidates,
a little: the one sentence of docs/contracts/dense.md that this graph does not keep (5). Nothing before the first layer,
no cross layer and no dot product is in 8 bits: they are few products and most of what a score hangs on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sparsefeed.errors import BundleError
from sparsefeed.etl.spec import FeedSpec, IdFeature, side_of
from sparsefeed.models import metrics
from sparsefeed.models.config import Int8Limits
from sparsefeed.models.torchrec.columns import Rows, open_split, read_part
from sparsefeed.models.torchrec.lookup_keys import Lists, keys_of, second_of

__all__ = ["Int8Change", "check_int8", "graph_inputs", "held_out_rows", "quantise_dense"]

_LAYERS = ("/shared/first.", "/shared/rest.")  # as models.shared names them
_ROWS = 20_000  # held-out rows that are scored
_AT_ONCE = 2000  # of them, whose vectors are in memory together

Inputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Int8Change:
    """Greatest changes by 8 bits over some rows: of a probability, and of a response's AUC and log loss."""

    num_rows: int
    probability: float
    auc: float
    log_loss: float


def quantise_dense(source: Path, target: Path) -> None:
    """Write the graph `source` with its gated layers in 8 bits.

    Raises:
        BundleError: it has no gated layer as this version exports them.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [node.name for node in onnx.load(str(source)).graph.node if node.name.startswith(_LAYERS)]
    products = [name for name in nodes if name.endswith("/Gemm")]
    if not products:
        raise BundleError(f"{source}: has no gated layer to quantise; export the bundle again")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it asks for a preprocessing that a graph of matrix products has no use for
    try:
        quantize_dynamic(
            str(source),
            str(target),
            nodes_to_quantize=[f"{name}_MatMul" for name in products],  # which is how it names a Gemm without its sum
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"MatMulConstBOnly": True},
        )
    finally:
        logging.disable(disabled)


def check_int8(
    spec: FeedSpec, folder: Path, files: Mapping[str, str], rows: Rows, tables: Mapping[str, Any], limits: Int8Limits
) -> Int8Change:
    """Score rows with both graphs of a folder.

    Args:
        spec: the declaration.
        folder: with the graphs.
        files: their names by format (models.dense_file).
        rows: held out from training.
        tables: float32 [rows, dim] by name.
        limits: of the changes.

    Raises:
        BundleError: a change is above its limit; all three are named.
    """
    import onnxruntime

    sessions = {
        name: onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }
    found = {name: np.empty(rows.labels_NR.shape, np.float64) for name in sessions}
    for numbers, inputs in graph_inputs(spec, rows, tables):
        for name, session in sessions.items():
            (found[name][numbers],) = session.run(["probability"], inputs)
    exact, coarse = found["fp32"], found["int8"]
    change = Int8Change(
        num_rows=len(rows),
        probability=float(np.abs(exact - coarse).max()),
        auc=_greatest(metrics.auc, rows.labels_NR, exact, coarse),
        log_loss=_greatest(metrics.log_loss, rows.labels_NR, exact, coarse),
    )
    over = [name for name in type(limits).model_fields if getattr(change, name) > getattr(limits, name)]
    if over:
        said = ", ".join(
            f"{name} by {getattr(change, name):.3g} ({getattr(limits, name):g} allowed)"
            for name in type(limits).model_fields
        )
        raise BundleError(
            f"serving.dense_format: int8 changes, over {change.num_rows:,} held-out rows, {said}; nothing was "
            f"published. Set serving.dense_format: fp32, or raise serving.int8_limits ({', '.join(over)})"
        )
    return change


def held_out_rows(spec: FeedSpec, data: Path, capacities: Mapping[str, int], num_rows: int = _ROWS) -> Rows:
    """The first rows of an ETL folder's evaluation days."""
    columns = Rows.columns(spec, weights=False)
    tables, found = [], 0
    for part in open_split(spec, data, "eval", columns):
        tables.append(read_part(spec, part, columns, dict(capacities)).slice(0, num_rows - found))
        found += len(tables[-1])
        if found == num_rows:
            break
    return Rows.from_arrow(spec, pa.concat_tables(tables).combine_chunks())


def graph_inputs(
    spec: FeedSpec, rows: Rows, tables: Mapping[str, Any], at_once: int = _AT_ONCE
) -> Iterator[tuple[npt.NDArray[np.int64], Inputs]]:
    """Inputs of dense.onnx (docs/contracts/dense.md) for rows of equal member state, a session as a rule.

    So a call has what one scale of 8 bits is for, as served.

    Args:
        spec: the declaration.
        rows: any.
        tables: float32 [rows, dim] by name.
        at_once: rows whose vectors are in memory together, and among which equal ones are found.

    Yields:
        Numbers of the rows [n], and the inputs for their one member and n candidates.
    """
    dense = {"member_dense": rows.member_dense_NM, "candidate_dense": rows.candidate_dense_NC}
    is_members = {"member_dense"} | {
        f"{kind}_{f.name}" for f in spec.lookups if side_of(f) == "member" for kind in ("emb", "len")
    }
    for start in range(0, len(rows), at_once):
        stop = min(start + at_once, len(rows))
        inputs: Inputs = {name: values[start:stop] for name, values in dense.items() if values.shape[1]}
        for feature in spec.lookups:
            of, keys = spec.table_of(feature), keys_of(feature)
            most = 1 if len(keys) > 1 else getattr(feature, "max_length", 1)
            parts = [_padded(rows.lookups[key], start, stop, most) for key in keys]
            vectors = tables[of.name][np.concatenate([padded for padded, _ in parts], axis=1)]  # row 0 is zero
            if of.paired_tail:
                # Not beside the first ones, unless places are weighed apart: lists are summed.
                seconds = [_padded(rows.lookups[second_of(key)], start, stop, most)[0] for key in keys]
                vectors = vectors + tables[of.name][np.concatenate(seconds, axis=1)]
            inputs[f"emb_{feature.name}"] = vectors[:, 0] if isinstance(feature, IdFeature) else vectors
            if not isinstance(feature, IdFeature):
                inputs[f"len_{feature.name}"] = np.sum([lengths for _, lengths in parts], axis=0)
        of_member = [values for name, values in inputs.items() if name in is_members]
        for numbers in _equal_rows(of_member, stop - start):
            own = {name: values[numbers[:1] if name in is_members else numbers] for name, values in inputs.items()}
            yield start + numbers, own


def _equal_rows(arrays: Sequence[npt.NDArray[Any]], num_rows: int) -> list[npt.NDArray[np.int64]]:
    """Numbers of the rows that are alike in all arrays, [num_rows, ...] each; all rows where there are none."""
    alike: dict[bytes, list[int]] = {}
    for number in range(num_rows):
        alike.setdefault(b"".join(values[number].tobytes() for values in arrays), []).append(number)
    return [np.array(numbers) for numbers in alike.values()]


def _padded(lists: Lists, start: int, stop: int, most: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lists of rows [start, stop), int64 [rows, most], 0 beyond their lengths; and these."""
    ids, offsets = lists
    lengths = np.minimum(np.diff(offsets[start : stop + 1]), most)
    inside = np.arange(most) < lengths[:, None]
    padded = np.zeros(inside.shape, np.int64)
    padded[inside] = ids[(offsets[start:stop, None] + np.arange(most))[inside]]
    return padded, lengths


def _greatest(
    metric: Callable[[Any, Any], float], labels: npt.NDArray[Any], exact: npt.NDArray[Any], coarse: npt.NDArray[Any]
) -> float:
    changes = [metric(labels[:, r], exact[:, r]) - metric(labels[:, r], coarse[:, r]) for r in range(labels.shape[1])]
    return max((abs(change) for change in changes if not np.isnan(change)), default=0.0)
