"""The native lookup against the Python step, in the real tritonserver: the same bits, the same words."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tritonclient.grpc import model_config_pb2 as pb
from tritonclient.utils import InferenceServerException

from sparsefeed.errors import ServeError
from sparsefeed.models.bundle import open_version
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.native import library
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from tests.workflows.serving.conftest import config
from tests.workflows.serving.feed import Feed, requests
from tests.workflows.serving.lookups import CAPACITY, SHAPES, ask, config_of, drawn, export_lookup, publish, rows_of

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("native_library")]

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


def refusal(client: grpc.InferenceServerClient, version: str, keys: Any, num_keys: Any) -> tuple[str, str]:
    """Triton's code, and the message with one name for the bundles that differ in nothing else."""
    with pytest.raises(InferenceServerException) as caught:
        ask(client, version, keys, num_keys)
    return str(caught.value.status()), str(caught.value.message()).replace(version, "BUNDLE")


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


NATIVE = 'backend="native"'


def counted(server: TritonServer, version: str) -> dict[str, float]:
    """What the metrics page has of a version's lookup, `name{label="value",...}` without those of every counter."""
    with urlopen(server.metrics_url) as page:
        lines = re.findall(r"^(sparsefeed_\w+)\{(.*)\} (\S+)$", page.read().decode(), re.MULTILINE)
    own = {f'bundle="{version}"', 'step="feed_hps"'}
    found = {}
    for name, labels, value in lines:
        if own <= (given := set(labels.split(","))):
            found[f"{name}{{{','.join(sorted(given - own - {NATIVE}))}}}"] = float(value)
    return found


def test_the_metrics_page_counts_the_native_lookup_as_the_python_step(
    server: TritonServer, client: grpc.InferenceServerClient
) -> None:
    time.sleep(2.5)  # what other tests asked is on the page
    before = {version: counted(server, version) for version in ("native", "python")}
    for version in before:
        for _ in range(5):
            ask(client, version, KEYS, COUNTS)
        refusal(client, version, KEYS, COUNTS + 1)
    deadline = time.monotonic() + 15
    while True:  # a Python step says what it counted within a second
        added = {
            version: {name: value - before[version].get(name, 0.0) for name, value in counted(server, version).items()}
            for version in before
        }
        if added["python"].get("sparsefeed_calls_total{}", 0) >= 6:
            break
        assert time.monotonic() < deadline, added
        time.sleep(0.1)
    assert set(added["native"]) == set(added["python"])
    for name in ('requests_total{outcome="ok"}', 'requests_total{outcome="refused"}', "calls_total{}"):
        assert added["native"][f"sparsefeed_{name}"] == added["python"][f"sparsefeed_{name}"] > 0
    assert added["native"]['sparsefeed_compute_seconds_bucket{le="+Inf"}'] == 6
    assert 0 < added["native"]["sparsefeed_compute_seconds_total{}"] < 1


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
        server.control().load("b1")
        python = [client.rank(*drawn) for drawn in requests(feeds["b1"], 20, seed=5)]
    for one, other in zip(native, python, strict=True):
        assert one.order == other.order
        for response, probability in one.probability.items():
            np.testing.assert_array_equal(probability, other.probability[response])
