"""Bundles of embedding tables alone, served by their lookup alone, for the tests of the native one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import np_to_triton_dtype

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import open_version, publish_version
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.models.store.store import ParameterStore, write_index, write_tables
from sparsefeed.workflows.serving.export import export
from tests import bundles
from tests.workflows.serving.conftest import config

SHAPES = {"member": (300, 4), "tag": (70, 20), "post": (5000, 64)}  # rows of the first training, dim
CAPACITY = {"member": 300, "tag": 128, "post": 8192}  # of the versions that deltas changed
SPEC = FeedSpec.parse(
    {
        "name": "native",
        "tables": [{"name": name, "dim": dim, "tail_rows": 4} for name, (_, dim) in SHAPES.items()],
        "features": [
            {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
            {"kind": "ids", "name": "tags", "table": "tag", "side": "candidate", "max_length": 3},
            {"kind": "id", "name": "post_id", "table": "post", "side": "candidate"},
        ],
        "responses": [{"name": "like", "column": "like", "score_weight": 1.0}],
        "key_seed": 7,
    }
)


def rows_of(name: str, num_rows: int, seed: int) -> NDArray[np.float32]:
    """Rows of very different size, so that subnormal fp16 and coarse int8 values are among them; row 0 zero."""
    random = np.random.default_rng([seed, num_rows])
    dim = SHAPES[name][1]
    rows = random.normal(size=(num_rows, dim)) * 10.0 ** random.integers(-7, 3, size=(num_rows, 1))
    rows[0] = 0
    return rows.astype(np.float32)


def fill_tables(folder: Path, row_format: RowFormat, is_changed: bool) -> None:
    """Tables of one training, or with rows replaced and added as a delta does it; `member` has no overlay then."""
    write_tables(
        folder / "tables", {n: rows_of(n, rows, 1) for n, (rows, _) in SHAPES.items()}, row_format, list(SHAPES)
    )
    if not is_changed:
        return
    trained = folder / "trained"
    (folder / "tables").rename(trained)
    (folder / "tables").mkdir()
    for name, table in ParameterStore.open(trained).table_by_name.items():
        random = np.random.default_rng(len(name))
        share = 0 if name == "member" else 9
        changed = np.sort(random.choice(np.arange(1, CAPACITY[name]), table.rows * share // 50, replace=False))
        values = rows_of(name, len(changed) + 1, 2)[1:]
        table.replace_rows(folder / "tables", changed, values, CAPACITY[name])
    write_index(folder / "tables", CAPACITY)
    shutil.rmtree(trained)


def publish(root: Path, id: str, row_format: RowFormat, is_changed: bool = False) -> None:
    def build(folder: Path) -> None:
        fill_tables(folder, row_format, is_changed)
        bundles.fill_dense(folder, 0)
        (folder / "ids").mkdir()
        (folder / "spec.json").write_text(SPEC.dump())
        bundles.manifest(id, row_format=row_format).save(folder)

    publish_version(root, id, build)


def export_lookup(
    root: Path, version: str, out: Path, declared: tuple[int, int, int] | None = None, **settings: Any
) -> None:
    """Export a version, and make its ensemble one of the lookup alone: the other steps would only cost a start."""
    row_format = open_version(root, version).manifest.row_format
    export(root, version, config(row_format=row_format, **settings), out)
    if declared:
        declare(out, version, *declared)
    path = out / f"feed_ranker_{version}" / "config.pbtxt"
    ensemble = text_format.Parse(path.read_text(), pb.ModelConfig())
    lookup = config_of(out, version)
    for field in ("input", "output"):
        ensemble.ClearField(field)
        getattr(ensemble, field).extend(getattr(lookup, field))
    (step,) = [one for one in ensemble.ensemble_scheduling.step if one.model_name == lookup.name]
    ensemble.ensemble_scheduling.ClearField("step")
    ensemble.ensemble_scheduling.step.append(step)
    path.write_text(text_format.MessageToString(ensemble))


def config_of(out: Path, version: str) -> Any:
    return text_format.Parse((out / f"feed_hps_{version}" / "config.pbtxt").read_text(), pb.ModelConfig())


def declare(out: Path, version: str, keys: int, num_keys: int, rank: int) -> None:
    """Let Triton pass tensors of another type or rank on to the lookup, which it would refuse by itself."""
    lookup = config_of(out, version)
    for tensor, data_type in zip(lookup.input, (keys, num_keys), strict=True):
        tensor.data_type = data_type
        tensor.dims[:] = [-1] * rank
    lookup.ClearField("model_warmup")
    (out / f"feed_hps_{version}" / "config.pbtxt").write_text(text_format.MessageToString(lookup))


def ask(client: grpc.InferenceServerClient, version: str, keys: Any, num_keys: Any) -> NDArray[np.float32]:
    inputs = []
    for name, value in (("KEYS", keys), ("NUMKEYS", num_keys)):
        tensor = grpc.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    answer = client.infer(f"feed_hps_{version}", inputs).as_numpy("OUTPUT0")
    assert answer is not None
    return answer


def drawn(rows: Sequence[int], num_keys: Sequence[int], seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """KEYS and NUMKEYS of random rows."""
    random = np.random.default_rng(seed)
    parts = [random.integers(0, high, count) for high, count in zip(rows, num_keys, strict=True)]
    return np.concatenate(parts)[None], np.array([num_keys], np.int32)
