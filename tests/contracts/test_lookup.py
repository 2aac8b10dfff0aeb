"""docs/contracts/lookup.md, sentence by sentence."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, RequestError
from sparsefeed.etl.ids import IdMap, hash_strings
from sparsefeed.etl.plan import DensePlan, LookupPlan, ServingPlan, TablePlan
from sparsefeed.etl.snapshot import Snapshot, SnapshotSide
from sparsefeed.models.hps.ps_json import HpsTable, ps_json
from sparsefeed.models.store.store import ParameterStore, write_tables
from sparsefeed.workflows.serving.steps.dense import DenseStep
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from sparsefeed.workflows.serving.steps.transform import TransformStep
from tests import bundles
from tests.bundles import DIMS

VALUES = {name: bundles.values(dim) for name, dim in DIMS.items()}
MEMBERS, POSTS = ["m1", "m2"], ["p1", "p2", "p3", "p4"]


@pytest.fixture
def store(tmp_path: Path) -> ParameterStore:
    write_tables(tmp_path / "tables", VALUES, "fp32", list(DIMS))
    return ParameterStore.open(tmp_path / "tables")


def keys_of(strings: list[str]) -> NDArray[np.uint64]:
    return hash_strings(strings, 0)[0]


def id_map(table: str, strings: list[str], paired: bool = False) -> IdMap:
    return IdMap.build(
        keys_of(strings), np.ones(len(strings), np.int64), table=table, key_seed=0, tail_rows=4, paired_tail=paired,
        fingerprint_bits=64,
    )  # fmt: skip


def transform(paired: int = 0) -> tuple[TransformStep, dict[str, IdMap]]:
    """A feed of a member's id and clicks (declared before the post that they share a table with)."""
    no_dense = DensePlan((), (), (), (), ())
    lookups = (
        LookupPlan("clicked", "history", "member", "post", 3, "mean"),
        LookupPlan("post_id", "id", "candidate", "post", 1, "sum"),
        LookupPlan("member_id", "id", "member", "member", 1, "sum"),
    )
    tables = tuple(TablePlan(name, dim, paired if name == "post" else 0) for name, dim in DIMS.items())
    plan = ServingPlan(
        "feed", "0" * 16, 0, tables, lookups, no_dense, no_dense, "member_id", "post_id", ("click",), (1.0,)
    )
    maps = {"member": id_map("member", MEMBERS), "post": id_map("post", POSTS, paired > 0)}
    clicks = (np.array([0, 2]), keys_of(["p3", "p1"]))
    member = SnapshotSide(keys_of(["m1"]), np.empty((1, 0), np.float32), {}, {"clicked": clicks})
    post = SnapshotSide(np.sort(keys_of(POSTS)), np.empty((4, 0), np.float32), {}, {})
    return TransformStep("v1", plan, maps, Snapshot(member, post, 0, 0, "0" * 16), 100), maps


def transformed() -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """KEYS and NUMKEYS of m1, who clicked p3 and then p1 before it, and candidates p2, p4."""
    request = {"member_id": np.array([b"m1"], object), "post_ids": np.array([b"p2", b"p4"], object)}
    answer = transform()[0].run([request])[0]
    assert isinstance(answer, dict)
    return answer["KEYS"], answer["NUMKEYS"]


def test_1_keys_and_counts_give_one_vector_per_key(store: ParameterStore) -> None:
    keys, num_keys = np.array([[3, 3, 0, 63]]), np.array([[1, 3]], np.int32)
    answer = LookupStep("v1", store).run([{"KEYS": keys, "NUMKEYS": num_keys}])[0]
    assert isinstance(answer, dict)
    assert list(answer) == ["OUTPUT0"]
    assert (answer["OUTPUT0"].dtype, answer["OUTPUT0"].shape) == (np.float32, (4 + 3 * 8,))
    expected = np.concatenate([VALUES["member"][3], *VALUES["post"][[3, 0, 63]]])
    np.testing.assert_array_equal(answer["OUTPUT0"], expected)


def test_2_keys_are_table_major_and_feature_by_feature() -> None:
    _, maps = transform()
    keys, num_keys = transformed()
    assert num_keys.tolist() == [[1, 3 + 2]]
    assert [keys.dtype.name, num_keys.dtype.name] == ["int64", "int32"]
    p1, p2, p3, p4 = maps["post"].encode(POSTS).tolist()
    assert keys.tolist() == [[*maps["member"].encode(["m1"]).tolist(), p3, p1, 0, p2, p4]]


def test_2_an_id_of_a_paired_tail_is_two_keys_side_by_side() -> None:
    step, maps = transform(paired=4)
    request = {"member_id": np.array([b"m1"], object), "post_ids": np.array([b"p2", b"p99"], object)}
    answer = step.run([request])[0]
    assert isinstance(answer, dict)
    known = maps["post"].encode(["p3", "p1", "p2"]).tolist()
    (code,) = maps["post"].encode(["p99"])
    assert -4 <= code < 0
    clicked = [known[0], 0, known[1], 0, 0, 0]
    of_p99 = [2 + (code + 4) // 2, 4 + (code + 4) % 2]
    assert answer["NUMKEYS"].tolist() == [[1, 10]]
    assert answer["KEYS"][0, 1:].tolist() == [*clicked, known[2], 0, *of_p99]
    plan = step._plan
    vectors = {name: bundles.values(dim) for name, dim in DIMS.items()}
    flat = np.concatenate([vectors["member"][answer["KEYS"][0, 0]], *vectors["post"][answer["KEYS"][0, 1:]]])
    cut = DenseStep("v1", plan, lambda inputs: np.zeros((2, 1), np.float32)).check(
        {"OUTPUT0": flat, "len_clicked": np.array([2])}
    )
    post = vectors["post"]
    np.testing.assert_array_equal(cut["emb_post_id"], [post[known[2]], post[of_p99[0]] + post[of_p99[1]]])
    np.testing.assert_array_equal(cut["emb_clicked"], [[post[known[0]], post[known[1]], post[0]]])


def test_3_padding_is_key_0_and_its_vector_zero(store: ParameterStore) -> None:
    keys, num_keys = transformed()
    vectors = store.lookup(keys[0], num_keys[0])[DIMS["member"] :].reshape(-1, DIMS["post"])
    assert keys[0, 3] == 0
    assert not vectors[2].any()
    assert vectors[[0, 1, 3, 4]].any(axis=1).all()


def test_4_vectors_are_table_major_with_each_tables_dim(store: ParameterStore) -> None:
    vectors = store.lookup(np.array([1, 2, 5, 6, 7]), np.array([2, 3], np.int32))
    assert vectors.shape == (2 * 4 + 3 * 8,)
    np.testing.assert_array_equal(vectors[:8].reshape(2, 4), VALUES["member"][[1, 2]])
    np.testing.assert_array_equal(vectors[8:].reshape(3, 8), VALUES["post"][[5, 6, 7]])


@pytest.mark.parametrize("key", [-1, 64, 2**40])
def test_5_a_key_outside_names_table_key_and_capacity(store: ParameterStore, key: int) -> None:
    with pytest.raises(RequestError, match=rf'table "post": key {key} .*\[0, 64\), its capacity_rows'):
        store.lookup(np.array([1, 2, key]), np.array([1, 2], np.int32))


@pytest.mark.parametrize("num_keys", [[3], [2, 2], [4, -1], [1, 1, 1]])
def test_5_counts_that_do_not_cover_the_keys_are_an_error(store: ParameterStore, num_keys: list[int]) -> None:
    with pytest.raises(RequestError, match="NUMKEYS: got"):
        store.lookup(np.array([1, 2, 3]), np.array(num_keys, np.int32))


def test_6_the_model_has_no_batch_dimension_and_only_these_tensors() -> None:
    pytest.importorskip("tritonclient.grpc")
    from sparsefeed.workflows.serving.config import ServingConfig
    from sparsefeed.workflows.serving.triton_models import models_of
    from tests import logs

    config = models_of(logs.spec(), ServingConfig())["feed_hps"].config
    assert (config.max_batch_size, config.backend) == (0, "python")
    assert [(tensor.name, tensor.data_type) for tensor in config.input] == [("KEYS", 9), ("NUMKEYS", 8)]
    assert [(tensor.name, tensor.data_type) for tensor in config.output] == [("OUTPUT0", 11)]


def hps_table(name: str, dim: int, keys: int) -> HpsTable:
    return HpsTable(name=name, dim=dim, sparse_file=f"hps/{name}", max_keys_per_sample=keys)


def test_7_ps_json_is_the_golden_one() -> None:
    golden = Path(__file__).parent / "fixtures" / "ps.json"
    written = ps_json("feed_hps_v1", (hps_table("member", 4, 1), hps_table("post", 8, 4)), 100)
    assert json.loads(written) == json.loads(golden.read_text())


def test_7_what_hps_would_misuse_in_silence_is_refused() -> None:
    with pytest.raises(BundleError, match=r"models\[0\]\.model: got 'feed\.v1'"):
        ps_json("feed.v1", (hps_table("post", 8, 4),), 100)
    with pytest.raises(BundleError, match=r'embedding_table_names: "post" occurs twice'):
        ps_json("feed_hps_v1", (hps_table("post", 8, 4),) * 2, 100)


def test_8_an_export_for_hps_answers_what_the_store_answers(tmp_path: Path) -> None:
    pytest.importorskip("tritonclient.grpc")
    from sparsefeed.models.store.hps import read_hps
    from sparsefeed.workflows.hps import export_hps_serving
    from sparsefeed.workflows.serving.config import ServingConfig
    from tests.workflows.serving.feed import Feed

    feed = Feed.make(1)
    feed.publish(tmp_path / "bundles", "b1")
    export_hps_serving(tmp_path / "bundles", "b1", ServingConfig(), tmp_path / "hps")
    assert sorted(path.name for path in (tmp_path / "hps").iterdir()) == [
        "feed_dense_b1", "feed_hps_b1", "feed_ranker_b1", "feed_transform_b1", "ps.json",
    ]  # fmt: skip
    for name, rows in feed.tables.items():
        keys, vectors = read_hps(tmp_path / "hps" / "feed_hps_b1" / "1" / f"{name}.model", rows.shape[1])
        assert keys.tolist() == [0, *np.flatnonzero(rows.any(axis=1)).tolist()]
        np.testing.assert_array_equal(vectors, rows[keys])


def test_9_every_problem_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    from sparsefeed.workflows.hps import problems_of

    value = json.loads((Path(__file__).parent / "fixtures" / "ps.json").read_text())
    value["volatile_db"]["type"] = "paralel_hash_map"
    value["models"][0] |= {"gpucacheper": 2, "default_value_for_each_table": [0.0], "gpu_cache": True}
    (tmp_path / "ps.json").write_text(json.dumps(value))
    problems = problems_of(tmp_path / "ps.json")
    model, files = "models[0]", "models[0].sparse_files"
    places = (
        "volatile_db.type",
        f"{model}.gpucacheper",
        f"{model}.gpu_cache",
        f"{model}: lists",
        f"{files}[0]",
        f"{files}[1]",
    )
    for place in places:
        assert sum(line.startswith(place) for line in problems) == 1
    assert len(problems) == 6


def test_10_the_native_lookup_has_the_python_steps_bits_and_words(store: ParameterStore, tmp_path: Path) -> None:
    from tests.native.host import Host, build, given_as, wanted

    text = f"sparsefeed feed_hps 1\nbundle v1\nfolder {tmp_path}/tables\n"
    text += "".join(f"table {name} {dim} {bundles.CAPACITY_ROWS} fp32 0\n" for name, dim in DIMS.items())
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "tables.txt").write_text(text)
    host = Host(build(tmp_path / "host", "-O1"), tmp_path)
    try:
        assert host.loaded == "loaded"
        for keys, num_keys in (
            ([[3, 3, 0, 63]], [[1, 3]]),
            ([[3, 64]], [[1, 1]]),
            ([[3, 3]], [[1, 2]]),
            ([[1]], [[1]]),
        ):
            tensors = {"KEYS": np.array(keys), "NUMKEYS": np.array(num_keys, np.int32)}
            words = [given_as(name, tensor) for name, tensor in tensors.items()]
            assert host.ask(*words) == wanted(LookupStep("v1", store), tensors)
    finally:
        host.close()


def test_10_the_models_configurations_differ_in_backend_and_parameters_alone() -> None:
    pytest.importorskip("tritonclient.grpc")
    from sparsefeed.workflows.serving.config import ServingConfig
    from sparsefeed.workflows.serving.triton_models import models_of
    from tests import logs

    python = models_of(logs.spec(), ServingConfig(), "v1", Path("v1"))
    native = models_of(logs.spec(), ServingConfig(), "v1", Path("v1"), {"tables.txt": "..."})
    lookup = native["feed_hps"].config
    assert (lookup.backend, dict(lookup.parameters)) == ("sparsefeed", {})
    assert native["feed_hps"].version_files == {"tables.txt": "..."}
    lookup.backend = "python"
    for name, value in python["feed_hps"].config.parameters.items():
        lookup.parameters[name].CopyFrom(value)
    assert {name: model.config for name, model in native.items()} == {name: m.config for name, m in python.items()}
