"""The plan against hand-counted bytes, TorchRec's own estimates and a model that is really built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import SpecError, TrainError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig, Sharding
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.dense_size import DenseSize
from sparsefeed.models.plan import Plan, make_plan
from sparsefeed.models.topology import Topology

MODEL = ModelConfig(hidden=(8, 4), cross_layers=2, cross_rank=3)
SPEC = FeedSpec.parse(
    {
        "name": "plan",
        "tables": [{"name": "member", "dim": 8}, {"name": "post", "dim": 64}],
        "features": [
            {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
            {"kind": "dense", "name": "tenure", "side": "member"},
            {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
            {"kind": "history", "name": "clicked", "of": "post_id", "response": "click", "max_length": 9},
        ],
        "responses": [{"name": "click", "column": "click"}],
    }
)
ROWS = {"member": 1000, "post": 50_000}
GPUS = Topology.gpus(4, memory_bytes=8 * 2**30)
ONE_LINE = GPUS.model_copy(update={"base_bytes": 0, "line_bytes": 1})


# The same, the history's vectors taken from the tables place by place.
LEARNED = FeedSpec.parse(
    SPEC.model_dump()
    | {"features": [f.model_dump() | ({"pooling": "learned"} if f.kind == "history" else {}) for f in SPEC.features]}
)


def plan_of(sharding: Sharding, topology: Topology = ONE_LINE, batch_size: int = 400, spec: FeedSpec = SPEC) -> Plan:
    return make_plan(spec, MODEL, ROWS, topology, batch_size, asked={"post": sharding, "member": "table_wise"})


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("cross_layers", [0, 2])
@pytest.mark.parametrize("experts", [1, 3])
@pytest.mark.parametrize("interactions", [True, False])
@pytest.mark.parametrize("spec", [SPEC, LEARNED], ids=["mean", "learned"])
def test_the_dense_model_has_the_parameters_and_products_that_are_planned(
    gate: bool, cross_layers: int, experts: int, interactions: bool, spec: FeedSpec
) -> None:
    shape = {"gate": gate, "cross_layers": cross_layers, "experts": experts, "interactions": interactions}
    model = MODEL.model_copy(update=shape)
    size, built = DenseSize.of(spec, model), DenseModel(spec, model)
    assert size.parameters == sum(parameter.numel() for parameter in built.parameters())
    weights = sum(weight.numel() for weight in built.parameters() if weight.dim() == 2)
    pairs = 2 * 2 * 64 if interactions else 0  # all with all of two vectors of 64
    assert size.products == weights + pairs + (9 * 64 if spec.learned else 0)
    assert size.width == 1 + 8 + 2 * 64


# Of the post's table a batch of 400 over 4 devices: 100 rows a device with 10 lookups of 2 features.
IDS, LENGTHS, POOLED = 100 * 10 * 8, 100 * 2 * 8, 100 * 2 * 64 * 4


@pytest.mark.parametrize(
    ("sharding", "held", "sent"),
    [
        ("table_wise", 50_000 * 65 * 4, 3 * (IDS + LENGTHS + 2 * POOLED)),
        # Four parts of 16 columns: each asks three others, and sends quarters of vectors there and back.
        ("column_wise", 50_000 * 17 * 4, 4 * 3 * (IDS + LENGTHS + 2 * POOLED / 4)),
        ("row_wise", 12_500 * 65 * 4, 4 * (IDS * 3 / 4 + LENGTHS * 3 + 2 * 3 * POOLED)),
        ("data_parallel", 50_000 * (2 * 64 + 1) * 4, 4 * 2 * 3 / 4 * 50_000 * 64 * 4),
    ],
)
def test_bytes_are_those_counted_by_hand(sharding: Sharding, held: int, sent: float) -> None:
    post = plan_of(sharding).of("post")
    assert post.device_bytes == held
    assert post.sent_bytes == pytest.approx(1.02 * sent, abs=1)
    assert post.reason == "as asked"


def test_a_learned_pooling_sends_a_vector_and_a_length_per_place() -> None:
    lengths, vectors = 100 * 10 * 8, 100 * 10 * 64 * 4  # of the post, and of the history's 9 places
    learned = plan_of("row_wise", spec=LEARNED)
    sent = 4 * (IDS * 3 / 4 + lengths * 3 + 2 * 3 * vectors)
    assert learned.of("post").sent_bytes == pytest.approx(1.02 * sent, abs=1)
    pooled = plan_of("row_wise")
    assert learned.dense_parameters == pooled.dense_parameters + 9
    # A device's share of the batch: 8 places more, their lengths, vectors and gradients; and what softmax keeps.
    more = 100 * 8 * (8 + 2 * 64 * 4) + 2 * 100 * 4 * 9 + 16 * 9
    assert learned.device_bytes - pooled.device_bytes == pytest.approx(more, abs=1)


def test_an_id_of_a_paired_tail_may_be_two_rows_in_two_keys() -> None:
    tables = [t.model_dump() | ({"tail": "quotient_remainder"} if t.name == "post" else {}) for t in SPEC.tables]
    paired = plan_of("row_wise", spec=FeedSpec.parse(SPEC.model_dump() | {"tables": tables}))
    assert paired.of("post").lookups == 2 * plan_of("row_wise").of("post").lookups
    assert paired.of("post").sent_bytes == 2 * plan_of("row_wise").of("post").sent_bytes
    assert paired.of("member").sent_bytes == plan_of("row_wise").of("member").sent_bytes


@pytest.mark.parametrize("sharding", ["table_wise", "column_wise", "row_wise", "data_parallel"])
@pytest.mark.filterwarnings("ignore")
def test_memory_is_what_torchrec_estimates(sharding: Sharding) -> None:
    from torchrec.distributed.planner.shard_estimators import calculate_shard_storages
    from torchrec.distributed.planner.types import SharderData, StorageUsageType
    from torchrec.optim import RowWiseAdagrad

    post, num = plan_of(sharding).of("post"), 4
    sizes = {
        "table_wise": [[50_000, 64]],
        "column_wise": [[50_000, 16]] * 4,
        "row_wise": [[12_500, 64]] * num,
        "data_parallel": [[50_000, 64]] * num,
    }[sharding]
    tensor = torch.empty(50_000, 64, device="meta")
    tensor._optimizer_classes = [RowWiseAdagrad]  # type: ignore[attr-defined]
    (largest, *_) = calculate_shard_storages(
        SharderData({}, {}, StorageUsageType.DEFAULT),
        sharding, tensor, "cuda", "fused", sizes, [0] * num, num, num, [1.0], [1.0], 1.0, True, 8, 4,
    )  # fmt: skip
    # TorchRec counts one square for a row that is cut in parts, where fbgemm keeps one for each, and no gradient.
    more = {"column_wise": 50_000 * 4 * 3 // 4, "data_parallel": 50_000 * 64 * 4}.get(sharding, 0)
    assert post.device_bytes == largest.hbm + more


@pytest.mark.parametrize("narrowest", [4, 32])
def test_a_table_goes_where_it_fits_and_the_step_is_the_shortest(narrowest: int) -> None:
    topology = GPUS.model_copy(update={"narrowest": narrowest})
    large = {"member": 2000, "post": 3 * 10**7}
    chosen = make_plan(SPEC, MODEL, large, topology, 65536)
    assert chosen.of("post").sharding == ("column_wise" if narrowest == 4 else "row_wise")
    assert "table-wise does not fit, data-parallel does not fit" in chosen.of("post").reason
    if narrowest == 4:
        for way in ("row_wise", "column_wise"):
            assert chosen.step_s <= make_plan(SPEC, MODEL, large, topology, 65536, asked={"post": way}).step_s
    small = make_plan(SPEC, MODEL, ROWS, topology, 65536)
    assert small.of("member").sharding == "data_parallel"


def test_the_whole_is_the_sum_of_its_parts() -> None:
    plan = plan_of("row_wise")
    dense = 4 * 2 * 3 / 4 * plan.dense_parameters * 4
    assert plan.sent_bytes == pytest.approx(sum(table.sent_bytes for table in plan.tables) + 1.02 * dense, abs=4)
    assert plan.step_s == plan.lookup_s + plan.send_s + plan.dense_s
    assert plan.samples_per_s == pytest.approx(400 / plan.step_s)
    assert plan.of("post").hps_bytes == 50_000 * (8 + 256)
    assert plan.of("post").int8_bytes == 50_000 * (64 + 8)


def test_one_device_holds_all_and_sends_nothing() -> None:
    plan = make_plan(SPEC, MODEL, ROWS, Topology.processes(1), 64)
    assert [table.sharding for table in plan.tables] == ["table_wise"] * 2
    assert {table.reason for table in plan.tables} == {"one device"}
    assert (plan.sent_bytes, plan.send_s) == (0, 0.0)


def test_other_hosts_are_reached_by_the_network() -> None:
    near, far = Topology.gpus(16, devices_per_host=16), Topology.gpus(16, devices_per_host=8)
    assert near.send_s(1e9) == pytest.approx(1e9 / near.link_bandwidth)
    assert far.send_s(15e9) == pytest.approx(7e9 / far.link_bandwidth + 8e9 / far.network_bandwidth)


def test_slices_and_more_devices_save_memory() -> None:
    def held(topology: Topology, micro_batches: int) -> int:
        return make_plan(SPEC, MODEL, ROWS, topology, 10**6, micro_batches, {"post": "row_wise"}).device_bytes

    assert held(GPUS, 8) < held(GPUS, 1)
    assert held(GPUS.model_copy(update={"devices": 8}), 1) < held(GPUS, 1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rows": {"member": 1}}, SpecError, 'table "post" has no number of rows; give one for each of member, post'),
        ({"rows": ROWS | {"pots": 1}}, SpecError, '"pots" is not a table; did you mean "post"'),
        ({"asked": {"menber": "row_wise"}}, SpecError, 'did you mean "member"'),
        ({"asked": {"member": "column_wise"}, "topology": GPUS.model_copy(update={"devices": 1})}, TrainError, "1 dev"),
        ({"rows": ROWS | {"post": 10**9}}, TrainError, r'"post": 1,000,000,000 rows of 64 floats take 60\.5 GiB'),
        (
            {"rows": ROWS | {"post": 10**8}, "asked": {"post": "table_wise"}},
            TrainError,
            "are left on the emptiest of 4",
        ),
    ],
)
def test_what_cannot_be_planned_says_what_would_help(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    arguments = {"rows": ROWS, "topology": GPUS, "batch_size": 1024} | change
    with pytest.raises(error, match=message):
        make_plan(SPEC, MODEL, **arguments)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 64), st.integers(1, 10**8), st.integers(1, 10**8), st.integers(1, 10**6), st.sampled_from([4, 8, 16])
)
def test_every_plan_holds_every_row_and_fits(devices: int, members: int, posts: int, batch: int, host: int) -> None:
    topology = Topology.gpus(devices, devices_per_host=host)
    plan = make_plan(SPEC, MODEL, {"member": members, "post": posts}, topology, batch)
    assert plan.device_bytes <= topology.memory_bytes
    for table in plan.tables:
        held = table.device_bytes * (len(table.devices) or devices)
        assert held >= table.rows * table.dim * 4
        assert set(table.devices) <= set(range(devices))


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = plan_of("column_wise")
    plan.save(tmp_path / "plan.json")
    assert Plan.model_validate_json((tmp_path / "plan.json").read_text()) == plan
