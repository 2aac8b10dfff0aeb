"""Every sharding, on several ranks, against plain autograd on one process; whole trainings of one batch an epoch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparsefeed.errors import TrainError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.losses import weighted_cross_entropy
from sparsefeed.models.plan import Plan
from sparsefeed.models.torchrec.checkpoint import load_model, load_tables
from sparsefeed.models.torchrec.columns import Batch, Rows, capacity_rows, open_split, read_part
from sparsefeed.models.torchrec.lookup_keys import lookup_order
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.models.torchrec.tables import RankingModel, embedding_tables, first_values
from sparsefeed.models.torchrec.train import train
from tests.models.conftest import Written

MODEL = ModelConfig(hidden=(8,), cross_layers=1, cross_rank=4)
STEPS, ROWS = 4, 1024
WHOLE = TrainConfig(
    processes=1, batch_size=ROWS, epochs=STEPS, log_every=1, table_learning_rate=0.2, warmup=0.5, dense_decay=0.6
)
CPU = torch.device("cpu")
Tables = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def reference(etl: Written, learned: FeedSpec) -> Callable[[int, bool], tuple[list[list[float]], Tables, DenseModel]]:
    """The same training by autograd, the posts' columns counted in so many parts, the pooling learned or not."""

    @cache
    def trained(parts: int, learns: bool) -> tuple[list[list[float]], Tables, DenseModel]:
        spec, capacities = learned if learns else etl.spec, capacity_rows(etl.spec, etl.path)
        columns = Rows.columns(spec)
        read = [read_part(spec, part, columns, capacities) for part in open_split(spec, etl.path, "train", columns)]
        rows = [Rows.from_arrow(spec, table) for table in read]
        batches = [part.batch(lookup_order(spec), 0, len(part)) for part in rows]
        torch.manual_seed(0)
        dense = DenseModel(spec, MODEL)
        weighted = sum((b.weights_BR * b.labels_BR).double().sum(0) for b in batches)
        dense.start_at((weighted / sum(b.weights_BR.double().sum(0) for b in batches)).tolist())
        tables = embedding_tables(spec, capacities, CPU)
        for i, table in enumerate(spec.tables):
            first = first_values(0, i, 0, capacities[table.name], table.dim, MODEL.table_init)
            tables.embedding_bags[table.name].weight.data.copy_(torch.from_numpy(first))
        model, adam = RankingModel(spec, tables, dense), torch.optim.Adam(dense.parameters(), lr=0.0)
        cut = {table.name: parts if table.name == "post" else 1 for table in spec.tables}
        squares = {name: torch.full((capacities[name], cut[name]), (0.1 / ROWS) ** 2) for name in cut}
        curve = []
        for step in range(STEPS):
            rising = min(1.0, (step + 1) / (WHOLE.warmup * STEPS))
            falling = min(1.0, (STEPS - step) / (WHOLE.dense_decay * STEPS))
            model.zero_grad()
            losses = sum(loss_of(model, batch) * len(batch.labels_BR) for batch in batches) / ROWS
            losses.mean().backward()
            curve.append(losses.tolist())
            for group in adam.param_groups:
                group["lr"] = WHOLE.dense_learning_rate * min(rising, falling)
            adam.step()
            for name, bag in tables.embedding_bags.items():
                gradient = bag.weight.grad.view(capacities[name], cut[name], -1)
                squares[name] += gradient.square().mean(dim=2)
                change = gradient / (squares[name].sqrt() + 1e-8).unsqueeze(2)
                bag.weight.data -= WHOLE.table_learning_rate * rising * change.view_as(bag.weight)
        return curve, {name: bag.weight.detach().numpy() for name, bag in tables.embedding_bags.items()}, dense

    return trained


def loss_of(model: RankingModel, batch: Batch) -> torch.Tensor:
    return weighted_cross_entropy(model(batch), batch.labels_BR, batch.weights_BR)


@pytest.mark.parametrize(
    ("sharding", "processes", "micro_batches", "pooling"),
    [
        ("table_wise", 1, 5, "learned"),  # and a mean and a sum beside it
        ("table_wise", 2, 1, "mean"),
        ("row_wise", 4, 2, "learned"),
        ("data_parallel", 2, 3, "learned"),
        ("column_wise", 2, 1, "learned"),
        ("mixed", 4, 2, "learned"),
    ],
)
def test_tables_are_trained_as_without_sharding(
    etl: Written,
    learned: FeedSpec,
    reference: Callable[[int, bool], tuple[list[list[float]], Tables, DenseModel]],
    tmp_path: Path,
    sharding: str,
    processes: int,
    micro_batches: int,
    pooling: str,
) -> None:
    spec = learned if pooling == "learned" else etl.spec
    asked = dict.fromkeys(("member", "post", "hashtag"), sharding)
    if sharding == "column_wise":  # the others are too narrow to be cut
        asked = {"post": "column_wise", "member": "table_wise", "hashtag": "row_wise"}
    elif sharding == "mixed":
        asked = {"member": "data_parallel", "post": "column_wise", "hashtag": "row_wise"}
    update = {"processes": processes, "micro_batches": micro_batches, "sharding": asked}
    result = train(spec, MODEL, WHOLE.model_copy(update=update), etl.path, tmp_path)
    plan = Plan.model_validate_json((tmp_path / "plan.json").read_text())
    assert {table.name: table.sharding for table in plan.tables} == asked
    curve, tables, dense = reference(2 if asked["post"] == "column_wise" else 1, pooling == "learned")
    got = [line["loss"] for line in map(json.loads, (tmp_path / "curve.jsonl").read_text().splitlines())]
    np.testing.assert_allclose([list(loss.values()) for loss in got], curve, atol=2e-6)
    trained = load_tables(result.checkpoint)
    for name, values in tables.items():
        np.testing.assert_allclose(trained[name], values, atol=2e-4)
    got_dense = load_model(result.checkpoint, spec)[0].state_dict()
    for name, weight in dense.state_dict().items():
        np.testing.assert_allclose(got_dense[name], weight, atol=2e-4)
    if pooling == "learned":
        place_L = got_dense["pools.of_clicked.place_L"].numpy()
        assert (np.abs(place_L) > 1e-4).all(), "every place was learned"
    assert len(Scorer(spec, result.checkpoint).score(etl.path / "eval"))


def test_a_paired_tail_is_trained_by_two_ranks_as_by_one(etl: Written, learned: FeedSpec, tmp_path: Path) -> None:
    """Every post and hashtag below 20 becomes a code, so that rows of both halves are read by lists and ids alike."""
    tables = [
        t.model_dump() | ({"tail": "quotient_remainder", "tail_rows": 10} if t.name != "member" else {})
        for t in learned.tables
    ]
    spec, data = FeedSpec.parse(learned.model_dump() | {"tables": tables}), tmp_path / "etl"
    shutil.copytree(etl.path, data)
    for path in data.glob("*/*.parquet"):
        table = pq.read_table(path)
        for name in ("post_id", "clicked", "hashtags", "topics"):
            column = table[name].combine_chunks()
            ids = column.to_numpy() if name == "post_id" else column.values.to_numpy()
            coded = pa.array(np.where(ids < 20, -1 - 7 * ids % 25, ids))
            lists = coded if name == "post_id" else pa.ListArray.from_arrays(column.offsets, coded)
            table = table.set_column(table.column_names.index(name), name, lists)
        pq.write_table(table, path, row_group_size=200)
    config = WHOLE.model_copy(update={"sharding": dict.fromkeys(("member", "post", "hashtag"), "table_wise")})
    one = train(spec, MODEL, config, data, tmp_path / "one")
    sharding = {"member": "data_parallel", "post": "row_wise", "hashtag": "row_wise"}
    update = {"processes": 2, "micro_batches": 2, "sharding": sharding}
    two = train(spec, MODEL, config.model_copy(update=update), data, tmp_path / "two")
    trained = [load_tables(run.checkpoint) for run in (one, two)]
    for i, table in enumerate(spec.tables):
        np.testing.assert_allclose(trained[1][table.name], trained[0][table.name], atol=2e-4)
        first = first_values(0, i, 0, len(trained[0][table.name]), table.dim, MODEL.table_init)
        if table.paired_tail:
            assert (np.abs(trained[0][table.name] - first)[2:12].max(axis=1) > 0.01).all(), "both halves have learned"
    scores = [Scorer(spec, run.checkpoint).score(data / "eval") for run in (one, two)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)


def test_a_sharding_that_cannot_be_is_refused_before_a_rank_starts(etl: Written, tmp_path: Path) -> None:
    config = WHOLE.model_copy(update={"processes": 2, "sharding": {"member": "column_wise"}})
    with pytest.raises(TrainError, match=r'table "member" cannot be column-wise: 2 devices, dim 4'):
        train(etl.spec, MODEL, config, etl.path, tmp_path)
    assert not list(tmp_path.iterdir())


STILL = {"dense_learning_rate": 1e-30, "table_learning_rate": 1e-30, "epochs": 1}


@pytest.mark.parametrize("processes", [1, 3])
def test_a_checkpoint_is_taken_up_by_other_ranks_and_another_sharding(
    etl: Written, tmp_path: Path, processes: int
) -> None:
    """2 -> 1 and 3; a rate too small to move a float shows what was taken up, rows and squares."""
    cut = {"post": "column_wise", "member": "data_parallel", "hashtag": "table_wise"}
    two = {"processes": 2, "sharding": cut, "batch_size": 960}
    first = train(etl.spec, MODEL, WHOLE.model_copy(update=two), etl.path, tmp_path / "first")
    other = {"processes": processes, "batch_size": 960, **STILL}
    other["sharding"] = dict.fromkeys(cut, "row_wise" if processes > 1 else "table_wise")
    second = train(
        etl.spec, MODEL, WHOLE.model_copy(update=other), etl.path, tmp_path / "second", start_from=first.checkpoint
    )
    before, after = load_tables(first.checkpoint), load_tables(second.checkpoint)
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    scores = [Scorer(etl.spec, run.checkpoint).score(etl.path / "eval") for run in (first, second)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-6)
    squares = [np.load(run.checkpoint / "optimizer" / "post.npy").reshape(128, -1) for run in (first, second)]
    assert [array.shape[1] for array in squares] == [2, 1]
    assert (squares[1][:, 0] >= squares[0].mean(axis=1)).all()
    np.testing.assert_allclose(squares[1][:, 0], squares[0].mean(axis=1), rtol=0.5, atol=1e-3)
    back = train(
        etl.spec, MODEL, WHOLE.model_copy(update=two | STILL), etl.path, tmp_path / "back", start_from=second.checkpoint
    )
    for name, values in load_tables(back.checkpoint).items():
        np.testing.assert_array_equal(values, before[name])


def test_a_learned_pooling_goes_on_as_if_it_had_not_stopped(etl: Written, learned: FeedSpec, tmp_path: Path) -> None:
    config = WHOLE.model_copy(update={"processes": 2, "batch_size": 256, "checkpoint_every_s": 1e-9})
    whole = train(learned, MODEL, config, etl.path, tmp_path / "whole")

    def interrupt(done: int, total: int, what: str) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(learned, MODEL, config, etl.path, tmp_path / "cut", interrupt)
    cut = train(learned, MODEL, config, etl.path, tmp_path / "cut", resume=True)
    assert cut.step == whole.step
    wanted, got = (load_model(run.checkpoint, learned)[0].state_dict() for run in (whole, cut))
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, rtol=0, atol=0)


def test_a_run_goes_on_with_another_number_of_ranks(etl: Written, tmp_path: Path) -> None:
    config = WHOLE.model_copy(update={"processes": 2, "batch_size": 240, "checkpoint_every_s": 1e-9})

    def interrupt(done: int, total: int, what: str) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(etl.spec, MODEL, config, etl.path, tmp_path, interrupt)
    result = train(
        etl.spec, MODEL, config.model_copy(update={"processes": 3, "micro_batches": 2}), etl.path, tmp_path, resume=True
    )
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, result.step + 1))
    assert lines[-1]["loss"]["click"] < lines[0]["loss"]["click"]


def test_a_table_that_doubled_is_taken_up_by_ranks_that_hold_new_rows_alone(etl: Written, tmp_path: Path) -> None:
    rows = {"member": "row_wise", "post": "row_wise", "hashtag": "row_wise"}
    config = WHOLE.model_copy(update={"processes": 2, "sharding": rows})
    first = train(etl.spec, MODEL, config, etl.path, tmp_path / "first")
    grown = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    said = json.loads((grown / "etl.json").read_text())
    said["capacity_rows"] = {name: 2 * number for name, number in said["capacity_rows"].items()}
    (grown / "etl.json").write_text(json.dumps(said))
    still = config.model_copy(update=STILL)
    second = train(etl.spec, MODEL, still, grown, tmp_path / "second", start_from=first.checkpoint)
    before, after = load_tables(first.checkpoint), load_tables(second.checkpoint)
    for name, values in before.items():
        assert len(after[name]) == 2 * len(values)
        np.testing.assert_array_equal(after[name][: len(values)], values)


def test_a_run_that_is_beyond_the_end_on_other_ranks_ends(etl: Written, tmp_path: Path) -> None:
    """1024 rows: two batches of 512 on one rank, one a rank of 342 on three, of which a row is left out."""
    config = WHOLE.model_copy(update={"batch_size": 1023, "epochs": 3, "checkpoint_every_s": 1e-9})

    def interrupt(done: int, total: int, what: str) -> None:
        if done >= 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(etl.spec, MODEL, config, etl.path, tmp_path, interrupt)
    resumed = train(etl.spec, MODEL, config.model_copy(update={"processes": 3}), etl.path, tmp_path, resume=True)
    assert resumed.step >= 3
