from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sparsefeed.errors import BundleError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.config import Int8Limits, ModelConfig
from sparsefeed.models.dense import DenseModel
from sparsefeed.models.dense_file import DENSE_FILES
from sparsefeed.models.int8 import check_int8, graph_inputs, held_out_rows, quantise_dense
from sparsefeed.models.onnx import export_dense
from sparsefeed.models.torchrec.columns import Rows
from sparsefeed.models.torchrec.lookup_keys import lookup_order
from sparsefeed.models.torchrec.tables import RankingModel, embedding_tables
from tests.models.conftest import CAPACITY_ROWS, Written
from tests.models.test_onnx import inputs_of, probability_in_torch

WIDE = Int8Limits(probability=1, auc=1, log_loss=1)


@pytest.fixture(scope="module")
def tables(etl: Written) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    rows = {
        table.name: random.normal(size=(CAPACITY_ROWS[table.name], table.dim)).astype(np.float32)
        for table in etl.spec.tables
    }
    for table in rows.values():
        table[0] = 0
    return rows


@pytest.fixture(scope="module")
def folder(etl: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("int8")
    model = DenseModel(etl.spec, ModelConfig(hidden=(32, 16), cross_rank=3, experts=2))
    export_dense(model, etl.spec, Calibration.identity(etl.spec), path / DENSE_FILES["fp32"])
    quantise_dense(path / DENSE_FILES["fp32"], path / DENSE_FILES["int8"])
    return path


def test_only_the_products_of_gated_layers_are_in_8_bits(folder: Path) -> None:
    nodes = onnx.load(str(folder / DENSE_FILES["int8"])).graph.node
    quantised = [node.name for node in nodes if node.op_type == "MatMulInteger"]
    assert len(quantised) == 2 * 2 * 2  # two experts of two layers, value and gate
    assert all("/shared/first." in name or "/shared/rest." in name for name in quantised)
    exact, coarse = (onnx.load(str(folder / file)).graph for file in DENSE_FILES.values())
    assert [one.name for one in exact.input] == [one.name for one in coarse.input]


def test_what_8_bits_change_is_small_but_not_nothing(etl: Written, folder: Path, tables: dict[str, np.ndarray]) -> None:
    rows = held_out_rows(etl.spec, etl.path, CAPACITY_ROWS)
    change = check_int8(etl.spec, folder, DENSE_FILES, rows, tables, WIDE)
    assert change.num_rows == 256
    assert 0 < change.probability < 0.1
    assert 0 <= change.auc < 0.02
    assert 0 <= change.log_loss < 0.02


@pytest.mark.parametrize("name", ["probability", "log_loss"])
def test_a_change_above_its_limit_is_refused_with_all_figures(
    etl: Written, folder: Path, tables: dict[str, np.ndarray], name: str
) -> None:
    rows = held_out_rows(etl.spec, etl.path, CAPACITY_ROWS, num_rows=100)
    with pytest.raises(BundleError, match=rf"raise serving\.int8_limits \({name}\)") as refused:
        check_int8(etl.spec, folder, DENSE_FILES, rows, tables, WIDE.model_copy(update={name: 0.0}))
    assert re.search(r"over 100 held-out rows, probability by .*allowed.*, auc by .*, log_loss by", str(refused.value))


def test_held_out_rows_are_the_graphs_inputs_as_serving_makes_them(etl: Written, tables: dict[str, np.ndarray]) -> None:
    some = pq.read_table(etl.path / "eval").slice(0, 15)
    rows = Rows.from_arrow(etl.spec, pa.concat_tables([some, some]).combine_chunks())
    parts = list(graph_inputs(etl.spec, rows, tables, 20))
    assert np.sort(np.concatenate([numbers for numbers, _ in parts])).tolist() == list(range(30))
    assert sorted(len(numbers) for numbers, _ in parts) == [1] * 20 + [2] * 5
    (members, _), (posts, starts), (ids, offsets) = (rows.lookups[name] for name in ("member_id", "post_id", "clicked"))
    for numbers, inputs in parts:
        assert {name: (value.dtype, value.shape) for name, value in inputs.items()} == {
            name: (value.dtype, value.shape) for name, value in inputs_of(etl.spec, len(numbers)).items()
        }
        np.testing.assert_array_equal(inputs["emb_post_id"], tables["post"][posts[starts[numbers]]])
        for i in numbers:
            np.testing.assert_array_equal(inputs["emb_member_id"], tables["member"][members[[i]]])
            own = ids[offsets[i] : offsets[i + 1]]
            assert inputs["len_clicked"] == [len(own)]
            np.testing.assert_array_equal(inputs["emb_clicked"][0, : len(own)], tables["post"][own])
            assert not inputs["emb_clicked"][0, len(own) :].any()


def test_a_graph_of_something_else_is_refused(etl: Written, tmp_path: Path) -> None:
    empty = onnx.helper.make_model(onnx.helper.make_graph([], "nothing", [], []))
    onnx.save(empty, str(tmp_path / "dense.onnx"))
    with pytest.raises(BundleError, match="has no gated layer to quantise"):
        quantise_dense(tmp_path / "dense.onnx", tmp_path / "dense.int8.onnx")


def test_the_exact_graph_beside_it_is_the_models(etl: Written, folder: Path) -> None:
    torch.manual_seed(0)
    model = DenseModel(etl.spec, ModelConfig(hidden=(32, 16), cross_rank=3, experts=2)).eval()
    inputs = inputs_of(etl.spec, 20)
    expected = probability_in_torch(etl.spec, model, Calibration.identity(etl.spec), inputs)
    errors = {}
    for name, file in DENSE_FILES.items():
        session = onnxruntime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"])
        errors[name] = float(np.abs(session.run(["probability"], inputs)[0] - expected).max())
    assert errors["fp32"] <= 1e-6 < errors["int8"] < 0.1


def test_learned_places_and_paired_tails_are_the_graphs_inputs_as_the_trainer_reads_them(
    etl: Written, paired: FeedSpec, tables: dict[str, np.ndarray], tmp_path: Path
) -> None:
    whole = pq.read_table(etl.path / "eval").combine_chunks()
    for name in ("post_id", "clicked", "hashtags", "topics"):
        column = whole[name].combine_chunks()
        ids = column.to_numpy() if name == "post_id" else column.values.to_numpy()
        coded = pa.array(np.where(ids < 30, -1 - ids % 16, ids))
        lists = coded if name == "post_id" else pa.ListArray.from_arrays(column.offsets, coded)
        whole = whole.set_column(whole.column_names.index(name), name, lists)
    rows = Rows.from_arrow(paired, whole)
    torch.manual_seed(0)
    bags = embedding_tables(paired, CAPACITY_ROWS, torch.device("cpu"))
    for name, values in tables.items():
        bags.embedding_bags[name].weight.data = torch.from_numpy(values)
    model = DenseModel(paired, ModelConfig(hidden=(8, 4), cross_rank=3)).eval()
    model.pools["of_clicked"].place_L.data.normal_()
    with torch.inference_mode():
        wanted = torch.sigmoid(RankingModel(paired, bags, model)(rows.batch(lookup_order(paired), 0, len(rows))))
    calibration = Calibration.identity(paired)
    export_dense(model, paired, calibration, tmp_path / "dense.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "dense.onnx", providers=["CPUExecutionProvider"])
    got = np.zeros(wanted.shape, np.float32)
    for numbers, inputs in graph_inputs(paired, rows, tables, 50):
        (got[numbers],) = session.run(["probability"], inputs)
    np.testing.assert_allclose(got, wanted.numpy(), atol=2e-6)
