from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsefeed.errors import SpecError
from sparsefeed.etl.spec import FeedSpec, validate
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import CrossLayer, DenseModel, GatedLayer, LearnedPooling

CONFIG = ModelConfig(hidden=(6, 5), cross_layers=2, cross_rank=3)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def pooled_of(spec: FeedSpec, rows: int) -> dict[str, torch.Tensor]:
    return {f.name: torch.randn(rows, spec.table_of(f).dim) for f in spec.lookups}


def test_a_gated_layer_is_relu_of_one_map_times_sigmoid_of_another() -> None:
    torch.manual_seed(0)
    layer, h = GatedLayer(4, 3), torch.randn(7, 4)
    w, b = as_numpy(layer.linear.weight), as_numpy(layer.linear.bias)
    x = as_numpy(h)
    expected = np.maximum(x @ w[:3].T + b[:3], 0) * sigmoid(x @ w[3:].T + b[3:])
    np.testing.assert_allclose(as_numpy(layer(h)), expected, atol=1e-6)


def test_without_a_gate_the_layer_is_relu_alone() -> None:
    torch.manual_seed(0)
    layer, h = GatedLayer(4, 3, gate=False), torch.randn(7, 4)
    expected = np.maximum(as_numpy(h) @ as_numpy(layer.linear.weight).T + as_numpy(layer.linear.bias), 0)
    np.testing.assert_allclose(as_numpy(layer(h)), expected, atol=1e-6)


def test_a_cross_layer_is_the_low_rank_formula() -> None:
    torch.manual_seed(0)
    layer, x0, x = CrossLayer(5, 2), torch.randn(7, 5), torch.randn(7, 5)
    v, u, b = as_numpy(layer.project.weight), as_numpy(layer.expand.weight), as_numpy(layer.expand.bias)
    assert v.shape == (2, 5)
    assert u.shape == (5, 2)
    expected = as_numpy(x0) * (as_numpy(x) @ v.T @ u.T + b) + as_numpy(x)
    np.testing.assert_allclose(as_numpy(layer(x0, x)), expected, atol=1e-6)


def test_the_model_is_cross_and_deep_side_by_side_under_one_linear_head(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG.model_copy(update={"interactions": False}))
    pooled, member, candidate = pooled_of(spec, 4), torch.randn(4, 1), torch.randn(4, 1)
    x0 = torch.cat([member, candidate, *(pooled[f.name] for f in spec.lookups)], dim=1)
    x = h = x0
    for cross in model.cross:
        x = cross(x0, x)
    for layer in model.deep:
        h = layer(h)
    expected = np.concatenate([as_numpy(x), as_numpy(h)], 1) @ as_numpy(model.head.weight).T + as_numpy(model.head.bias)
    np.testing.assert_allclose(as_numpy(model(pooled, member, candidate)), expected, atol=1e-5)


def pairs_of(spec: FeedSpec, pooled: dict[str, torch.Tensor]) -> np.ndarray:
    """Dot products of vectors of one width: width by width, (1, 0), (2, 0), (2, 1), (3, 0) and so on."""
    columns = []
    for dim in dict.fromkeys(spec.table_of(f).dim for f in spec.lookups):
        vectors = [as_numpy(pooled[f.name]) for f in spec.lookups if spec.table_of(f).dim == dim]
        columns += [(vectors[i] * vectors[j]).sum(1) for i in range(len(vectors)) for j in range(i)]
    return np.stack(columns, 1)


def matches_of(spec: FeedSpec, pooled: dict[str, torch.Tensor]) -> np.ndarray:
    """Sum of the dot products of the member's ids, not its histories, with the candidate's, [n, 1]."""
    total = np.zeros((len(next(iter(pooled.values()))), 1))
    for dim in {spec.table_of(f).dim for f in spec.lookups}:
        own = {"member": 0.0, "candidate": 0.0}
        for feature in spec.lookups:
            if feature.kind != "history" and spec.table_of(feature).dim == dim:
                own[feature.side] = own[feature.side] + as_numpy(pooled[feature.name])
        total += np.sum(own["member"] * own["candidate"], axis=-1).reshape(-1, 1)
    return total


def test_dot_products_of_pairs_go_to_deep_and_head_and_matches_to_the_logits(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG)
    pooled, member, candidate = pooled_of(spec, 4), torch.randn(4, 1), torch.randn(4, 1)
    dots = pairs_of(spec, pooled)
    assert dots.shape[1] == model.interactions.num_pairs > 1
    x0 = torch.cat([member, candidate, *(pooled[f.name] for f in spec.lookups)], dim=1)
    x, h = x0, torch.cat([x0, torch.from_numpy(dots).float()], dim=1)
    for cross in model.cross:
        x = cross(x0, x)
    for layer in model.deep:
        h = layer(h)
    inputs = np.concatenate([as_numpy(x), as_numpy(h), dots], 1)
    expected = inputs @ as_numpy(model.head.weight).T + as_numpy(model.head.bias) + matches_of(spec, pooled)
    np.testing.assert_allclose(as_numpy(model(pooled, member, candidate)), expected, atol=1e-5)


def test_experts_are_mixed_for_each_response(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG.model_copy(update={"experts": 3}))
    pooled, member, candidate = pooled_of(spec, 4), torch.randn(4, 1), torch.randn(4, 1)
    dots = pairs_of(spec, pooled)
    x0 = torch.cat([member, candidate, *(pooled[f.name] for f in spec.lookups)], dim=1)
    x, seen = x0, torch.cat([x0, torch.from_numpy(dots).float()], dim=1)
    for cross in model.cross:
        x = cross(x0, x)
    experts = [as_numpy(model.deep[3 + e](model.deep[e](seen))) for e in range(3)]
    scores = (as_numpy(seen) @ as_numpy(model.mix.weight).T + as_numpy(model.mix.bias)).reshape(4, -1, 3)
    shares = np.exp(scores) / np.exp(scores).sum(2, keepdims=True)
    got = as_numpy(model(pooled, member, candidate))
    for r in range(got.shape[1]):
        h = sum(shares[:, r, e : e + 1] * experts[e] for e in range(3))
        inputs = np.concatenate([as_numpy(x), h, dots], 1)
        expected = (
            inputs @ as_numpy(model.head.weight)[r] + as_numpy(model.head.bias)[r] + matches_of(spec, pooled)[:, 0]
        )
        np.testing.assert_allclose(got[:, r], expected, atol=1e-5)


def test_equal_experts_are_one(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    one, three = DenseModel(spec, CONFIG), DenseModel(spec, CONFIG.model_copy(update={"experts": 3}))
    state = one.state_dict()
    for name in three.state_dict():
        if name.startswith("deep."):
            _, number, rest = name.split(".", 2)
            state[name] = one.state_dict()[f"deep.{int(number) // 3}.{rest}"]
        elif name.startswith("mix."):
            state[name] = three.state_dict()[name]
    three.load_state_dict(state)
    inputs = pooled_of(spec, 4), torch.randn(4, 1), torch.randn(4, 1)
    torch.testing.assert_close(three(*inputs), one(*inputs), rtol=1e-5, atol=1e-5)


def test_without_a_residual_a_cross_layer_gives_the_product_alone() -> None:
    torch.manual_seed(0)
    layer, x0, x = CrossLayer(5, 2, residual=False), torch.randn(7, 5), torch.randn(7, 5)
    torch.testing.assert_close(layer(x0, x), x0 * layer.expand(layer.project(x)))


def test_dropout_leaves_out_in_training_alone(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG.model_copy(update={"dropout": 0.5}))
    inputs = pooled_of(spec, 64), torch.randn(64, 1), torch.randn(64, 1)
    assert not torch.equal(model(*inputs), model(*inputs))
    model.eval()
    assert torch.equal(model(*inputs), model(*inputs))


def test_the_order_of_the_pooled_mapping_is_of_no_account(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG)
    pooled, member, candidate = pooled_of(spec, 4), torch.randn(4, 1), torch.randn(4, 1)
    backwards = dict(reversed(pooled.items()))
    assert list(backwards) != list(pooled)
    torch.testing.assert_close(model(backwards, member, candidate), model(pooled, member, candidate), rtol=0, atol=0)


def test_a_row_scores_the_same_alone_and_in_a_batch(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG)
    pooled, member, candidate = pooled_of(spec, 9), torch.randn(9, 1), torch.randn(9, 1)
    whole = model(pooled, member, candidate)
    for i in range(9):
        alone = model({k: v[i : i + 1] for k, v in pooled.items()}, member[i : i + 1], candidate[i : i + 1])
        torch.testing.assert_close(alone[0], whole[i], rtol=1e-5, atol=1e-6)


def test_every_input_reaches_every_logit(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG)
    pooled, dense = pooled_of(spec, 3), [torch.randn(3, 1) for _ in range(2)]
    inputs = [*pooled.values(), *dense]
    for tensor in inputs:
        tensor.requires_grad_()
    logits = model(pooled, *dense)
    assert logits.shape == (3, 2)
    for response in range(2):
        for gradient in torch.autograd.grad(logits[:, response].sum(), inputs, retain_graph=True):
            assert (gradient != 0).any()


def test_an_untrained_model_starts_at_the_rates_it_is_given(spec: FeedSpec) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, CONFIG)
    model.start_at([0.02, 0.0])
    zeros = {name: torch.zeros_like(value) for name, value in pooled_of(spec, 1).items()}
    # Zero inputs leave the head's bias and what the layers' own biases add.
    model.head.weight.data.zero_()
    probability = torch.sigmoid(model(zeros, torch.zeros(1, 1), torch.zeros(1, 1)))[0].tolist()
    assert probability[0] == pytest.approx(0.02, rel=1e-5)
    assert 0 < probability[1] < 1e-5


def test_no_cross_layers_is_a_plain_gated_network(spec: FeedSpec) -> None:
    model = DenseModel(spec, ModelConfig(hidden=(4,), cross_layers=0))
    assert len(model.cross) == 0
    assert model(pooled_of(spec, 2), torch.zeros(2, 1), torch.zeros(2, 1)).shape == (2, 2)


@pytest.mark.parametrize(("field", "value"), [("hidden", []), ("hidden", [0]), ("cross_rank", 0), ("gates", True)])
def test_a_shape_that_cannot_be_built_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(SpecError, match=field):
        validate(ModelConfig, {field: value})


def test_places_of_a_list_share_by_the_softmax_of_what_was_learned() -> None:
    pool = LearnedPooling(3)
    pool.place_L.data = torch.tensor([2.0, 0.5, -1.0])
    vectors = torch.randn(4, 3, 5)
    lengths = [3, 1, 2, 0]
    for b, length in enumerate(lengths):
        vectors[b, length:] = 0
    vectors.requires_grad_()
    got = pool(vectors, torch.tensor(lengths))
    rates = np.exp([2.0, 0.5, -1.0])
    for b, length in enumerate(lengths):
        share = rates[:length] / rates[:length].sum() if length else np.zeros(0)
        wanted = share @ as_numpy(vectors)[b, :length] if length else np.zeros(5)
        np.testing.assert_allclose(as_numpy(got)[b], wanted, atol=1e-6)
    got.sum().backward()
    assert torch.isfinite(pool.place_L.grad).all()
    assert torch.isfinite(vectors.grad).all()


def test_a_list_may_be_called_what_a_dictionary_calls_its_methods() -> None:
    spec = FeedSpec.parse(
        {
            "name": "odd",
            "tables": [{"name": "member", "dim": 4}, {"name": "post", "dim": 4}],
            "features": [
                {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
                {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
                {"kind": "history", "name": "items", "of": "post_id", "response": "click", "pooling": "learned"},
            ],
            "responses": [{"name": "click", "column": "click"}],
        }
    )
    assert "pools.of_items.place_L" in DenseModel(spec, CONFIG).state_dict()
