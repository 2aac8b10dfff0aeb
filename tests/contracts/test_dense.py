"""docs/contracts/dense.md, sentence by sentence, on the golden graph of fixtures/dense.

The graph, its inputs and its answers were written once (one member, 5 candidates); a change of the signature or of
the arithmetic shows here before it reaches a server. The spec beside it has every kind of feature on both sides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from sparsefeed.etl.spec import FeedSpec, IdFeature, side_of
from sparsefeed.models.calibration import MAX_LOGIT, Calibration, Isotonic, Platt
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.onnx import export_dense, input_names

GOLDEN = Path(__file__).parent / "fixtures" / "dense"


@pytest.fixture(scope="module")
def spec() -> FeedSpec:
    return FeedSpec.load(GOLDEN / "spec.json")


@pytest.fixture(scope="module")
def session() -> Any:
    return onnxruntime.InferenceSession(GOLDEN / "dense.onnx", providers=["CPUExecutionProvider"])


@pytest.fixture
def inputs(session: Any) -> dict[str, np.ndarray]:
    return {i.name: np.load(GOLDEN / f"{i.name}.npy") for i in session.get_inputs()}


def run(session: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    (probability,) = session.run(["probability"], inputs)
    return probability


def test_1_inputs_stand_in_order_dense_then_lookups(spec: FeedSpec, session: Any) -> None:
    expected = ["member_dense", "candidate_dense"]
    for feature in spec.lookups:
        expected += [f"emb_{feature.name}"] + ([] if isinstance(feature, IdFeature) else [f"len_{feature.name}"])
    assert [i.name for i in session.get_inputs()] == expected == list(input_names(spec))


def test_2_types_and_shapes_are_the_tables_of_one_member_and_n_is_dynamic(spec: FeedSpec, session: Any) -> None:
    got = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    assert got["member_dense"] == ("tensor(float)", [1, len(spec.of_kind("dense", side="member"))])
    assert got["candidate_dense"] == ("tensor(float)", ["n", len(spec.of_kind("dense", side="candidate"))])
    for feature in spec.lookups:
        axis = 1 if side_of(feature) == "member" else "n"
        length = [] if isinstance(feature, IdFeature) else [feature.max_length]
        assert got[f"emb_{feature.name}"] == ("tensor(float)", [axis, *length, spec.table_of(feature).dim])
        if length:
            assert got[f"len_{feature.name}"] == ("tensor(int64)", [axis])


def test_2_of_a_candidate_alone_and_of_many_the_probability_is_the_same(
    spec: FeedSpec, session: Any, inputs: dict[str, np.ndarray]
) -> None:
    candidates = {i.name for i in session.get_inputs() if i.shape[0] == "n"}
    last = {name: value[-1:] if name in candidates else value for name, value in inputs.items()}
    np.testing.assert_allclose(run(session, last), run(session, inputs)[-1:], atol=1e-7)
    many = {name: np.tile(v, (100,) + (1,) * (v.ndim - 1)) if name in candidates else v for name, v in inputs.items()}
    np.testing.assert_allclose(run(session, many), np.tile(run(session, inputs), (100, 1)), atol=1e-7)


def test_3_probability_is_n_by_responses_and_as_it_was_written(
    spec: FeedSpec, session: Any, inputs: dict[str, np.ndarray]
) -> None:
    (output,) = session.get_outputs()
    assert (output.name, output.type, output.shape) == ("probability", "tensor(float)", ["n", len(spec.responses)])
    np.testing.assert_allclose(run(session, inputs), np.load(GOLDEN / "probability.npy"), atol=1e-6)


def test_3_the_farthest_logit_stays_inside_zero_and_one(
    spec: FeedSpec, tmp_path: Path, inputs: dict[str, np.ndarray]
) -> None:
    far = {"click": Platt(scale=1, shift=1e6), "like": Platt(scale=1, shift=-1e6)}
    export_dense(DenseModel(spec, ModelConfig(hidden=(4,))), spec, Calibration(responses=far), tmp_path / "dense.onnx")
    probability = run(onnxruntime.InferenceSession(tmp_path / "dense.onnx"), inputs)
    assert ((probability > 0) & (probability < 1)).all()
    # onnxruntime's sigmoid is right to 1e-7, not to a share of so small a number.
    np.testing.assert_allclose(probability[:, 1], 1 / (1 + np.exp(MAX_LOGIT)), atol=1e-7)


def test_4_a_mean_divides_by_the_length_given_and_a_sum_does_not(
    spec: FeedSpec, session: Any, inputs: dict[str, np.ndarray]
) -> None:
    before = run(session, inputs)
    pooling = {f.name: f.pooling for f in spec.lookups if not isinstance(f, IdFeature)}
    assert set(pooling.values()) == {"mean", "sum"}
    for name, how in pooling.items():
        rows, length = f"emb_{name}", f"len_{name}"
        doubled = inputs | {rows: 2 * inputs[rows], length: 2 * np.maximum(inputs[length], 1)}
        same = np.allclose(run(session, doubled), before, atol=1e-6)
        assert same == (how == "mean")
        one_for_none = inputs | {length: np.where(inputs[length] == 0, 1, inputs[length])}
        np.testing.assert_allclose(run(session, one_for_none), before, atol=1e-7)


def test_4_a_learned_share_is_a_softmax_over_the_places_below_the_length(
    spec: FeedSpec, tmp_path: Path, inputs: dict[str, np.ndarray]
) -> None:
    history = spec.histories[0].name
    features = [f.model_dump() | ({"pooling": "learned"} if f.name == history else {}) for f in spec.features]
    learned = FeedSpec.parse(spec.model_dump() | {"features": features})
    model = DenseModel(learned, ModelConfig(hidden=(4,))).eval()
    place_L = model.pools[f"of_{history}"].place_L
    place_L.data = torch.linspace(1, -1, len(place_L))
    export_dense(model, learned, Calibration.identity(learned), tmp_path / "dense.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "dense.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(input_names(spec))
    rows, length = f"emb_{history}", f"len_{history}"
    vectors = np.random.default_rng(0).normal(size=inputs[rows].shape).astype(np.float32)
    for filled in range(vectors.shape[1] + 1):
        vectors_filled = vectors * (np.arange(vectors.shape[1]) < filled)[None, :, None]
        share = np.exp(place_L.detach().numpy()[:filled])
        pooled = np.einsum("l,mld->md", share / share.sum(), vectors[:, :filled]) if filled else vectors[:, 0] * 0
        alone = np.zeros_like(vectors)
        alone[:, 0] = pooled  # a list of one has its row as it is
        count = np.full(len(vectors), filled)
        got = run(session, inputs | {rows: vectors_filled, length: count})
        np.testing.assert_allclose(got, run(session, inputs | {rows: alone, length: np.minimum(count, 1)}), atol=1e-6)


def test_5_a_candidate_scores_alone_what_it_scores_among_others(
    spec: FeedSpec, session: Any, inputs: dict[str, np.ndarray]
) -> None:
    whole = run(session, inputs)
    candidates = {"candidate_dense"}
    candidates |= {f"{p}_{f.name}" for f in spec.lookups if side_of(f) == "candidate" for p in ("emb", "len")}
    for i in range(5):
        alone = run(session, {k: v[i : i + 1] if k in candidates else v for k, v in inputs.items()})
        np.testing.assert_allclose(alone[0], whole[i], atol=1e-6)


def test_6_scale_and_shift_are_baked_into_the_graph(
    spec: FeedSpec, tmp_path: Path, inputs: dict[str, np.ndarray]
) -> None:
    golden = Calibration.load(GOLDEN / "calibration.json")
    assert [*golden.responses] == [r.name for r in spec.responses]
    model = DenseModel(spec, ModelConfig(hidden=(4,), interactions=False))
    logits = {}
    for name, calibration in (("plain", Calibration.identity(spec)), ("scaled", golden)):
        export_dense(model, spec, calibration, tmp_path / f"{name}.onnx")
        p = run(onnxruntime.InferenceSession(tmp_path / f"{name}.onnx"), inputs).astype(np.float64)
        logits[name] = np.log(p / (1 - p))
    scale, shift = golden.lines()
    np.testing.assert_allclose(logits["scaled"], logits["plain"] * scale + shift, atol=1e-5)


def test_7_knots_and_values_are_interpolated_and_constant_beyond(
    spec: FeedSpec, tmp_path: Path, inputs: dict[str, np.ndarray]
) -> None:
    model = DenseModel(spec, ModelConfig(hidden=(4,), interactions=False))
    export_dense(model, spec, Calibration.identity(spec), tmp_path / "plain.onnx")
    p = run(onnxruntime.InferenceSession(tmp_path / "plain.onnx"), inputs).astype(np.float64)
    plain = np.log(p / (1 - p))
    lowest, middle, highest = (float(q) for q in np.quantile(plain[:, 0], [0.2, 0.5, 0.8]))
    file = {"responses": {"click": {"knots": [lowest, middle, highest], "values": [-3, -1, 2]}, "like": {}}}
    (tmp_path / "calibration.json").write_text(json.dumps(file))
    calibration = Calibration.load(tmp_path / "calibration.json")
    assert calibration.responses["like"] == Platt()
    export_dense(model, spec, calibration, tmp_path / "curve.onnx")
    p = run(onnxruntime.InferenceSession(tmp_path / "curve.onnx"), inputs).astype(np.float64)
    expected = np.interp(plain[:, 0], [lowest, middle, highest], [-3, -1, 2])
    assert {-3, 2} < set(expected)
    np.testing.assert_allclose(p[:, 0], 1 / (1 + np.exp(-expected)), atol=1e-5)
    np.testing.assert_allclose(p[:, 1], 1 / (1 + np.exp(-plain[:, 1])), atol=1e-6)


@pytest.mark.parametrize(
    ("knots", "values"), [([0], [0]), (list(range(33)), list(range(33))), ([0, 0], [0, 1]), ([0, 1], [1, 0])]
)
def test_7_knots_are_2_to_32_and_rise_and_values_do_not_fall(knots: list[float], values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"knots|values"):
        Isotonic(knots=tuple(knots), values=tuple(values))
