"""The dense model in numbers, for plans and limits; free of torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig

__all__ = ["DenseSize"]


@dataclass(frozen=True)
class DenseSize:
    """The dense model in numbers, without building it.

    Attributes:
        width: of its input.
        parameters: floats.
        products: multiplications of a row's forward pass, as many additions.
        activations: floats that a row's forward pass keeps for the backward pass.
    """

    width: int
    parameters: int
    products: int
    activations: int

    @classmethod
    def of(cls, spec: FeedSpec, model: ModelConfig) -> DenseSize:
        """Of what `DenseModel(spec, model)` is."""
        width = len(spec.dense) + sum(spec.table_of(feature).dim for feature in spec.lookups)
        dims, num = [spec.table_of(feature).dim for feature in spec.lookups], len(spec.responses)
        equal = {dim: dims.count(dim) for dim in dims} if model.interactions else {}
        pairs = sum(count * (count - 1) // 2 for count in equal.values())
        cross = 2 * width * model.cross_rank * model.cross_layers
        parts = (2 if model.gate else 1) * model.experts
        deep = sum(before * after * parts for before, after in pairwise((width + pairs, *model.hidden)))
        mix = (width + pairs) * num * model.experts if model.experts > 1 else 0
        head = (width + model.hidden[-1] + pairs) * num
        biases = width * model.cross_layers + parts * sum(model.hidden) + num + (num * model.experts if mix else 0)
        kept = width + model.cross_layers * (model.cross_rank + 2 * width) + (parts + model.experts) * sum(model.hidden)
        products = cross + deep + mix + head
        multiplied = sum(dim * count * count for dim, count in equal.items() if count > 1)
        places = sum(feature.max_length for feature in spec.learned)
        weighed = sum(feature.max_length * spec.table_of(feature).dim for feature in spec.learned)
        floats = products + biases + places
        return cls(width, floats, products + multiplied + weighed, kept + pairs + places)
