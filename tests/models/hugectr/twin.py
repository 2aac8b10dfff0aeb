"""Computes in numpy what the stub recorded: forward pass and loss of HugeCTR's layers, as its documents and kernels
have them, in float64.

Shapes: B rows; a tensor is [B, ...] as the stub's shapes say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.models.hugectr.stub import Graph, Layer, parameter_shapes

Array = NDArray[np.float64]


class Twin:
    """A recorded graph with parameters.

    Args:
        graph: compiled.
        dense: the floats of a `.model` file: parameters of the layers, in the order they were added.
        tables: rows by name.
    """

    def __init__(self, graph: Graph, dense: NDArray[Any], tables: Mapping[str, NDArray[Any]]) -> None:
        self.graph = graph
        self.tables = {name: rows.astype(np.float64) for name, rows in tables.items()}
        self.parameters: dict[str, list[Array]] = {}
        self.flat = dense.astype(np.float64)
        at = 0
        for layer in graph.layers:
            shapes = parameter_shapes(graph, layer)
            parts = []
            for shape in shapes:
                count = int(np.prod(shape))
                parts.append(self.flat[at : at + count].reshape(shape))  # views: a change of `flat` is seen
                at += count
            self.parameters[layer.tops[0]] = parts
        assert at == len(self.flat), f"the file has {len(self.flat)} floats, the graph {at}"

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Array]:
        """All tensors. `batch` has label and `dense` as arrays, and ids [B, length] by lookup."""
        tensors = {name: np.asarray(value, np.float64) for name, value in batch.items() if name in self.graph.shapes}
        sums: dict[str, list[Array]] = {}
        for lookup in self.graph.lookups:
            assert lookup["combiner"] == "sum"
            rows = self.tables[lookup["table_config"]["name"]][batch[lookup["bottom_name"]]]
            sums.setdefault(lookup["top_name"], []).append(rows.sum(axis=1))
        for name, parts in sums.items():
            tensors[name] = np.concatenate(parts, axis=1)
        for layer in self.graph.layers:
            made = self._run(layer, [tensors[name] for name in layer.bottoms])
            for name, value in zip(layer.tops, made, strict=True):
                assert value.shape[1:] == self.graph.shapes[name] or layer.kind.endswith("Loss"), name
                tensors[name] = value
        return tensors

    def loss(self, batch: Mapping[str, Any]) -> float:
        """Sum of all losses."""
        tensors = self.forward(batch)
        return sum(float(tensors[layer.tops[0]]) for layer in self.graph.layers if layer.kind.endswith("Loss"))

    def _run(self, layer: Layer, bottoms: list[Array]) -> list[Array]:
        first, own, settings = bottoms[0], self.parameters[layer.tops[0]], layer.settings
        if layer.kind == "InnerProduct":
            return [first @ own[0] + own[1]]
        if layer.kind == "MultiCross":
            x = first
            for number in range(settings["num_layers"]):
                u, v, b = own[3 * number : 3 * number + 3]
                x = first * (x @ u @ v + b) + x
            return [x]
        if layer.kind == "ReLU":
            return [np.maximum(first, 0)]
        if layer.kind == "Sigmoid":
            return [1 / (1 + np.exp(-first))]
        if layer.kind == "Reshape":
            if settings.get("time_step"):
                return [first.reshape(len(first), settings["time_step"], settings["leading_dim"])]
            return [first.reshape(len(first), settings["leading_dim"])]
        if layer.kind == "Interaction":  # strictly lower triangle row by row, then one column of padding
            vectors = np.concatenate([first[:, None], bottoms[1]], axis=1)
            i, j = np.tril_indices(vectors.shape[1], -1)
            dots = (vectors @ vectors.transpose(0, 2, 1))[:, i, j]
            return [np.concatenate([first, dots, np.zeros((len(first), 1))], axis=1)]
        if layer.kind == "ReduceSum":
            return [first.sum(axis=settings["axis"], keepdims=True)]
        if layer.kind == "Add":
            return [np.sum(bottoms, axis=0)]
        if layer.kind == "Dropout":
            return [first]  # as when it is measured
        if layer.kind == "Concat":
            return [np.concatenate(bottoms, axis=1)]
        if layer.kind == "Slice":
            return [first[:, low:high] for low, high in settings["ranges"]]
        if layer.kind == "ElementwiseMultiply":
            return [np.prod(bottoms, axis=0)]
        if layer.kind == "Sub":
            return [first - bottoms[1]]
        if layer.kind == "Scale":
            return [np.repeat(first, int(settings["factor"]), axis=1)]
        if layer.kind == "MultiCrossEntropyLoss":
            labels, weights = bottoms[1], np.asarray(settings["target_weight_vec"])
            entropy = np.maximum(first, 0) - first * labels + np.log1p(np.exp(-np.abs(first)))
            return [np.asarray((weights * np.where(labels > -0.5, entropy, 0)).sum() / first.size)]
        raise NotImplementedError(layer.kind)
