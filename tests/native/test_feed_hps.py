"""The C++ against a stand-in for tritonserver, under sanitizers: any request gets the Python step's answer or error."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsefeed.models.store.store import ParameterStore, write_index, write_tables
from sparsefeed.native import library
from sparsefeed.workflows.serving.request import PROBE
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from sparsefeed.workflows.serving.steps.readings import FAMILIES, Meter
from tests.native.host import TYPES, Host, build, given_as, wanted

ROWS, DIMS = {"member": 70, "post": 200}, {"member": 4, "post": 20}


def loaded(program: Path, model: Path) -> str:
    """What loading a model says."""
    host = Host(program, model)
    host.close()
    return host.loaded


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("host") / "host")


@pytest.fixture(scope="module", params=["fp32", "fp16", "int8"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder: tables as a delta leaves them, and what the native lookup reads of them."""
    folder = tmp_path_factory.mktemp("model")
    random = np.random.default_rng(0)
    values = {name: random.normal(size=(rows, DIMS[name])).astype(np.float32) for name, rows in ROWS.items()}
    for rows in values.values():
        rows[0] = 0
    write_tables(folder / "trained", values, request.param, list(ROWS))
    (folder / "tables").mkdir()
    for name, table in ParameterStore.open(folder / "trained").table_by_name.items():
        changed = np.array([1, 63, 64, ROWS[name] + 3]) if name == "post" else np.empty(0, np.int64)
        new = random.normal(size=(len(changed), DIMS[name])).astype(np.float32)
        table.replace_rows(folder / "tables", changed, new, ROWS[name] + 58)
    write_index(folder / "tables", {name: rows + 58 for name, rows in ROWS.items()})
    (folder / "1").mkdir()
    lines = ["sparsefeed feed_hps 1", "bundle b1", f"folder {folder}/tables"]
    lines += [f"table {n} {DIMS[n]} {ROWS[n] + 58} {request.param} {4 if n == 'post' else 0}" for n in ROWS]
    (folder / "1" / "tables.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def step(model: Path) -> LookupStep:
    return LookupStep.open({"bundle": "b1", "folder": str(model)})


@pytest.fixture(scope="module")
def host(program: Path, model: Path) -> Iterator[Host]:
    running = Host(program, model)
    assert running.loaded == "loaded"
    yield running
    running.close()


dtypes = st.sampled_from(sorted(TYPES))
counts = st.lists(st.sampled_from([0, 1, 2, 12, 13, 14, 40]), min_size=2, max_size=2)
keys_near = st.sampled_from(
    [0, 1, 62, 63, 64, 69, 70, 127, 128, 199, 200, 203, 257, 258, -1, 2**31, 2**63 - 1, -(2**63)]
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_request_gets_the_python_steps_answer_or_error(host: Host, step: LookupStep, data: st.DataObject) -> None:
    num_keys = data.draw(counts)
    highest = [128, 258]
    parts = [
        data.draw(st.lists(st.integers(0, high - 1), min_size=n, max_size=n))
        for high, n in zip(highest, num_keys, strict=True)
    ]
    keys = np.array([[*parts[0], *parts[1]]], np.int64)
    tensors = {"KEYS": keys, "NUMKEYS": np.array([num_keys], np.int32)}
    match data.draw(st.sampled_from(["good"] * 4 + ["key", "counts", "dtype", "shape", "missing", "row"])):
        case "key" if keys.size:
            keys[0, data.draw(st.integers(0, keys.size - 1))] = data.draw(keys_near)
        case "counts":
            numbers = st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 50), max_size=4)
            tensors["NUMKEYS"] = np.array([data.draw(numbers)], np.int32).reshape(1, -1)
        case "dtype":
            name = data.draw(st.sampled_from(["KEYS", "NUMKEYS"]))
            tensors[name] = tensors[name].astype(data.draw(dtypes))
        case "shape":
            name = data.draw(st.sampled_from(["KEYS", "NUMKEYS"]))
            tensors[name] = tensors[name].reshape(data.draw(st.sampled_from([(-1,), (-1, 1), (1, 1, -1)])))
        case "missing":
            del tensors[data.draw(st.sampled_from(["KEYS", "NUMKEYS"]))]
        case "row":
            name = data.draw(st.sampled_from(["KEYS", "NUMKEYS"]))
            tensors[name] = np.repeat(tensors[name], data.draw(st.sampled_from([0, 2])), axis=0)
        case _:
            pass
    words = [given_as(n, t, data.draw(st.lists(st.integers(0, 300), max_size=4))) for n, t in tensors.items()]
    output = data.draw(st.sampled_from(["output=cpu", "output=odd"]))
    assert host.ask(*words, output) == wanted(step, tensors)


GOOD = (given_as("KEYS", np.array([[1, 2, 3]])), given_as("NUMKEYS", np.array([[1, 2]], np.int32)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["output=gpu"], "3 OUTPUT0: is wanted on a GPU"),
        (["output=error"], "1 no memory is left"),
        (["output=throw"], "1 std::bad_alloc"),
        (["output=nothing"], "1 OUTPUT0: no buffer for it"),
        (["gpu=KEYS"], "3 KEYS: lies on a GPU; send it in memory of the host"),
        (["size=KEYS:25"], "3 KEYS: got 25 bytes for shape [1, 3]; must be 24"),
        (["size=KEYS:0"], "3 KEYS: got 0 bytes for shape [1, 3]; must be 24"),
        (["KEYS=9:1,2:00", "size=KEYS:16"], "1 KEYS: its buffers are less than its size"),
        (["KEYS=9:1,1:" + "00" * 9, "size=KEYS:8"], "1 KEYS: its buffers exceed its size"),
        (["KEYS=9:1,-1:"], "3 KEYS: got shape [1, -1]; must be [1, n]"),
        (["KEYS=9:4294967296,4294967296:"], "1 KEYS: too large"),
        (["KEYS=9:1,2305843009213693952:"], "1 KEYS: too large"),
        (["KEYS=99:1,1:00"], "3 KEYS: got invalid with 2 dimensions; must be int64 with 2"),
    ],
)  # fmt: skip
def test_a_server_that_misbehaves_gets_an_error_of_the_request_alone(host: Host, words: list[str], said: str) -> None:
    code, text = said.split(" ", 1)
    assert host.ask(*GOOD, *words).startswith(f'{code} bundle "b1", feed_hps: {text}')
    assert host.ask(*GOOD).startswith("ok ")


def test_a_request_without_a_response_is_counted_and_released(host: Host) -> None:
    host.say(*GOOD, "response=error")
    assert host.line() == "01010 "
    assert host.ask(*GOOD).startswith("ok ")


def test_it_counts_what_a_python_step_counts_under_the_same_names(program: Path, model: Path) -> None:
    host, meter = Host(program, model), Meter()
    assert host.loaded == "loaded"
    refused, failed = "size=KEYS:25", "output=error"
    for words, code in (((), "ok"), ((refused,), "3"), ((failed,), "1"), ((), "ok"), (("id=mine",), "ok")):
        assert host.ask(*GOOD, *words).startswith(code)
    assert host.ask(*GOOD, f"id={PROBE}").startswith("ok")  # not counted
    for outcome in ({"ok": 1}, {"ok": 1}, {"ok": 1}, {"refused": 1}, {"failed": 1}):
        meter.add(0.0, **outcome)
    got = host.metrics()
    host.close()
    own = "bundle=b1,step=feed_hps,backend=native"
    assert 0 < got.pop(f"sparsefeed_compute_seconds_total{{{own}}}") < 60
    buckets = []
    for name, value, labels in meter.readings():
        if name == "sparsefeed_compute_seconds_total":
            continue
        found = got.pop(f"{name}{{{','.join([own, *(f'{label}={text}' for label, text in labels)])}}}")
        if name == "sparsefeed_compute_seconds_bucket":
            buckets.append(found)
        else:
            assert found == value
    assert got == {}
    assert buckets == sorted(buckets)
    assert buckets[-1] == 5
    header = (Path(library.__file__).with_name("meter.h")).read_text("utf-8")
    counted = {reading.name for reading in meter.readings()}
    assert len(counted) == 4
    assert all(f'"{FAMILIES[name][1]}"' in header for name in counted)


def test_a_model_that_is_loaded_again_goes_on_counting(program: Path, model: Path) -> None:
    host = Host(program, model, "reloaded")
    assert host.ask(*GOOD).startswith("ok ")
    assert host.metrics()["sparsefeed_calls_total{bundle=b1,step=feed_hps,backend=native}"] == 1
    host.close()


def test_a_server_without_metrics_has_answers_all_the_same(program: Path, model: Path) -> None:
    host = Host(program, model, "without-metrics")
    assert host.ask(*GOOD).startswith("ok ")
    assert host.metrics() == {}
    host.close()


def test_a_table_cut_off_anywhere_is_refused_at_load(program: Path, model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    text = (tmp_path / "model" / "1" / "tables.txt").read_text()
    (tmp_path / "model" / "1" / "tables.txt").write_text(text.replace(str(model), str(tmp_path / "model")))
    path = tmp_path / "model" / "tables" / "post.overlay.npy"
    whole = path.read_bytes()
    for length in (0, 1, 9, 10, 60, 127, 128, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"{path}: " in loaded(program, tmp_path / "model")
    path.write_bytes(whole)
    assert loaded(program, tmp_path / "model") == "loaded"


def test_a_model_without_its_list_of_tables_is_refused_at_load(program: Path, tmp_path: Path) -> None:
    said = f"1 feed_hps: {tmp_path}/1/tables.txt: not readable; export the bundle again"
    assert loaded(program, tmp_path) == said
