"""The native lookup against the Python step, in the real tritonserver: the same bits, the same words."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from sparsefeed.errors import ServeError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import open_version, publish_version
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.models.store.store import ParameterStore, write_index, write_tables
from sparsefeed.native import library
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.control import ModelControl
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from tests import bundles
from tests.workflows.serving.conftest import config
from tests.workflows.serving.feed import Feed, requests

pytestmark = pytest.mark.triton

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
ROW_FORMATS: tuple[RowFormat, ...] = ("fp32", "fp16", "int8")
# What the inputs are declared as (types of KEYS and NUMKEYS, rank), where it is not what they are.
TWINS: dict[str, tuple[int, int, int] | None] = {
    "python": None,
    "native": None,
    "python-typed": (pb.TYPE_INT32, pb.TYPE_INT64, 2),
    "native-typed": (pb.TYPE_INT32, pb.TYPE_INT64, 2),
    "python-flat": (pb.TYPE_INT64, pb.TYPE_INT32, 1),
    "native-flat": (pb.TYPE_INT64, pb.TYPE_INT32, 1),
}
VERSIONS = [name for row_format in ROW_FORMATS for name in (row_format, f"{row_format}-changed")]


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


@pytest.fixture(scope="module", autouse=True)
def native_library(native_folder: Path) -> Iterator[Path]:
    """Built by g++; taken away afterwards, so that other modules' `auto` stays Python."""
    assert library.built() is None
    made = library.build()
    assert library.built() == made == library.build()
    yield made
    shutil.rmtree(native_folder)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version per row format, and one of each that deltas changed; TWINS are int8-changed again."""
    folder = tmp_path_factory.mktemp("bundles")
    for row_format in ROW_FORMATS:
        publish(folder, row_format, row_format)
        publish(folder, f"{row_format}-changed", row_format, is_changed=True)
    for name in TWINS:
        publish(folder, name, "int8", is_changed=True)
    return folder


@pytest.fixture(scope="module")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """One server of every version's lookup, native by default, and of both lookups as TWINS declares them."""
    out = tmp_path_factory.mktemp("serving")
    for version in VERSIONS:
        export_lookup(root, version, out, instances={"hps": 2})
    for name, declared in TWINS.items():
        export_lookup(root, name, out, declared, lookup_backend=name.split("-")[0])
    with TritonServer(out, [*VERSIONS, *TWINS], config()) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: TritonServer) -> Iterator[grpc.InferenceServerClient]:
    with grpc.InferenceServerClient(server.grpc_url) as one:
        yield one


def ask(client: grpc.InferenceServerClient, version: str, keys: Any, num_keys: Any) -> NDArray[np.float32]:
    inputs = []
    for name, value in (("KEYS", keys), ("NUMKEYS", num_keys)):
        tensor = grpc.InferInput(name, list(value.shape), np_to_triton_dtype(value.dtype))
        tensor.set_data_from_numpy(value)
        inputs.append(tensor)
    answer = client.infer(f"feed_hps_{version}", inputs).as_numpy("OUTPUT0")
    assert answer is not None
    return answer


def refusal(client: grpc.InferenceServerClient, version: str, keys: Any, num_keys: Any) -> tuple[str, str]:
    """Triton's code, and the message with one name for the bundles that differ in nothing else."""
    with pytest.raises(InferenceServerException) as caught:
        ask(client, version, keys, num_keys)
    return str(caught.value.status()), str(caught.value.message()).replace(version, "BUNDLE")


def drawn(rows: Sequence[int], num_keys: Sequence[int], seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """KEYS and NUMKEYS of random rows."""
    random = np.random.default_rng(seed)
    parts = [random.integers(0, high, count) for high, count in zip(rows, num_keys, strict=True)]
    return np.concatenate(parts)[None], np.array([num_keys], np.int32)


def test_the_deployed_lookup_is_the_native_one_and_knows_its_tables(server: TritonServer, root: Path) -> None:
    out = server._repository
    assert config_of(out, "int8-changed").backend == "sparsefeed"
    assert config_of(out, "python").backend == "python"
    assert [path.name for path in (out / "feed_hps_int8-changed" / "1").iterdir()] == ["tables.txt"]
    assert (out / "feed_hps_int8-changed" / "1" / "tables.txt").read_text().splitlines() == [
        "sparsefeed feed_hps 1",
        "bundle int8-changed",
        f"folder {root.resolve()}/versions/int8-changed/tables",
        "table member 4 300 int8 0",
        "table tag 20 128 int8 12",
        "table post 64 8192 int8 900",
    ]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_row_of_every_table_has_the_python_steps_bits(
    client: grpc.InferenceServerClient, root: Path, version: str
) -> None:
    store = ParameterStore.open(open_version(root, version).tables)
    assert {t.name: bool(len(t.overlay_rows)) for t in store.tables} == {
        "member": False, "tag": "changed" in version, "post": "changed" in version
    }  # fmt: skip
    rows = [table.rows for table in store.tables]
    keys = np.concatenate([np.random.default_rng(1).permutation(count) for count in rows])[None]
    num_keys = np.array([rows], np.int32)
    answer = ask(client, version, keys, num_keys)
    np.testing.assert_array_equal(answer.view(np.uint32), store.lookup(keys[0], num_keys[0]).view(np.uint32))
    assert np.count_nonzero(answer) > answer.size // 2


@pytest.mark.parametrize("num_keys", [(0, 0, 0), (1, 0, 0), (0, 0, 1), (3, 7, 11), (0, 13, 12), (1, 1500, 500)])
def test_requests_of_any_size_have_the_python_steps_bits(
    client: grpc.InferenceServerClient, root: Path, num_keys: tuple[int, ...]
) -> None:
    step = LookupStep.open({"bundle": "int8-changed", "folder": str(open_version(root, "int8-changed").path)})
    keys, counts = drawn(list(CAPACITY.values()), num_keys)
    (wanted,) = step.run([{"KEYS": keys, "NUMKEYS": counts}])
    assert not isinstance(wanted, Exception)
    for version in ("int8-changed", "python"):
        answer = ask(client, version, keys, counts)
        assert answer.dtype == np.float32
        np.testing.assert_array_equal(answer.view(np.uint32), wanted["OUTPUT0"].view(np.uint32))


KEYS, COUNTS = drawn(list(CAPACITY.values()), (2, 3, 5))
LARGEST = np.iinfo(np.int32).max


@pytest.mark.parametrize(
    ("declared", "keys", "num_keys", "said"),
    [
        ("", KEYS, COUNTS[:, :2], "NUMKEYS: got [2, 3] for 10 KEYS; must be one count >= 0 for each of member, tag"),
        ("", KEYS, np.array([[2, 3, 5, 0]], np.int32), "NUMKEYS: got [2, 3, 5, 0] for 10 KEYS"),
        ("", KEYS, np.array([[2, 3, 4]], np.int32), "NUMKEYS: got [2, 3, 4] for 10 KEYS"),
        ("", KEYS, np.array([[11, -1, 0]], np.int32), "NUMKEYS: got [11, -1, 0] for 10 KEYS"),
        ("", KEYS, np.full((1, 3), LARGEST, np.int32), f"NUMKEYS: got [{LARGEST}, {LARGEST}, {LARGEST}] for 10"),
        ("", KEYS, np.full((1, 3), -LARGEST - 1, np.int32), "NUMKEYS: got [-2147483648, "),
        ("", KEYS, np.zeros((1, 0), np.int32), "NUMKEYS: got [] for 10 KEYS"),
        ("", np.zeros((1, 0), np.int64), COUNTS, "NUMKEYS: got [2, 3, 5] for 0 KEYS"),
        ("", KEYS.reshape(2, 5), COUNTS, "KEYS: got shape [2, 5]; must be [1, n]"),
        ("", KEYS, COUNTS.reshape(3, 1), "NUMKEYS: got shape [3, 1]; must be [1, n]"),
        ("", np.where(np.arange(10) == 1, 300, KEYS), COUNTS, 'table "member": key 300 (number 1) is outside [0, 300)'),
        ("", np.where(np.arange(10) == 4, -1, KEYS), COUNTS, 'table "tag": key -1 (number 2) is outside [0, 128)'),
        ("", np.where(np.arange(10) > 6, 2**62, KEYS), COUNTS, 'table "post": key 4611686018427387904 (number 2) is'),
        ("", np.full((1, 10), -(2**63)), COUNTS, 'table "member": key -9223372036854775808 (number 0) is outside'),
        ("-typed", KEYS.astype(np.int32), COUNTS.astype(np.int64), "KEYS: got int32 with 2 dimensions; must be int64"),
        ("-flat", KEYS[0], COUNTS[0], "KEYS: got int64 with 1 dimensions; must be int64 with 2"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_the_python_steps_words(
    client: grpc.InferenceServerClient, declared: str, keys: Any, num_keys: Any, said: str
) -> None:
    native = refusal(client, f"native{declared}", keys, num_keys)
    assert native == refusal(client, f"python{declared}", keys, num_keys)
    assert native[0] == "StatusCode.INVALID_ARGUMENT"
    assert native[1].startswith(f'bundle "BUNDLE", feed_hps: {said}')


def test_clients_at_once_are_each_answered_and_refused_for_themselves(server: TritonServer, root: Path) -> None:
    store = ParameterStore.open(open_version(root, "int8-changed").tables)

    def run(seed: int) -> int:
        random = np.random.default_rng(seed)
        num_refused = 0
        with grpc.InferenceServerClient(server.grpc_url) as own:
            for i in range(60):
                keys, num_keys = drawn(list(CAPACITY.values()), random.integers(0, 400, 3).tolist(), seed * 1000 + i)
                if i % 3 == 0:
                    keys = np.append(keys, [[CAPACITY["post"] + seed]], axis=1)
                    num_keys[0, 2] += 1
                    code, message = refusal(own, "int8-changed", keys, num_keys)
                    assert code == "StatusCode.INVALID_ARGUMENT"
                    assert f'table "post": key {CAPACITY["post"] + seed} (number {num_keys[0, 2] - 1})' in message
                    num_refused += 1
                    continue
                answer = ask(own, "int8-changed", keys, num_keys)
                np.testing.assert_array_equal(answer, store.lookup(keys[0], num_keys[0]))
        return num_refused

    before = counters(server, "int8-changed")
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(run, range(6))) == 6 * 20
    after = counters(server, "int8-changed")
    assert after["success"]["count"] - before["success"]["count"] == 6 * 40
    assert after["fail"]["count"] - before["fail"]["count"] == 6 * 20
    for part in ("queue", "compute_input", "compute_infer", "compute_output"):
        assert after[part]["count"] - before[part]["count"] == 6 * 40
        assert after[part]["ns"] > before[part]["ns"]
    assert after["executions"] - before["executions"] == 6 * 40


def counters(server: TritonServer, version: str) -> dict[str, Any]:
    """Triton's counters of a lookup."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        (one,) = client.get_inference_statistics(f"feed_hps_{version}", as_json=True)["model_stats"]

    def numbers(value: Any) -> Any:
        return {k: numbers(v) for k, v in value.items()} if isinstance(value, dict) else int(value)

    parts = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output"}
    empty = {"count": 0, "ns": 0}
    found = numbers(one["inference_stats"])
    return {**{part: {**empty, **found.get(part, {})} for part in parts}, "executions": int(one["execution_count"])}


def mappings(process_id: int, path: Path) -> list[dict[str, int]]:
    """Rss and Pss in bytes of each of a process's mappings of a file; proves that none can be written."""
    found: list[dict[str, int]] = []
    is_wanted = False
    for line in Path("/proc", str(process_id), "smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_wanted = line.endswith(str(path))
            if is_wanted:
                assert line.split()[1] == "r--s"
                found.append({})
        elif is_wanted and line.startswith(("Rss:", "Pss:")):
            found[-1][line[:3]] = int(line.split()[1]) * 1024
    return found


def test_instances_share_one_mapping_and_processes_its_pages(
    server: TritonServer, client: grpc.InferenceServerClient, root: Path
) -> None:
    assert config_of(server._repository, "fp32").instance_group[0].count == 2
    assert server.process_id is not None
    path = open_version(root, "fp32").tables / "post.npy"
    num_rows = SHAPES["post"][0]
    every = np.arange(num_rows)[None]
    for _ in range(8):  # both instances read all of it
        ask(client, "fp32", every, np.array([[0, 0, num_rows]], np.int32))
    store = ParameterStore.open(path.parent)  # and a process of its own
    np.testing.assert_array_equal(store.tables[2].lookup(every[0])[1], rows_of("post", num_rows, 1)[1])
    (of_server,) = mappings(server.process_id, path)
    (of_test,) = mappings(os.getpid(), path)
    size = path.stat().st_size
    assert of_server["Rss"] >= size
    assert of_server["Pss"] + of_test["Pss"] <= size + 2 * 4096  # counted once


def cut_off(tables: Path) -> str:
    path = tables / "post.npy"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1])
    return rf"{path}: holds 359999 bytes of rows, its header says 360000; export the bundle again"


def without_a_file(tables: Path) -> str:
    (tables / "tag.overlay.npy").unlink()
    return rf"{tables}/tag\.overlay\.npy: No such file or directory; export the bundle again"


def empty(tables: Path) -> str:
    (tables / "tag.npy").unlink()
    (tables / "tag.npy").touch()
    return rf"{tables}/tag\.npy: an empty file, or none; export"


def header(path: Path, change: Callable[[bytes], bytes]) -> None:
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(change(whole))


def huge(tables: Path) -> str:
    header(tables / "post.npy", lambda b: b.replace(b"(5000, 72), }  ", b"(%d, 72), }" % (2**60)))
    return rf"{tables}/post\.npy: too large|holds \d+ bytes of rows"


def overflowing(tables: Path) -> str:
    header(tables / "post.npy", lambda b: b.replace(b"(5000, 72), }", b"(" + b"9" * 30 + b", 72), }"))
    return rf"{tables}/post\.npy: too large"


def of_objects(tables: Path) -> str:
    header(tables / "member.npy", lambda b: b.replace(b"|u1", b"|O1"))
    return rf"{tables}/member\.npy: holds no C-ordered rows of \|u1"


def no_array(tables: Path) -> str:
    header(tables / "member.npy", lambda b: b"PK" + b[2:])
    return rf"{tables}/member\.npy: not a \.npy file"


def cut_in_the_header(tables: Path) -> str:
    header(tables / "member.npy", lambda b: b[:40])
    return rf"{tables}/member\.npy: ends within its header"


def narrow(tables: Path) -> str:
    header(tables / "post.npy", lambda b: b.replace(b"(5000, 72)", b"(5000, 71)"))
    return rf"{tables}/post\.npy: not 1 to 8192 rows of 72 elements"


def unordered(tables: Path) -> str:
    path = tables / "post.overlay_rows.npy"
    rows = np.load(path)[::-1]
    path.unlink()
    np.save(path, np.ascontiguousarray(rows))
    return rf"{path}: its rows do not ascend within the table"


@pytest.mark.parametrize(
    "damage",
    [cut_off, without_a_file, empty, huge, overflowing, of_objects, no_array, cut_in_the_header, narrow, unordered],
)
def test_a_table_that_is_not_what_the_export_says_fails_to_load_and_is_named(
    server: TritonServer, root: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    name = damage.__name__
    publish(tmp_path, name, "int8", is_changed=True)
    export_lookup(tmp_path, name, server._repository)
    said = damage((tmp_path / "versions" / name / "tables").resolve())
    with pytest.raises(ServeError, match=said):
        ModelControl(server.http_url).load(name)
    with grpc.InferenceServerClient(server.grpc_url) as client:  # which goes on
        keys, num_keys = drawn([10, 10, 10], (1, 1, 1))
        assert ask(client, "int8", keys, num_keys).size == sum(dim for _, dim in SHAPES.values())


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        (0, "sparsefeed feed_hps 2"),
        (1, "bundl x"),
        (3, "table member 4 300 int8"),
        (3, "table member 4 300 int8 0 0"),
        (3, "table member -4 300 int8 0"),
        (3, "table member 4 99999999999999999999 int8 0"),
        (3, "table member 4 300 int4 0"),
        (3, "table member 0 300 int8 0"),
        (3, "table member 18446744073709551615 300 int8 0"),
        (3, "table member 4 299 int8 0"),
    ],
)
def test_what_an_export_did_not_write_is_not_loaded(
    server: TritonServer, root: Path, tmp_path: Path, line: int, changed: str
) -> None:
    name = f"edited-{line}-{abs(hash(changed))}"
    publish(tmp_path, name, "int8")
    export_lookup(tmp_path, name, server._repository)
    path = server._repository / f"feed_hps_{name}" / "1" / "tables.txt"
    lines = path.read_text().splitlines()
    lines[line] = changed
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ServeError, match=r'got \\"|allowed: fp32, fp16, int8|member\.npy: not 1 to'):
        ModelControl(server.http_url).load(name)


def test_auto_is_python_where_it_is_not_built_and_native_says_how_to_build_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_lookup(root, "int8", tmp_path / "native", lookup_backend="native")
    monkeypatch.setattr(library, "FOLDER", tmp_path / "nothing")
    export_lookup(root, "int8", tmp_path / "auto")
    assert config_of(tmp_path / "auto", "int8").backend == "python"
    assert (tmp_path / "auto" / "feed_hps_int8" / "1" / "model.py").is_file()
    with pytest.raises(
        ServeError, match=r'serving\.lookup_backend: got "native", which is not built here: make native'
    ):
        export_lookup(root, "int8", tmp_path / "none", lookup_backend="native")
    assert not (tmp_path / "none").exists()
    with pytest.raises(ServeError, match=r"exported for the native lookup, which is not built here: make native"):
        TritonServer(tmp_path / "native", ["int8"], config()).start()


def test_an_export_turns_one_lookup_into_the_other(root: Path, tmp_path: Path) -> None:
    version = tmp_path / "feed_hps_int8" / "1"
    for backend, file in (("native", "tables.txt"), ("python", "model.py"), ("native", "tables.txt")):
        export_lookup(root, "int8", tmp_path, lookup_backend=backend)
        assert [path.name for path in version.iterdir()] == [file]


def test_a_ranking_through_the_native_lookup_is_that_of_the_python_step(
    bundle_root: Path, feeds: dict[str, Feed], tmp_path: Path
) -> None:
    export(bundle_root, "b1", config(lookup_backend="native"), tmp_path)
    with TritonServer(tmp_path, ["b1"], config()) as server, FeedClient(server.grpc_url) as client:
        native = [client.rank(*drawn) for drawn in requests(feeds["b1"], 20, seed=5)]
        export(bundle_root, "b1", config(lookup_backend="python"), tmp_path)
        ModelControl(server.http_url).load("b1")
        python = [client.rank(*drawn) for drawn in requests(feeds["b1"], 20, seed=5)]
    for one, other in zip(native, python, strict=True):
        assert one.order == other.order
        for response, probability in one.probability.items():
            np.testing.assert_array_equal(probability, other.probability[response])
