from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsefeed.errors import BundleError, RequestError
from sparsefeed.etl.ids.exceptions import Exceptions
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.workflows.serving.request import UNKNOWN_BITS
from sparsefeed.workflows.serving.steps.dense import DenseStep
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from sparsefeed.workflows.serving.steps.overrides import OverrideSchema
from sparsefeed.workflows.serving.steps.step import Tensors
from sparsefeed.workflows.serving.steps.transform import TransformStep
from tests.workflows.serving.feed import SPEC, Feed, plan, requests


class Steps:
    """The three steps of one bundle, in process."""

    def __init__(self, folder: Path, max_candidates: int = 50) -> None:
        parameters = {"bundle": "b1", "folder": str(folder), "max_candidates": str(max_candidates), "threads": "1"}
        self.transform = TransformStep.open(parameters)
        self.hps = LookupStep.open(parameters)
        self.dense = DenseStep.open(parameters)

    def run(self, tensors: Sequence[Tensors]) -> list[dict[str, Any]]:
        """Answers with everything the steps made."""
        transformed = self.transform.run(tensors)
        looked_up = self.hps.run(transformed)
        joined = [{**a, **b} for a, b in zip(transformed, looked_up, strict=True)]
        return [{**a, **b} for a, b in zip(joined, self.dense.run(joined), strict=True)]


@pytest.fixture(scope="module")
def steps(bundle_root: Path) -> Steps:
    return Steps(bundle_root / "versions" / "b1")


@pytest.fixture(scope="module")
def feed(feeds: dict[str, Feed]) -> Feed:
    return feeds["b1"]


def texts(values: Sequence[str | bytes]) -> Any:
    return np.array([v if isinstance(v, bytes) else v.encode() for v in values], object)


def request(member: str = "m6", posts: Sequence[str | bytes] = ("p6",), overrides: object = None) -> dict[str, Any]:
    tensors = {"member_id": texts([member]), "post_ids": texts(posts)}
    return tensors if overrides is None else tensors | {"overrides": texts([json.dumps(overrides)])}


def test_the_probability_is_that_of_the_parts_for_hundreds_of_requests(steps: Steps, feed: Feed) -> None:
    drawn = requests(feed, 300, seed=3)
    for (member, posts, overrides), answer in zip(drawn, steps.run([request(*d) for d in drawn]), strict=True):
        want = np.array([feed.probability(member, post, overrides) for post in posts])
        np.testing.assert_allclose(answer["probability"], want, atol=2e-6)
        np.testing.assert_allclose(answer["score"], want @ [1.0, 2.5], atol=5e-6)


def test_the_unknown_bits_are_those_of_the_parts_for_hundreds_of_requests(steps: Steps, feed: Feed) -> None:
    drawn = requests(feed, 300, seed=4)
    seen = 0
    for (member, posts, overrides), answer in zip(drawn, steps.run([request(*d) for d in drawn]), strict=True):
        want = [sum(UNKNOWN_BITS[name] for name in feed.unknown(member, post, overrides)) for post in posts]
        assert answer["unknown"].tolist() == want
        seen |= int(np.bitwise_or.reduce(want))
    assert seen == sum(UNKNOWN_BITS.values())  # the requests drawn set every bit


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), count=st.integers(1, 6))
def test_requests_joined_are_answered_like_each_alone(steps: Steps, feed: Feed, seed: int, count: int) -> None:
    tensors = [request(*drawn) for drawn in requests(feed, count, seed)]
    for joined, one in zip(steps.run(tensors), tensors, strict=True):
        (alone,) = steps.run([one])
        assert joined.keys() == alone.keys()
        for name in alone:
            if alone[name].dtype == np.float32:
                np.testing.assert_allclose(joined[name], alone[name], rtol=1e-5)
            else:
                np.testing.assert_array_equal(joined[name], alone[name])


def test_a_refused_request_does_not_disturb_the_others_of_its_call(steps: Steps) -> None:
    good, bad = request("m6", ["p6", "p7"]), request("m6", [])
    first, refused, last = steps.transform.run([good, bad, good])
    (alone,) = steps.transform.run([good])
    assert isinstance(refused, RequestError)
    for answer in (first, last):
        assert not isinstance(answer, Exception)
        np.testing.assert_array_equal(answer["KEYS"], alone["KEYS"])


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (request(posts=[]), "post_ids: got 0 candidates; must be 1 to 50; send at least one"),
        (request(posts=["p"] * 51), "post_ids: got 51 candidates; must be 1 to 50; split them into several requests"),
        ({"post_ids": texts(["p1"])}, "member_id: missing"),
        ({"member_id": texts(["m1"])}, "post_ids: missing"),
        ({"member_id": texts(["m1", "m2"]), "post_ids": texts(["p1"])}, "member_id: got 2 ids; must be one"),
        ({"member_id": np.array([1]), "post_ids": texts(["p1"])}, "member_id: got int64 with 1 dimensions"),
        (request(posts=["p1", b"p\xff2"]), "post_ids[1]: got b'p\\xff2', which is not UTF-8"),
        (request() | {"overrides": texts(["{}", "{}"])}, "overrides: got 2 texts"),
        (request() | {"overrides": texts(["{"])}, "overrides: not JSON"),
        (request() | {"overrides": texts(['{"member": {"age": NaN}}'])}, "NaN is no JSON number"),
    ],
)
def test_tensors_that_cannot_be_meant_are_refused_by_name(steps: Steps, tensors: dict[str, Any], said: str) -> None:
    (error,) = steps.transform.run([tensors])
    assert isinstance(error, RequestError)
    assert str(error).startswith('bundle "b1", feed_transform: ')
    assert said in str(error)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "overrides: got []; must be an object"),
        ({"membr": {}}, 'overrides: "membr" is not a key; did you mean "member"?'),
        ({"member": {"agee": 1}}, '"agee" is not a feature of the member; did you mean "age"?'),
        ({"member": {"views": 1}}, 'overrides.member: "views" is not a feature of the member'),
        ({"member": {"member_id": "m2"}}, '"member_id" is not a feature of the member'),
        ({"member": {"age": True}}, "overrides.member.age: got true; must be a number"),
        ({"member": {"age": 1e39}}, "overrides.member.age: got 1e+39; must be a number that fits float32"),
        ({"member": {"liked": "p1"}}, 'overrides.member.liked: got "p1"; must be a list of strings'),
        ({"posts": {"p6": {"hashtags": [1]}}}, 'overrides.posts["p6"].hashtags: got [1]; must be a list'),
        ({"posts": {"p6": {"creator_id": 1}}}, 'overrides.posts["p6"].creator_id: got 1; must be a string'),
        ({"posts": {"p9": {}}}, 'overrides.posts: "p9" is not among post_ids'),
        ({"posts": {"p6": 1}}, 'overrides.posts["p6"]: got 1; must be an object'),
    ],
)
def test_overrides_that_cannot_be_meant_are_refused_by_path(steps: Steps, overrides: object, said: str) -> None:
    (error,) = steps.transform.run([request(overrides=overrides)])
    assert isinstance(error, RequestError)
    assert said in str(error)


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["member", "posts", "p1", "age", "liked", "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_no_json_breaks_the_reading_of_overrides(value: Any) -> None:
    try:
        OverrideSchema(plan()).parse(json.dumps(value).encode(), {b"p1"})
    except RequestError as error:
        assert str(error).startswith("overrides")


def test_a_lone_surrogate_in_overrides_is_refused_not_hashed() -> None:
    with pytest.raises(RequestError, match="not Unicode text"):
        OverrideSchema(plan()).parse(rb'{"posts": {"p1": {"creator_id": "\ud800"}}}', {b"p1"})


def test_ids_whose_keys_are_equal_are_told_apart_by_their_strings(steps: Steps, feed: Feed) -> None:
    (key,), _ = hash_strings(["p6"], SPEC.key_seed)
    id_maps = dict(feed.id_maps)
    id_maps["post"] = replace(id_maps["post"], exceptions=Exceptions({int(key): {b"another": 11, b"p6": 12}}))
    transform = TransformStep("b1", plan(), id_maps, feed.snapshot(), 50)
    (answer,) = transform.run([request("m6", ["p6"])])
    assert not isinstance(answer, Exception)
    first_post = int(answer["NUMKEYS"][0, :2].sum())
    assert answer["KEYS"][0, first_post] == 12
    # An override brings its strings along too; where the map lists their key, they are told apart as well.
    id_maps["post"] = replace(id_maps["post"], exceptions=Exceptions({int(key): {b"p6": 12, b"another": 11}}))
    transform = TransformStep("b1", plan(), id_maps, feed.snapshot(), 50)
    (answer,) = transform.run([request("m6", ["p6"], {"member": {"liked": ["p7", "p6", "p7"]}})])
    assert not isinstance(answer, Exception)
    of_posts = answer["KEYS"][0, first_post : first_post + int(answer["NUMKEYS"][0, 2])].tolist()
    assert of_posts.count(12) == 2
    assert of_posts.count(int(feed.id_maps["post"].encode(["p7"])[0])) == 2


def test_a_key_outside_its_table_is_refused_by_table_key_and_capacity(steps: Steps) -> None:
    (good,) = steps.transform.run([request()])
    assert not isinstance(good, Exception)
    bad = dict(good, KEYS=good["KEYS"].copy())
    bad["KEYS"][0, 0] = 64
    answer, error = steps.hps.run([good, bad])
    assert not isinstance(answer, Exception)
    assert isinstance(error, RequestError)
    assert 'bundle "b1", feed_hps: table "member": key 64' in str(error)
    assert "[0, 64)" in str(error)


def test_keys_of_another_shape_or_type_are_refused(steps: Steps) -> None:
    (good,) = steps.transform.run([request()])
    assert not isinstance(good, Exception)
    for name, tensor, said in (
        ("KEYS", np.zeros((2, 3), np.int64), "KEYS: got shape [2, 3]; must be [1, n]"),
        ("KEYS", good["KEYS"].astype(np.int32), "KEYS: got int32"),
        ("NUMKEYS", good["NUMKEYS"][:, 1:], "NUMKEYS"),
    ):
        (error,) = steps.hps.run([{**good, name: tensor}])
        assert isinstance(error, RequestError)
        assert said in str(error)


def test_dense_inputs_that_do_not_fit_each_other_are_refused(steps: Steps) -> None:
    (good,) = steps.run([request("m6", ["p6", "p7"])])
    for name, tensor, said in (
        ("OUTPUT0", good["OUTPUT0"][1:], "OUTPUT0: got"),
        ("OUTPUT0", good["OUTPUT0"][:0], "OUTPUT0: got 0 floats; must be"),
        ("candidate_dense", good["candidate_dense"][1:], "candidate_dense: got shape [1, 2]; must be [2, 2]"),
        ("len_liked", np.zeros(3, np.int64), "len_liked: got shape [3]; must be [1]"),
        ("member_dense", good["member_dense"].astype(np.float64), "member_dense: got float64"),
    ):
        (error,) = steps.dense.run([{**good, name: tensor}])
        assert isinstance(error, RequestError)
        assert 'bundle "b1", feed_dense: ' in str(error)
        assert said in str(error)


def test_a_graph_that_cannot_be_loaded_is_an_error_of_the_bundle(bundle_root: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle_root / "versions" / "b1", tmp_path / "b1")
    parameters = {"bundle": "b1", "folder": str(folder), "threads": "1"}
    DenseStep.open(parameters)
    graph = onnx.load(str(folder / "dense.onnx"))
    graph.graph.input.append(onnx.helper.make_tensor_value_info("member_index", onnx.TensorProto.INT64, [None]))
    onnx.save(graph, str(folder / "dense.onnx"))
    with pytest.raises(BundleError, match=r"takes .*, member_index; must take .*; export the bundle again"):
        DenseStep.open(parameters)
    (folder / "dense.onnx").write_bytes(b"not a graph")
    with pytest.raises(BundleError, match="not loadable by onnxruntime"):
        DenseStep.open(parameters)


def test_the_steps_import_no_frame_no_trainer_and_no_schema_library() -> None:
    program = (
        "import sys\n"
        "from sparsefeed.workflows.serving import backend\n"
        "from sparsefeed.workflows.serving.steps import dense\n"
        "assert 'numba' not in sys.modules\n"
        "from sparsefeed.workflows.serving.steps import lookup, transform\n"
        "banned = {'torch', 'torchrec', 'dask', 'nvtabular', 'merlin', 'pandas', 'pydantic', 'onnxruntime', 'cudf'}\n"
        "print(sorted(banned & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
