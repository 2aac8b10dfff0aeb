"""The suite `serve` at a small size: what it counts is right, and it measures what the targets ask for."""

from __future__ import annotations

import ast
import mmap
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import tomllib
from tritonclient.grpc import service_pb2

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import floor  # noqa: E402
import identity  # noqa: E402
import large_table  # noqa: E402
import load  # noqa: E402
import results  # noqa: E402
import serve_suite  # noqa: E402
import torch  # noqa: E402

from sparsefeed.models.calibration import Calibration  # noqa: E402
from sparsefeed.models.config import ModelConfig  # noqa: E402
from sparsefeed.models.dense import DenseModel  # noqa: E402
from sparsefeed.models.onnx import export_dense  # noqa: E402
from sparsefeed.workflows.recipe import load_recipe  # noqa: E402
from sparsefeed.workflows.serving.config import ServingConfig  # noqa: E402


def test_the_products_of_the_floor_are_those_that_a_candidate_needs(tmp_path: Path) -> None:
    spec = load_recipe("tiny").feed
    torch.manual_seed(0)
    model = DenseModel(spec, ModelConfig(hidden=(40, 24), cross_layers=2, cross_rank=8))
    export_dense(model, spec, Calibration.identity(spec), tmp_path / "dense.onnx")
    own = 3 * 16 + 3  # three lookups of 16 and three dense features
    dots = 3 * 1 + 3  # with the member's one, and among themselves
    expected = [(own + dots, 40)] * 2 + [(40, 24)] * 2 + [(own, 8), (8, own)] * 2 + [(own + 24 + dots, 4)]
    assert sorted(floor.products_of(tmp_path / "dense.onnx")) == sorted(expected)


def test_the_floor_copies_the_rows_asked_for_and_counts_its_products() -> None:
    table = np.arange(40, dtype=np.float32).reshape(10, 4)
    made = floor.Floor.of([(6, 3), (3, 2)], 5, [np.array([7, 0, 7])], [table], 800)
    assert made.flops == 2 * 5 * (18 + 6)
    out = np.zeros((3, 4), np.float32)
    floor._copy_rows(table, np.array([7, 0, 7]), out)
    np.testing.assert_array_equal(out, table[[7, 0, 7]])
    assert all(seconds > 0 for seconds in made.seconds(5))


def test_goodput_is_of_answers_in_time_alone() -> None:
    outcome = load.Outcome(2.0, [10.0, 20.0, 300.0], [1.0], ["bad"])
    assert outcome.goodput(250) == 1.0
    assert outcome.goodput() == 1.5
    assert outcome.num_requests == 5
    assert outcome.quantile_ms(0.5) == 20.0
    assert np.isnan(load.Outcome(1.0).quantile_ms(0.5))


def test_an_empty_models_repository_has_our_configurations_and_ready_answers(tmp_path: Path) -> None:
    spec = load_recipe("tiny").feed
    tensors = {"KEYS": np.zeros((1, 3), np.int64), "bundle": np.array([b"x"], object)}
    identity.write_identity(spec, ServingConfig(), tensors, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"feed_{step}_identity" for step in ("dense", "hps", "ranker", "transform")
    ]
    ready = np.load(tmp_path / "feed_hps_identity" / "1" / "answers.npz", allow_pickle=False)
    assert list(ready) == ["KEYS"]
    ast.parse((tmp_path / "feed_dense_identity" / "1" / "model.py").read_text())
    assert not (tmp_path / "feed_ranker_identity" / "1" / "model.py").exists()


def test_pages_held_of_a_folder_are_counted(tmp_path: Path) -> None:
    size = 64 * mmap.PAGESIZE
    (tmp_path / "a.npy").write_bytes(b"x" * size)
    with (tmp_path / "a.npy").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:size].count(b"x") == size
        assert serve_suite._held_bytes(tmp_path) == (size, size)
    assert serve_suite._held_bytes(tmp_path) == (0, 0)


def test_a_large_table_is_written_sparse_opened_and_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ROWS", 200_000), ("KEYS", 100), ("CALLS", 3)):
        monkeypatch.setattr(large_table, name, value)
    large_table.write(tmp_path / "large")
    path = tmp_path / "large" / "post.npy"
    assert path.stat().st_size > 40 * 200_000 > 512 * path.stat().st_blocks
    found = large_table.main(tmp_path / "large")
    assert found["file_mb"] == pytest.approx(8.0)
    assert found["open_s"] < 1


def test_every_target_is_of_a_case_that_the_suite_names() -> None:
    source = (ROOT / "benchmarks" / "serve_suite.py").read_text()
    strings = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    told = " ".join(one for one in strings if isinstance(one, str))
    for target in tomllib.loads(results.TARGETS.read_text("utf-8"))["serve"]:
        assert target["metric"] in told
        for word in target["case"].replace("100", "").replace("500", "").replace("2 times", "times").split():
            assert word.strip(",") in told


def test_the_load_is_calls_of_grpc_and_every_status_is_told_apart() -> None:
    """A server of gRPC's own that refuses every third member and fails for every fifth."""
    seen: list[service_pb2.ModelInferRequest] = []

    def infer(request: service_pb2.ModelInferRequest, context: grpc.ServicerContext) -> service_pb2.ModelInferResponse:
        seen.append(request)
        number = int(request.raw_input_contents[0][4:].decode().removeprefix("member"))
        if number % 3 == 0:
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        if number % 5 == 0:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "never")
        return service_pb2.ModelInferResponse(model_name=request.model_name, raw_output_contents=[b"x" * 30_000])

    handler = grpc.unary_unary_rpc_method_handler(
        infer,
        service_pb2.ModelInferRequest.FromString,
        service_pb2.ModelInferResponse.SerializeToString,
    )
    served = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((served,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    generator = load.Generator(f"127.0.0.1:{port}", "m", [(f"member{i}", ["p1", "päst"] * 300) for i in range(1, 16)])
    try:
        outcome = generator.open(300, 0.5)  # requests of twice the window that a connection begins with
        assert outcome.num_requests == 150
        assert (len(outcome.refused_ms), len(outcome.errors)) == (50, 20)
        assert "status 3" in outcome.errors[0]
        assert "never" in outcome.errors[0]
        assert all(latency > 0 for latency in outcome.answered_ms)
        closed = generator.closed(2, 0.3)
        assert closed.num_requests >= 4  # two in flight, and again
        assert closed.seconds >= 0.3
    finally:
        generator.close()
        server.stop(None)
    assert seen[0].inputs[1].shape == [600]
    assert seen[0].raw_input_contents[1][:13] == b"\x02\0\0\0p1\x05\0\0\0p\xc3\xa4"
    with pytest.raises(ValueError, match="one frame of HTTP/2: fewer posts"):
        load.Generator(f"127.0.0.1:{port}", "m", [("member", ["p" * 100] * 200)])
