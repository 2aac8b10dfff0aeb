"""Floor: what the parts of a request cannot be done faster than on this machine, measured, not computed.

Three parts: the matrix products that dense.onnx has for n candidates and one member, by onnxruntime or numpy, whichever
is faster; a copy of as many table rows as the request has keys; and as many random reads of eight bytes as it has ids,
over as much memory as the id maps take. No activation, no pooling, no Python of ours.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numba import njit
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Floor", "products_of"]

Shape = tuple[int, int]  # of a constant matrix, [in, out]


@dataclass(frozen=True)
class Floor:
    """Works whose times add up to the floor of one request."""

    products: Sequence[Callable[[], object]]  # the same, by onnxruntime and by numpy
    rows: Callable[[], object]
    ids: Callable[[], object]
    flops: int

    @classmethod
    def of(cls, shapes: Sequence[Shape], num_candidates: int, keys: Any, tables: Any, map_bytes: int) -> Floor:
        """Prepare them.

        Args:
            shapes: of the products, each with so many rows on the left.
            num_candidates: rows.
            keys: per table int64 [n], the rows that the request looks up.
            tables: per table its stored rows.
            map_bytes: of all id maps.
        """
        random = np.random.default_rng(0)
        outs = [np.empty((len(some), table.shape[1]), table.dtype) for some, table in zip(keys, tables, strict=True)]

        def rows() -> None:
            for some, table, out in zip(keys, tables, outs, strict=True):
                _copy_rows(table, some, out)

        words = random.integers(0, 2**62, max(map_bytes // 8, 1))
        places = random.integers(0, len(words), sum(map(len, keys)))
        return cls(
            (_by_onnxruntime(shapes, num_candidates), _by_numpy(shapes, num_candidates)),
            rows,
            lambda: _sum_of(words, places),
            2 * num_candidates * sum(a * b for a, b in shapes),
        )

    def seconds(self, runs: int) -> tuple[float, float, float]:
        """Median seconds of the products, the rows and the ids."""
        products = min(_median(work, runs) for work in self.products)
        return products, _median(self.rows, runs), _median(self.ids, runs)


def products_of(path: Path) -> list[Shape]:
    """Shapes of the constant matrices that dense.onnx multiplies its candidates' rows with."""
    graph = onnx.load(str(path)).graph
    constants = {one.name: tuple(one.dims) for one in graph.initializer}
    found = []
    for node in graph.node:
        matrix = constants.get(node.input[1]) if node.op_type in ("Gemm", "MatMul") else None
        # The member's one product has one row; the sums of lists are no products of the model.
        if matrix and len(matrix) == 2 and node.name.startswith("/shared/") and node.name != "/shared/Gemm":
            found.append((matrix[0], matrix[1]))
    return found


def _by_onnxruntime(shapes: Sequence[Shape], rows: int) -> Callable[[], object]:
    random, nodes, inputs, outputs, weights, feed = np.random.default_rng(0), [], [], [], [], {}
    for i, (width, out) in enumerate(shapes):
        nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"y{i}"]))
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, [None, width]))
        outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [None, out]))
        weights.append(numpy_helper.from_array(random.random((width, out), np.float32), f"w{i}"))
        feed[f"x{i}"] = random.random((rows, width), np.float32)
    graph = helper.make_graph(nodes, "products", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feed)


def _by_numpy(shapes: Sequence[Shape], rows: int) -> Callable[[], object]:
    random = np.random.default_rng(0)
    triples = [
        (random.random((rows, a), np.float32), random.random((a, b), np.float32), np.empty((rows, b), np.float32))
        for a, b in shapes
    ]

    def work() -> None:
        for x, w, y in triples:
            np.dot(x, w, out=y)

    return work


@njit(nogil=True)
def _copy_rows(table: NDArray[Any], rows: NDArray[np.int64], out: NDArray[Any]) -> None:
    for i in range(len(rows)):
        for j in range(np.uint64(out.shape[1])):
            out[np.uint64(i), j] = table[np.uint64(rows[i]), j]


@njit(nogil=True)
def _sum_of(words: NDArray[np.int64], places: NDArray[np.int64]) -> int:
    total = 0
    for place in places:
        total += words[np.uint64(place)]
    return total


def _median(work: Callable[[], object], runs: int) -> float:
    for _ in range(10):
        work()
    taken = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)
