"""DenseStep: vectors and dense inputs -> probabilities and the score, by onnxruntime.

Notable: onnxruntime is imported when a bundle is opened, so that importing the steps needs numpy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, RequestError
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.models.dense_file import DENSE_FILES
from sparsefeed.workflows.serving.steps.drift import ScoreReference, ScoreWindow
from sparsefeed.workflows.serving.steps.readings import Reading
from sparsefeed.workflows.serving.steps.step import Step, Tensors, require

__all__ = ["DenseStep", "Graph", "Inputs", "open_graph"]

Inputs = dict[str, NDArray[Any]]
# Inputs of dense.onnx by name -> float32 [n, R].
Graph = Callable[[Inputs], NDArray[np.float32]]


def open_graph(path: Path, num_threads: int, plan: ServingPlan) -> Graph:
    """Load a dense.onnx as it is served: on the CPU, `num_threads` within an operator, one operator at a time.

    Raises:
        BundleError: onnxruntime does not take it, or its inputs are not the plan's.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own tree of errors is not public
        raise BundleError(f"{path}: not loadable by onnxruntime: {error}; export the bundle again") from error
    got, wanted = [one.name for one in session.get_inputs()], _input_names(plan)
    if got != wanted:
        raise BundleError(f"{path}: takes {', '.join(got)}; must take {', '.join(wanted)}; export the bundle again")

    def graph(inputs: Inputs) -> NDArray[np.float32]:
        (probability,) = session.run(["probability"], inputs)
        return np.asarray(probability, np.float32)

    return graph


class DenseStep(Step[Inputs]):
    """OUTPUT0 and what feed_transform passes on -> `probability` [n, R] and `score` [n]."""

    name = "feed_dense"

    def __init__(self, bundle: str, plan: ServingPlan, graph: Graph, scores: ScoreReference | None = None) -> None:
        super().__init__(bundle)
        self._plan = plan
        self._graph = graph
        self._weights = np.array(plan.score_weights, np.float32)
        self._scores = ScoreWindow(scores)
        # What a member or candidate has in OUTPUT0, in its order: name, side, shape and floats; of a paired tail an id
        # has two vectors.
        self._shapes = [
            (
                item.name,
                item.side,
                (
                    *(() if item.kind == "id" else (item.max_length,)),
                    *((2,) if table.paired_rows else ()),
                    table.dim,
                ),
                item.max_length * table.keys_per_id * table.dim,
            )
            for table in plan.tables
            for item in plan.lookups
            if item.table == table.name
        ]
        self._floats = {
            side: sum(size for _, of, _, size in self._shapes if of == side) for side in ("member", "candidate")
        }
        paired = {table.name for table in plan.tables if table.paired_rows}
        self._paired = [item.name for item in plan.lookups if item.table in paired]

    @classmethod
    def open(cls, parameters: Mapping[str, str]) -> DenseStep:
        """Load a bundle's dense model in the format of parameter `format`; `threads` is onnxruntime's."""
        folder = Path(parameters["folder"])
        plan = ServingPlan.load(folder / "transform" / "plan.json")
        # Models that an older version wrote have no format.
        graph = open_graph(folder / DENSE_FILES[parameters.get("format", "fp32")], int(parameters["threads"]), plan)
        return cls(parameters["bundle"], plan, graph, ScoreReference.load(folder / "metrics.json"))

    def observe(self, answer: Tensors) -> None:
        """Count the scores, to tell their drift."""
        self._scores.add(answer["score"])

    def readings(self) -> Iterator[Reading]:
        """Mean and drift of the scores of the last minutes."""
        return self._scores.readings()

    def check(self, request: Tensors) -> Inputs:
        """Cut OUTPUT0 into the vectors of each lookup; nothing is copied but what is summed."""
        flat = require(request, "OUTPUT0", np.float32, 1)
        rows = {"member": 1, "candidate": (len(flat) - self._floats["member"]) // self._floats["candidate"]}
        if rows["candidate"] < 1 or len(flat) != self._floats["member"] + rows["candidate"] * self._floats["candidate"]:
            raise RequestError(
                f"OUTPUT0: got {len(flat)} floats; must be {self._floats['member']} of the member and "
                f"{self._floats['candidate']} of each of one or more candidates"
            )
        inputs: Inputs = {}
        for side, plan in (("member", self._plan.member_dense), ("candidate", self._plan.candidate_dense)):
            if plan.names:
                dense = require(request, f"{side}_dense", np.float32, 2)
                inputs[f"{side}_dense"] = _shaped(f"{side}_dense", dense, (rows[side], len(plan.names)))
        vectors = self._cut(flat, rows)
        for item in self._plan.lookups:
            inputs[f"emb_{item.name}"] = vectors[item.name]
            if item.kind != "id":
                name = f"len_{item.name}"
                inputs[name] = _shaped(name, require(request, name, np.int64, 1), (rows[item.side],))
        return inputs

    def compute(self, requests: Sequence[Inputs]) -> list[Tensors]:
        """Run the graph for each: of members joined to one call it would have to gather what they share (ADR 25)."""
        probabilities = [self._graph(inputs) for inputs in requests]
        return [{"probability": probability, "score": probability @ self._weights} for probability in probabilities]

    def _cut(self, flat: NDArray[np.float32], rows: Mapping[str, int]) -> dict[str, NDArray[np.float32]]:
        """Per lookup float32 [rows, d] or [rows, L, d], views of the flat table-major vectors, or sums of two."""
        vectors, at = {}, 0
        for name, side, shape, size in self._shapes:
            end = at + rows[side] * size
            vectors[name] = flat[at:end].reshape(rows[side], *shape)
            at = end
        for name in self._paired:
            vectors[name] = vectors[name].sum(axis=-2)
        return vectors


def _input_names(plan: ServingPlan) -> list[str]:
    """As docs/contracts/dense.md has them."""
    names = [f"{side}_dense" for side in ("member", "candidate") if getattr(plan, f"{side}_dense").names]
    for item in plan.lookups:
        names += [f"emb_{item.name}"] + ([] if item.kind == "id" else [f"len_{item.name}"])
    return names


def _shaped(name: str, tensor: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if tensor.shape != shape:
        raise RequestError(f"{name}: got shape {list(tensor.shape)}; must be {list(shape)} as OUTPUT0 has it")
    return tensor
