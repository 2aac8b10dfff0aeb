"""The shared form equals DenseModel on rows that have the member's columns repeated, whatever the model's shape."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsefeed.etl.spec import FeedSpec, side_of
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.shared import SharedModel

SHAPES: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "one layer": {"hidden": (7,)},
    "three layers": {"hidden": (9, 7, 5)},
    "no gate": {"gate": False},
    "no dot products": {"interactions": False},
    "experts": {"experts": 3},
    "experts without a gate, one layer": {"experts": 2, "gate": False, "hidden": (6,)},
    "no cross network": {"cross_layers": 0},
    "one cross layer": {"cross_layers": 1},
    "four cross layers": {"cross_layers": 4, "cross_rank": 2},
    "four without a residual": {"cross_layers": 4, "cross_rank": 2, "cross_residual": False},
    "a rank above the width": {"cross_layers": 3, "cross_rank": 64},
}
SIDES = {"member": ("member_id", "topics", "clicked", "tenure"), "candidate": ("post_id", "hashtags", "age")}


def without(spec: FeedSpec, *names: str) -> FeedSpec:
    """The spec without these features."""
    value = spec.model_dump(mode="json")
    value["features"] = [feature for feature in value["features"] if feature["name"] not in names]
    read = {feature.get("table") for feature in value["features"]}  # a history reads the table of what it is of
    value["tables"] = [table for table in value["tables"] if table["name"] in read]
    if "member_id" in names:
        value["logs"]["member"] = None
    return FeedSpec.parse(value)


def drawn(spec: FeedSpec, candidates: int) -> tuple[list[dict[str, Tensor]], list[Tensor]]:
    """Pooled vectors and dense features of both sides."""
    rows = {"member": 1, "candidate": candidates}
    pooled: dict[str, dict[str, Tensor]] = {side: {} for side in rows}
    for feature in spec.lookups:
        pooled[side_of(feature)][feature.name] = torch.randn(rows[side_of(feature)], spec.table_of(feature).dim)
    dense = [torch.randn(rows[side], len(spec.of_kind("dense", side=side))) for side in rows]  # type: ignore[arg-type]
    return list(pooled.values()), dense


def of_whole_rows(model: DenseModel, pooled: list[dict[str, Tensor]], dense: list[Tensor]) -> Tensor:
    num = len(dense[1])
    repeated = {name: row.expand(num, -1) for name, row in pooled[0].items()}
    return model(repeated | pooled[1], dense[0].expand(num, -1), dense[1])


def of_shared(shared: SharedModel, pooled: list[dict[str, Tensor]], dense: list[Tensor]) -> Tensor:
    return shared(*pooled, *(rows if rows.shape[1] else None for rows in dense))


@torch.no_grad()
@pytest.mark.parametrize("candidates", [1, 11])
@pytest.mark.parametrize("shape", SHAPES)
def test_of_every_shape_the_logits_are_the_models(spec: FeedSpec, shape: str, candidates: int) -> None:
    torch.manual_seed(0)
    model = DenseModel(spec, ModelConfig(**({"hidden": (8, 4), "cross_rank": 3} | SHAPES[shape]))).eval()
    pooled, dense = drawn(spec, candidates)
    expected = of_whole_rows(model, pooled, dense)
    got = of_shared(SharedModel(model, spec), pooled, dense)
    assert expected.std() > 1e-2
    torch.testing.assert_close(got, expected, atol=3e-6, rtol=1e-6)
    scale, shift = torch.tensor([0.7, -1.3]), torch.tensor([2.0, -0.4])
    got = of_shared(SharedModel(model, spec, scale, shift), pooled, dense)
    torch.testing.assert_close(got, expected * scale + shift, atol=3e-6, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize(
    "left_out",
    [
        ("tenure", "age"),
        ("age",),
        ("member_id", "tenure", "topics", "clicked"),
        ("hashtags", "age"),
        ("clicked", "topics", "hashtags"),
    ],
)
@pytest.mark.parametrize("shape", ["as it comes", "experts", "no cross network"])
def test_of_every_kind_of_spec_the_logits_are_the_models(spec: FeedSpec, left_out: tuple[str, ...], shape: str) -> None:
    torch.manual_seed(0)
    fewer = without(spec, *left_out)
    model = DenseModel(fewer, ModelConfig(**({"hidden": (8, 4), "cross_rank": 3} | SHAPES[shape]))).eval()
    pooled, dense = drawn(fewer, 6)
    got = of_shared(SharedModel(model, fewer), pooled, dense)
    assert got.shape == (6, len(spec.responses))
    torch.testing.assert_close(got, of_whole_rows(model, pooled, dense), atol=3e-6, rtol=1e-6)


@torch.no_grad()
def test_many_lookups_of_one_width_have_every_pair_in_its_place() -> None:
    # So many that their products are taken as matrices.
    features = [
        {"kind": "id", "name": f"{side}_{number}", "table": "t", "side": side}
        for number in range(6)
        for side in ("member", "candidate")
    ]
    spec = FeedSpec.parse(
        {
            "name": "wide",
            "tables": [{"name": "t", "dim": 64}],
            "features": features,
            "responses": [{"name": "click", "column": "click"}],
            "logs": {"member": "member_0", "post": "candidate_0"},
        }
    )
    torch.manual_seed(0)
    model = DenseModel(spec, ModelConfig(hidden=(8,), cross_rank=4)).eval()
    pooled, dense = drawn(spec, 5)
    pooled = [{name: rows / 8 for name, rows in side.items()} for side in pooled]
    expected = of_whole_rows(model, pooled, dense)
    torch.testing.assert_close(of_shared(SharedModel(model, spec), pooled, dense), expected, atol=2e-5, rtol=0)


def test_only_cross_layers_of_a_rank_above_the_width_see_whole_rows(spec: FeedSpec) -> None:
    for rank, is_shared in ((3, True), (64, False)):
        model = DenseModel(spec, ModelConfig(hidden=(4,), cross_layers=3, cross_rank=rank))
        assert SharedModel(model, spec).cross.is_shared == is_shared


@torch.no_grad()
def test_no_tensor_of_a_row_per_candidate_has_the_members_columns(spec: FeedSpec) -> None:
    model = DenseModel(spec, ModelConfig(hidden=(8, 4), cross_rank=3)).eval()
    shared = SharedModel(model, spec)
    pooled, dense = drawn(spec, 50)
    width = sum(spec.table_of(f).dim for f in spec.lookups) + len(spec.dense)
    widest: list[int] = []

    def look(_: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        widest.extend(t.shape[1] for t in inputs if isinstance(t, Tensor) and t.ndim == 2 and len(t) == 50)

    for module in shared.modules():
        module.register_forward_pre_hook(look)
    of_shared(shared, pooled, dense)
    of_candidate = sum(spec.table_of(f).dim for f in spec.lookups if side_of(f) == "candidate") + 1
    num_dots = shared.dots.candidate if shared.dots else []
    assert 0 < max(widest) <= of_candidate + len(num_dots) + 4 < width + len(num_dots)
