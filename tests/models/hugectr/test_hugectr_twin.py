"""The recorded graph, computed in numpy, against the torch model on the same rows and weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparsefeed.etl import hugectr_view
from sparsefeed.etl.hugectr_view import mapped_rows
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.hugectr.exchange import dense_arrays, dense_state
from sparsefeed.models.losses import weighted_cross_entropy
from sparsefeed.models.torchrec.columns import Rows, capacity_rows
from sparsefeed.models.torchrec.lookup_keys import lookup_order
from sparsefeed.models.torchrec.tables import RankingModel, embedding_tables
from tests import logs
from tests.models.hugectr.conftest import CONFIG, Script
from tests.models.hugectr.scripts import MODEL, plan_of
from tests.models.hugectr.twin import Twin

CPU = torch.device("cpu")
ROWS = 60


def rows_of(folder: Path, split: str = "train") -> pa.Table:
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / split).glob("*.parquet"))])


def hugectr_batch(data: Path, split: str = "train", num: int | None = ROWS) -> dict[str, Any]:
    """What HugeCTR's reader hands the graph: labels and dense side by side, ids of a lookup in as many columns."""
    said = json.loads((data / "hugectr.json").read_text())
    rows = mapped_rows(data / f"{split}.bin", said)[:num]
    batch: dict[str, Any] = {"label": rows["labels"], "dense": rows["dense"]}
    at = 0
    padding = [{"name": f"_padding_{name}", "max_length": 1} for name in said["padded_tables"]]
    for lookup in (*said["lookups"], *padding):
        batch[lookup["name"]] = np.asarray(rows["ids"][:, at : at + lookup["max_length"]])
        at += lookup["max_length"]
    assert at == rows["ids"].shape[1]
    return batch


def both(spec: FeedSpec, views: dict[str, Path], script: Script, model: ModelConfig = MODEL) -> tuple[Any, Any, Any]:
    """The torch model in float64, the twin with its weights, and a loss of the same rows for each."""
    torch.manual_seed(3)
    capacities = capacity_rows(spec, views["torchrec"])
    tables, dense = embedding_tables(spec, capacities, CPU), DenseModel(spec, model)
    for table in tables.parameters():
        torch.nn.init.normal_(table)
    for parameter in dense.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ranking = RankingModel(spec, tables.double(), dense.double())
    batch = Rows.from_arrow(spec, rows_of(views["torchrec"]).slice(0, ROWS)).batch(lookup_order(spec), 0, ROWS)
    batch = type(batch)(
        batch.labels_BR.double(), batch.weights_BR.double(), batch.member_dense_BM.double(),
        batch.candidate_dense_BC.double(), batch.lookups,
    )  # fmt: skip
    graph = script(views["hugectr"], plan_of(spec, views["hugectr"], 1, model))
    flat = np.concatenate([array.ravel() for array in dense_arrays(dense)])
    rows = {t.name: tables.embedding_bags[t.name].weight.detach().numpy() for t in spec.tables}
    twin = Twin(graph, flat, rows)
    for table in twin.tables.values():
        table[0] = 7.0  # padding may be anything
    return ranking, batch, twin


@pytest.mark.parametrize("model", [MODEL, ModelConfig(hidden=(5,), gate=False, cross_layers=0)], ids=["gated", "plain"])
def test_scores_and_the_weighted_loss_are_the_torch_models(
    views: dict[str, Path], script: Script, model: ModelConfig
) -> None:
    spec = logs.spec()
    ranking, batch, twin = both(spec, views, script, model)
    given = hugectr_batch(views["hugectr"])
    logits_BR = ranking(batch)
    np.testing.assert_allclose(twin.forward(given)["logits"], logits_BR.detach().numpy(), atol=1e-5)
    losses_R = weighted_cross_entropy(logits_BR, batch.labels_BR, batch.weights_BR)
    assert len(np.unique(batch.weights_BR)) > 3, "the rows are weighted"
    assert twin.loss(given) == pytest.approx(float(losses_R.mean().detach()), abs=1e-6)


def test_its_gradient_is_that_of_the_mean_of_w_times_cross_entropy(views: dict[str, Path], script: Script) -> None:
    spec = logs.spec()
    ranking, batch, twin = both(spec, views, script)
    given = hugectr_batch(views["hugectr"])
    weighted_cross_entropy(ranking(batch), batch.labels_BR, batch.weights_BR).mean().backward()
    with torch.no_grad():
        for parameter in ranking.dense.parameters():
            parameter.copy_(parameter.grad)
    wanted = np.concatenate([array.ravel() for array in dense_arrays(ranking.dense)])
    random, step = np.random.default_rng(0), 1e-5
    for at in random.choice(len(wanted), 60, replace=False):
        found = []
        for sign in (1, -1):
            twin.flat[at] += sign * step
            found.append(twin.loss(given))
            twin.flat[at] -= sign * step
        assert (found[0] - found[1]) / (2 * step) == pytest.approx(wanted[at], abs=1e-6)
    for table in spec.tables:
        gradient = ranking.tables.embedding_bags[table.name].weight.grad.numpy()
        rows = twin.tables[table.name]
        touched = np.argwhere(np.abs(gradient) > 0)
        assert 0 not in touched[:, 0]
        for row, column in [*touched[random.choice(len(touched), 10, replace=False)], (0, 1)]:  # nor learns padding
            found = []
            for sign in (1, -1):
                rows[row, column] += sign * step
                found.append(twin.loss(given))
                rows[row, column] -= sign * step
            assert (found[0] - found[1]) / (2 * step) == pytest.approx(gradient[row, column], abs=1e-6), table.name


def test_bit_columns_weigh_as_exactly_as_float32(
    logs_folder: Path, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hugectr_view, "MAX_COLUMNS", 1)
    spec, folders = logs.spec(), {}
    for view in ("torchrec", "hugectr"):
        folders[view] = tmp_path / view
        run(spec, logs_folder, folders[view], CONFIG.model_copy(update={"view": view}))
    said = json.loads((folders["hugectr"] / "hugectr.json").read_text())
    assert [len(label["weights"]) for label in said["labels"]] == [24, 24]
    ranking, batch, twin = both(spec, folders, script)
    given = hugectr_batch(folders["hugectr"])
    losses_R = weighted_cross_entropy(ranking(batch), batch.labels_BR, batch.weights_BR)
    assert twin.loss(given) == pytest.approx(float(losses_R.mean().detach()), rel=1e-6)


def test_dense_weights_go_there_and_back_unchanged() -> None:
    for model in (MODEL, ModelConfig(hidden=(5,), gate=False, cross_layers=0)):
        dense = DenseModel(logs.spec(), model)
        state = dense_state(dense, dense_arrays(dense))
        assert {name: value.shape for name, value in state.items()} == {
            name: value.shape for name, value in dense.state_dict().items()
        }
        for name, value in dense.state_dict().items():
            assert torch.equal(state[name], value), name
