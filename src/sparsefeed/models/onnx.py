"""dense.onnx: pooling, dense model and calibration in one graph (docs/contracts/dense.md).

Notable: the member's inputs enter once, and what is the member's alone is computed once, however many candidates a
request ranks: its pooled histories and its share of every linear map (models.shared says of which).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import FeedSpec, HistoryFeature, IdFeature, IdListFeature, side_of
from sparsefeed.models.calibration import MAX_LOGIT, Calibration, Isotonic
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.isotonic import MAX_KNOTS
from sparsefeed.models.shared import SharedModel

__all__ = ["export_dense", "input_names"]

# The newest opset that torch's TorchScript exporter writes well and every onnxruntime since 1.12 reads.
OPSET = 17
# A candidate's list up to this size (max_length * dim^2) is summed by a product with ones and zeros: onnxruntime's sum
# over a middle axis costs every candidate 0.15 us at least. The values are the sum's.
FEW_PRODUCTS = 8192


def input_names(spec: FeedSpec) -> tuple[str, ...]:
    """Names of the graph's inputs, in order."""
    names = [f"{side}_dense" for side in ("member", "candidate") if spec.of_kind("dense", side=side)]
    for feature in spec.lookups:
        names.append(f"emb_{feature.name}")
        if not isinstance(feature, IdFeature):
            names.append(f"len_{feature.name}")
    return tuple(names)


def export_dense(model: DenseModel, spec: FeedSpec, calibration: Calibration, path: str | Path) -> None:
    """Write the serving graph to `path`.

    Guarantees: inputs and output are those of docs/contracts/dense.md; probabilities equal
    `calibration.probability(logits)` to float32 rounding. The model is left in the mode it was in.

    Raises:
        SpecError: The calibration is of other responses than the spec's.
    """
    names = [response.name for response in spec.responses]
    if list(calibration.responses) != names:
        raise SpecError(
            f"calibration: got responses {list(calibration.responses)}; the spec's are {names}, in this order"
        )
    served = _Served(model, spec, calibration)
    was_training = model.training
    served.eval()
    inputs = _example(spec)
    axes = {name: {0: "n"} for name in inputs if not _is_members(spec, name)} | {"probability": {0: "n"}}
    try:
        with warnings.catch_warnings():
            # The exporter without dynamo is deprecated but is the one that needs no further package.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                served,
                tuple(inputs.values()),
                str(path),
                input_names=list(inputs),
                output_names=["probability"],
                dynamic_axes=axes,
                opset_version=OPSET,
                dynamo=False,
            )
    finally:
        model.train(was_training)


class _Served(nn.Module):
    """The model behind the serving signature; takes its inputs by position."""

    def __init__(self, model: DenseModel, spec: FeedSpec, calibration: Calibration) -> None:
        super().__init__()
        self.pools = model.pools
        self.spec = spec
        self.names = input_names(spec)
        for feature in spec.lookups:
            num, dim = getattr(feature, "max_length", 1), spec.table_of(feature).dim
            if num > 1 and side_of(feature) == "candidate" and num * dim * dim <= FEW_PRODUCTS:
                self.register_buffer(f"ones_{feature.name}", torch.eye(dim).repeat(num, 1))
        scale, shift = (torch.from_numpy(line) for line in calibration.lines())
        curves = {r: one for r, one in enumerate(calibration.responses.values()) if isinstance(one, Isotonic)}
        self.curved = bool(curves)
        # A line is part of the head; a curve needs the logits as they are.
        self.shared = SharedModel(model, spec, *(() if curves else (scale, shift)))
        if curves:
            self.register_buffer("scale", scale)
            self.register_buffer("shift", shift)
            self._hold(curves, len(scale))

    def _pooled(self, feature: IdListFeature | HistoryFeature, rows: Tensor, length: Tensor) -> Tensor:
        if feature.pooling == "learned":
            pooled: Tensor = self.pools[f"of_{feature.name}"](rows, length)
            return pooled
        length = length.to(rows.dtype).unsqueeze(1)
        # A sum needs no length, but the exporter drops an input that nothing reads, and the signature has it.
        divisor = length.clamp(min=1) if feature.pooling == "mean" else length.clamp(min=1, max=1)
        ones: Tensor | None = getattr(self, f"ones_{feature.name}", None)
        total = rows.sum(dim=1) if ones is None else rows.reshape(-1, len(ones)) @ ones
        return total / divisor

    def _hold(self, curves: dict[int, Isotonic], num_responses: int) -> None:
        # [R, S] each, S segments; of a line they stand unused.
        segments = np.zeros((3, num_responses, MAX_KNOTS - 1), np.float32)
        first = np.zeros(num_responses, np.float32)
        for r, curve in curves.items():
            segments[:, r], first[r] = curve.segments(), curve.values[0]
        for name, values in zip(("low", "high", "slope"), segments, strict=True):
            self.register_buffer(name, torch.from_numpy(values))
        self.register_buffer("first", torch.from_numpy(first))
        self.register_buffer("has_curve", torch.tensor([r in curves for r in range(num_responses)]))

    def forward(self, *inputs: Tensor) -> Tensor:
        given = dict(zip(self.names, inputs, strict=True))
        pooled: dict[str, dict[str, Tensor]] = {"member": {}, "candidate": {}}
        for feature in self.spec.lookups:
            vector = given[f"emb_{feature.name}"]
            if not isinstance(feature, IdFeature):
                vector = self._pooled(feature, vector, given[f"len_{feature.name}"])
            pooled[side_of(feature)][feature.name] = vector
        dense = (given.get(f"{side}_dense") for side in ("member", "candidate"))
        logits_nR = calibrated_nR = self.shared(pooled["member"], pooled["candidate"], *dense)
        if self.curved:
            # Isotonic.segments; arithmetic alone, for a search of the segment has no operator in ONNX.
            inside_nRS = torch.minimum(torch.maximum(logits_nR.unsqueeze(2), self.low), self.high)
            curve_nR = self.first + ((inside_nRS - self.low) * self.slope).sum(dim=2)
            calibrated_nR = torch.where(self.has_curve, curve_nR, logits_nR * self.scale + self.shift)
        return torch.sigmoid(calibrated_nR.clamp(-MAX_LOGIT, MAX_LOGIT))


def _example(spec: FeedSpec) -> dict[str, Tensor]:
    # Three candidates: their axis may not be taken for a constant 1.
    inputs: dict[str, Tensor] = {}
    for name in input_names(spec):
        count = 1 if _is_members(spec, name) else 3
        if name in ("member_dense", "candidate_dense"):
            inputs[name] = torch.zeros(count, len(spec.of_kind("dense", side=name.removesuffix("_dense"))))  # type: ignore[arg-type]
        else:
            feature = next(f for f in spec.lookups if name in (f"emb_{f.name}", f"len_{f.name}"))
            length = () if isinstance(feature, IdFeature) else (feature.max_length,)
            if name == f"len_{feature.name}":
                inputs[name] = torch.ones(count, dtype=torch.int64)
            else:
                inputs[name] = torch.zeros(count, *length, spec.table_of(feature).dim)
    return inputs


def _is_members(spec: FeedSpec, name: str) -> bool:
    """Whether an input is the member's, which has one row, or the candidates'."""
    if name in ("member_dense", "candidate_dense"):
        return name == "member_dense"
    return side_of(spec.feature_by_name[name.split("_", 1)[1]]) == "member"
