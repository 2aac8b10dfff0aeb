from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import FeedSpec, IdFeature, side_of
from sparsefeed.models import onnx
from sparsefeed.models.calibration import Calibration, Isotonic, Platt
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.onnx import export_dense, input_names
from tests.models.test_shared import SHAPES

CALIBRATION = Calibration(responses={"click": Platt(scale=0.7, shift=-0.4), "like": Platt(scale=1.3, shift=0.2)})


def inputs_of(spec: FeedSpec, candidates: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of docs/contracts/dense.md; list rows beyond their length are zero."""
    random = np.random.default_rng(seed)
    inputs: dict[str, np.ndarray] = {}
    for side, count in (("member", 1), ("candidate", candidates)):
        if dense := spec.of_kind("dense", side=side):
            inputs[f"{side}_dense"] = random.normal(size=(count, len(dense))).astype(np.float32)
    for feature in spec.lookups:
        count = 1 if side_of(feature) == "member" else candidates
        dim = spec.table_of(feature).dim
        if isinstance(feature, IdFeature):
            inputs[f"emb_{feature.name}"] = random.normal(size=(count, dim)).astype(np.float32)
            continue
        length = random.integers(0, feature.max_length + 1, count)
        rows = random.normal(size=(count, feature.max_length, dim)).astype(np.float32)
        rows[np.arange(feature.max_length)[None, :] >= length[:, None]] = 0
        inputs |= {f"emb_{feature.name}": rows, f"len_{feature.name}": length}
    return inputs


def probability_in_torch(
    spec: FeedSpec, model: DenseModel, calibration: Calibration, inputs: dict[str, np.ndarray]
) -> np.ndarray:
    """The contract, step by step in numpy, with the model itself in torch."""
    num = next(len(inputs[f"emb_{f.name}"]) for f in spec.lookups if side_of(f) == "candidate")
    pooled = {}
    for feature in spec.lookups:
        vector = inputs[f"emb_{feature.name}"].astype(np.float64)
        if not isinstance(feature, IdFeature):
            length = inputs[f"len_{feature.name}"]
            if feature.pooling == "learned":
                place = model.pools[f"of_{feature.name}"].place_L.detach().double().numpy()
                share = np.exp(place) * (np.arange(feature.max_length) < length[:, None])
                vector = vector * (share / np.maximum(share.sum(1, keepdims=True), 1e-9))[:, :, None]
            vector = vector.sum(1)
            if feature.pooling == "mean":
                vector /= np.maximum(length, 1)[:, None]
        vector = vector.repeat(num, axis=0) if side_of(feature) == "member" else vector
        pooled[feature.name] = torch.from_numpy(vector.astype(np.float32))
    none = np.zeros((num, 0), np.float32)
    member = inputs["member_dense"].repeat(num, axis=0) if "member_dense" in inputs else none
    with torch.inference_mode():
        logits = model(pooled, torch.from_numpy(member), torch.from_numpy(inputs.get("candidate_dense", none)))
    return calibration.probability(logits.numpy())


def export(spec: FeedSpec, path: Path, calibration: Calibration = CALIBRATION) -> tuple[DenseModel, Any]:
    torch.manual_seed(0)
    model = DenseModel(spec, ModelConfig(hidden=(8, 4), cross_rank=3)).eval()
    for pool in model.pools.values():
        pool.place_L.data.normal_()
    export_dense(model, spec, calibration, path / "dense.onnx")
    return model, onnxruntime.InferenceSession(path / "dense.onnx", providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("candidates", [1, 7, 500])
def test_the_graph_gives_the_models_calibrated_probability(spec: FeedSpec, tmp_path: Path, candidates: int) -> None:
    model, session = export(spec, tmp_path)
    inputs = inputs_of(spec, candidates)
    (got,) = session.run(["probability"], inputs)
    np.testing.assert_allclose(got, probability_in_torch(spec, model, CALIBRATION, inputs), atol=1e-6)


@pytest.mark.parametrize("few_products", [0, onnx.FEW_PRODUCTS])
@pytest.mark.parametrize("shape", ["experts", "four without a residual", "a rank above the width", "no cross network"])
def test_of_every_shape_the_graph_gives_the_models_probability(
    spec: FeedSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: str, few_products: int
) -> None:
    monkeypatch.setattr(onnx, "FEW_PRODUCTS", few_products)
    torch.manual_seed(0)
    model = DenseModel(spec, ModelConfig(**({"hidden": (8, 4), "cross_rank": 3} | SHAPES[shape]))).eval()
    export_dense(model, spec, CALIBRATION, tmp_path / "dense.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "dense.onnx", providers=["CPUExecutionProvider"])
    for candidates in (50, 1):
        inputs = inputs_of(spec, candidates)
        (got,) = session.run(["probability"], inputs)
        np.testing.assert_allclose(got, probability_in_torch(spec, model, CALIBRATION, inputs), atol=1e-6)


@pytest.mark.parametrize("length", [0, 2])
def test_learned_shares_of_places_are_in_the_graph(learned: FeedSpec, tmp_path: Path, length: int) -> None:
    model, session = export(learned, tmp_path)
    inputs = inputs_of(learned, 9)
    inputs["len_clicked"][0] = length
    inputs["emb_clicked"][0, length:] = 0
    (got,) = session.run(["probability"], inputs)
    np.testing.assert_allclose(got, probability_in_torch(learned, model, CALIBRATION, inputs), atol=1e-6)
    assert sorted(i.name for i in session.get_inputs()) == sorted(input_names(learned))


def test_a_spec_without_dense_features_or_lists_exports_too(tmp_path: Path) -> None:
    spec = FeedSpec.parse(
        {
            "name": "bare",
            "tables": [{"name": "post", "dim": 4}],
            "features": [{"kind": "id", "name": "post_id", "table": "post", "side": "candidate"}],
            "responses": [{"name": "click", "column": "click"}],
            "logs": {"member": None},
        }
    )
    calibration = Calibration.identity(spec)
    model, session = export(spec, tmp_path, calibration)
    inputs = inputs_of(spec, 6)
    assert [i.name for i in session.get_inputs()] == ["emb_post_id"] == list(input_names(spec))
    (got,) = session.run(["probability"], inputs)
    np.testing.assert_allclose(got, probability_in_torch(spec, model, calibration, inputs), atol=1e-6)


def test_export_leaves_a_model_in_training_in_training(spec: FeedSpec, tmp_path: Path) -> None:
    model = DenseModel(spec, ModelConfig(hidden=(4,))).train()
    export_dense(model, spec, CALIBRATION, tmp_path / "dense.onnx")
    assert model.training


def test_a_calibration_of_other_responses_is_refused(spec: FeedSpec, tmp_path: Path) -> None:
    swapped = Calibration(responses=dict(reversed(CALIBRATION.responses.items())))
    with pytest.raises(SpecError, match=r"\['like', 'click'\]"):
        export_dense(DenseModel(spec, ModelConfig()), spec, swapped, tmp_path / "dense.onnx")
    assert not (tmp_path / "dense.onnx").exists()


def logits_that_are_dense_features(spec: FeedSpec) -> DenseModel:
    """A model whose logits are the candidate's dense features, and nothing else."""
    model = DenseModel(spec, ModelConfig(hidden=(1,), cross_layers=0, interactions=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.head.weight[:, : len(spec.responses)] = torch.eye(len(spec.responses))
    return model


@st.composite
def curves(draw: st.DrawFn) -> Isotonic:
    gaps = draw(st.lists(st.floats(0.05, 3), min_size=1, max_size=31))
    rises = [draw(st.sampled_from([0.0, 1e-3, 0.4])) for _ in gaps]
    knots = draw(st.floats(-20, 10)) + np.cumsum([0, *gaps])
    return Isotonic(knots=tuple(knots.tolist()), values=tuple((-6 + np.cumsum([0, *rises])).tolist()))


@settings(max_examples=20, deadline=None)
@given(curves(), curves() | st.builds(Platt, scale=st.floats(-2, 2), shift=st.floats(-20, 20)))
def test_curves_in_the_graph_are_those_of_the_calibration(
    tmp_path_factory: pytest.TempPathFactory, click: Isotonic, like: Isotonic | Platt
) -> None:
    spec = FeedSpec.parse(
        {
            "name": "bare",
            "tables": [{"name": "post", "dim": 4}],
            "features": [
                {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
                {"kind": "dense", "name": "click_logit", "side": "candidate"},
                {"kind": "dense", "name": "like_logit", "side": "candidate"},
            ],
            "responses": [{"name": "click", "column": "click"}, {"name": "like", "column": "like"}],
            "logs": {"member": None},
        }
    )
    calibration = Calibration(responses={"click": click, "like": like})
    path = tmp_path_factory.mktemp("curves") / "dense.onnx"
    export_dense(logits_that_are_dense_features(spec), spec, calibration, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    line = np.concatenate([np.linspace(-40, 40, 400), click.knots, [-1e9, 1e9]]).astype(np.float32)
    line.sort()
    logits = np.stack([line, line], axis=1)
    others = {"emb_post_id": np.zeros((len(line), 4), np.float32)}
    (got,) = session.run(["probability"], {"candidate_dense": logits} | others)
    np.testing.assert_allclose(got, calibration.probability(logits), atol=5e-6)
    assert ((got > 0) & (got < 1)).all()
    assert (np.diff(got[:, 0]) >= -1e-7).all()  # onnxruntime's sigmoid is right to 1e-7


def test_the_models_logits_go_through_a_curve(spec: FeedSpec, tmp_path: Path) -> None:
    curve = Isotonic(knots=(-0.5, 0.0, 0.4), values=(-4.0, -1.0, 0.5))
    calibration = Calibration(responses={"click": Platt(scale=0.7), "like": curve})
    model, session = export(spec, tmp_path, calibration)
    inputs = inputs_of(spec, 50)
    (got,) = session.run(["probability"], inputs)
    np.testing.assert_allclose(got, probability_in_torch(spec, model, calibration, inputs), atol=2e-6)
