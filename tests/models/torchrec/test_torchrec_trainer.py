"""One rank in this process, with a process group of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from sparsefeed.errors import BadFileError, TrainError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.losses import weighted_cross_entropy
from sparsefeed.models.plan import make_plan
from sparsefeed.models.topology import Topology
from sparsefeed.models.torchrec.checkpoint import Checkpoint, latest, load_model, load_tables, restore, save
from sparsefeed.models.torchrec.columns import Batch, Rows, capacity_rows, open_split, read_part
from sparsefeed.models.torchrec.lookup_keys import lookup_order
from sparsefeed.models.torchrec.tables import RankingModel, embedding_tables
from sparsefeed.models.torchrec.trainer import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:torch.*")
]  # torch and torchrec deprecate parts of each other
MODEL = ModelConfig(hidden=(6,), cross_layers=1, cross_rank=2)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def batches(etl) -> list[Batch]:
    columns = Rows.columns(etl.spec)
    part = open_split(etl.spec, etl.path, "train", columns)[0]
    rows = Rows.from_arrow(etl.spec, read_part(etl.spec, part, columns, capacity_rows(etl.spec, etl.path)))
    return [rows.batch(lookup_order(etl.spec), i, i + 40) for i in range(0, 200, 40)]


def trainer_of(etl, capacities: dict[str, int] | None = None, **config: Any) -> Trainer:
    settings, capacities = TrainConfig(processes=1, **config), capacities or capacity_rows(etl.spec, etl.path)
    plan = make_plan(etl.spec, MODEL, capacities, Topology.processes(1), 40, asked=settings.sharding)
    return Trainer(etl.spec, MODEL, settings, capacities, plan, CPU)


def checkpoint_of(etl, step: int) -> Checkpoint:
    capacities = capacity_rows(etl.spec, etl.path)
    tables = {t.name: (capacities[t.name], t.dim) for t in etl.spec.tables}
    return Checkpoint(step=step, feed=etl.spec, etl="", data="", model=MODEL, config={}, tables=tables)


def tables_of(trainer: Trainer) -> dict[str, np.ndarray]:
    return {shard.table: shard.values.numpy().copy() for shard in trainer.shards}


def test_a_step_is_row_wise_adagrad_on_tables_and_adam_on_the_rest(etl, batches: list[Batch]) -> None:
    trainer = trainer_of(etl)
    spec = etl.spec
    # The reference: the same model unsharded, plain autograd, the two optimisers written out.
    tables = embedding_tables(spec, capacity_rows(spec, etl.path), CPU)
    for name, values in tables_of(trainer).items():
        tables.embedding_bags[name].weight.data.copy_(torch.from_numpy(values))
    dense = DenseModel(spec, MODEL)
    dense.load_state_dict({k: v for k, v in trainer.dense_state().items() if not k.startswith("adam.")})
    reference = RankingModel(spec, tables, dense)
    adam = torch.optim.Adam(dense.parameters(), lr=0.01)
    sums = {name: torch.full((len(bag.weight),), (0.1 / 8192) ** 2) for name, bag in tables.embedding_bags.items()}
    for batch in batches:
        loss = weighted_cross_entropy(reference(batch), batch.labels_BR, batch.weights_BR)
        reference.zero_grad()
        loss.mean().backward()
        adam.step()
        for name, bag in tables.embedding_bags.items():
            gradient = bag.weight.grad
            sums[name] += (gradient**2).mean(dim=1)
            bag.weight.data -= 0.1 * gradient / (sums[name].sqrt() + 1e-8)[:, None]
        got = trainer.step(batch, 0.01, 0.1)
        torch.testing.assert_close(got, loss.detach(), rtol=1e-4, atol=1e-5)
    for name, values in tables_of(trainer).items():
        np.testing.assert_allclose(values, tables.embedding_bags[name].weight.detach().numpy(), atol=1e-3)


def test_the_loss_of_held_out_rows_is_without_dropout(etl, batches: list[Batch]) -> None:
    model = MODEL.model_copy(update={"dropout": 0.5})
    settings, capacities = TrainConfig(processes=1), capacity_rows(etl.spec, etl.path)
    plan = make_plan(etl.spec, model, capacities, Topology.processes(1), 40)
    trainer = Trainer(etl.spec, model, settings, capacities, plan, CPU)
    first = trainer.loss(batches[0])
    torch.testing.assert_close(trainer.loss(batches[0]), first, rtol=0, atol=0)
    assert not torch.equal(trainer.step(batches[0], 0.0, 0.0), trainer.step(batches[0], 0.0, 0.0)), "a step has it"


@pytest.mark.parametrize("micro_batches", [2, 3, 40, 100])
def test_slices_of_a_batch_are_the_whole_batch(etl, batches: list[Batch], micro_batches: int) -> None:
    """More slices than rows, too; after steps of Adam and Adagrad, which divide by small gradients."""
    whole, sliced = trainer_of(etl), trainer_of(etl, micro_batches=micro_batches)
    for batch in batches:
        torch.testing.assert_close(sliced.step(batch, 1e-3, 0.05), whole.step(batch, 1e-3, 0.05), rtol=0, atol=1e-6)
    for name, values in tables_of(sliced).items():
        np.testing.assert_allclose(values, tables_of(whole)[name], atol=1e-6)
    for name, weight in sliced.dense_state().items():
        torch.testing.assert_close(weight, whole.dense_state()[name], rtol=0, atol=1e-6)


def test_products_of_16_bits_train_nearly_the_same_model(etl, batches: list[Batch]) -> None:
    exact, short = trainer_of(etl), trainer_of(etl, dense_precision="bf16")
    losses = [torch.stack([trainer.step(batch, 1e-3, 0.05) for batch in batches]) for trainer in (exact, short)]
    assert not torch.equal(*losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=5e-3)
    assert {weight.dtype for weight in short.dense_state().values()} == {torch.float32}


def test_row_zero_and_rows_no_batch_names_are_never_trained(etl, batches: list[Batch]) -> None:
    trainer = trainer_of(etl)
    before = tables_of(trainer)
    trainer.step(batches[0], 0.01, 0.5)
    after = tables_of(trainer)
    jagged = batches[0].lookups.to_dict()
    for table in etl.spec.tables:
        named = torch.cat([jagged[f.name].values() for f in etl.spec.lookups_of(table.name)]).unique().numpy()
        changed = np.flatnonzero((before[table.name] != after[table.name]).any(axis=1))
        np.testing.assert_array_equal(changed, named)
        assert (after[table.name][0] == 0).all()


def test_a_learning_rate_of_zero_changes_nothing(etl, batches: list[Batch]) -> None:
    trainer = trainer_of(etl)
    before = tables_of(trainer)
    trainer.step(batches[0], 0.0, 0.0)
    for name, values in tables_of(trainer).items():
        np.testing.assert_array_equal(values, before[name])


def test_training_goes_on_from_a_checkpoint_as_if_never_stopped(etl, batches: list[Batch], tmp_path: Path) -> None:
    first = trainer_of(etl)
    for batch in batches[:3]:
        first.step(batch, 0.01, 0.1)
    path = save(tmp_path, checkpoint_of(etl, 3), first.shards, first.dense_state())
    second = trainer_of(etl, seed=99)
    second.load_dense_state(restore(path, second.shards))
    for batch in batches[3:]:
        torch.testing.assert_close(second.step(batch, 0.01, 0.1), first.step(batch, 0.01, 0.1), rtol=0, atol=0)
    for name, values in tables_of(second).items():
        np.testing.assert_array_equal(values, tables_of(first)[name])


def test_a_checkpoint_loads_without_a_trainer_as_what_was_saved(etl, tmp_path: Path) -> None:
    trainer = trainer_of(etl)
    path = save(tmp_path, checkpoint_of(etl, 5), trainer.shards, trainer.dense_state())
    assert latest(tmp_path) == path
    assert path.name == "step-5"
    model, tables = load_model(path, etl.spec)
    assert not model.training
    for name, values in tables_of(trainer).items():
        np.testing.assert_array_equal(tables[name], values)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, trainer.dense_state()[name])


def test_writing_to_loaded_tables_never_reaches_the_files(etl, tmp_path: Path) -> None:
    trainer = trainer_of(etl)
    path = save(tmp_path, checkpoint_of(etl, 1), trainer.shards, trainer.dense_state())
    load_tables(path)["post"][:] = 7
    assert not (load_tables(path)["post"] == 7).any()


def test_the_last_two_checkpoints_are_kept_and_partial_ones_are_none(etl, tmp_path: Path) -> None:
    trainer = trainer_of(etl)
    assert latest(tmp_path) is None
    for step in (8, 9, 10):
        save(tmp_path, checkpoint_of(etl, step), trainer.shards, trainer.dense_state())
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["step-10", "step-9"]
    (folder / ".step-11.partial").mkdir()
    (folder / "step-12").mkdir()  # without its last file
    assert latest(tmp_path) == folder / "step-10"


def test_a_table_that_has_grown_keeps_its_new_rows(etl, tmp_path: Path) -> None:
    small = trainer_of(etl)
    path = save(tmp_path, checkpoint_of(etl, 1), small.shards, small.dense_state())
    grown = trainer_of(etl, {"member": 64, "post": 256, "hashtag": 64}, seed=5)
    before = tables_of(grown)["post"]
    restore(path, grown.shards)
    np.testing.assert_array_equal(tables_of(grown)["post"][:128], tables_of(small)["post"])
    np.testing.assert_array_equal(tables_of(grown)["post"][128:], before[128:])


def test_a_damaged_or_foreign_checkpoint_is_named(etl, spec: FeedSpec, tmp_path: Path) -> None:
    trainer = trainer_of(etl)
    path = save(tmp_path, checkpoint_of(etl, 1), trainer.shards, trainer.dense_state())
    other = FeedSpec.parse(json.loads(spec.dump()) | {"name": "other"})
    with pytest.raises(TrainError, match=r"another spec \(name: tiny there, other asked for\)"):
        load_model(path, other)
    table = path / "tables" / "post.npy"
    whole = table.read_bytes()
    table.write_bytes(whole[:-9])
    with pytest.raises(BadFileError, match=r"post\.npy"):
        load_tables(path)
    table.write_bytes(whole)
    (path / "dense.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(BadFileError, match=r"dense\.safetensors"):
        load_model(path, spec)
    (path / "checkpoint.json").write_text('{"format": 1}')
    with pytest.raises(BadFileError, match=r"checkpoint\.json.*format"):
        load_tables(path)
    with pytest.raises(BadFileError, match="not a checkpoint"):
        load_tables(tmp_path)
