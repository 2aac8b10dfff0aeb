"""docs/contracts/request.md, sentence by sentence, against the real server."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from sparsefeed.errors import RequestError
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.request import PROBE
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.serving.steps.transform import TransformStep
from tests.workflows.serving.conftest import bundle_root, config, feeds, repository, server
from tests.workflows.serving.feed import RESPONSES, SPEC, Feed, plan
from tests.workflows.serving.malformed import well_formed

__all__ = ["bundle_root", "feeds", "repository", "server"]  # fixtures

pytestmark = pytest.mark.triton
RANKER = "feed_ranker_b1"


@pytest.fixture(scope="module")
def client(server: TritonServer) -> FeedClient:
    return FeedClient(server.grpc_url, "b1")


def send(server: TritonServer, tensors: dict[str, Sequence[str | bytes]]) -> Any:
    """The request as any gRPC client would send it, without FeedClient's own checks."""
    inputs = []
    for name, values in tensors.items():
        tensor = triton.InferInput(name, [len(values)], "BYTES")
        tensor.set_data_from_numpy(np.array([v.encode() if isinstance(v, str) else v for v in values], object))
        inputs.append(tensor)
    with triton.InferenceServerClient(server.grpc_url) as plain:
        return plain.infer(RANKER, inputs)


def post_json(server: TritonServer, tensors: dict[str, Sequence[str]]) -> dict[str, Any]:
    """The request as curl would send it."""
    body = {
        "inputs": [
            {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": list(values)}
            for name, values in tensors.items()
        ]
    }
    with urlopen(Request(f"http://{server.http_url}/v2/models/{RANKER}/infer", json.dumps(body).encode())) as answer:
        outputs = json.load(answer)["outputs"]
    return {output["name"]: output for output in outputs}


def test_the_outputs_have_the_types_and_shapes_of_the_table(server: TritonServer) -> None:
    answer = send(server, {"member_id": ["m6"], "post_ids": ["p6", "p7", "p8"]})
    shapes = {output.name: (output.datatype, list(output.shape)) for output in answer.get_response().outputs}
    assert shapes == {
        "probability": ("FP32", [3, 2]),
        "score": ("FP32", [3]),
        "unknown": ("INT32", [3]),
        "bundle": ("BYTES", [1]),
    }
    assert answer.as_numpy("bundle").tolist() == [b"b1"]
    weights = np.array([response.score_weight for response in SPEC.responses], np.float32)
    np.testing.assert_allclose(answer.as_numpy("score"), answer.as_numpy("probability") @ weights, rtol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "member_changes"),
    [
        ({"member": {"age": 77}}, True),
        ({"member": {"liked": ["p1", "p2", "p3", "p4", "p5"]}}, True),
        ({"posts": {"p7": {"creator_id": "c1"}}}, False),
        ({"posts": {"p7": {"creator_id": None}}}, False),
        ({"posts": {"p7": {"hashtags": ["h1", "", "h2", "h3"]}}}, False),
        ({"posts": {"p7": {"views": None}}}, False),
    ],
)
def test_1_an_override_replaces_one_feature_of_one_member_or_post(
    client: FeedClient, feeds: dict[str, Feed], overrides: dict[str, Any], member_changes: bool
) -> None:
    posts = ["p7", "p6"]
    plain, changed = client.rank("m6", posts), client.rank("m6", posts, overrides)
    want = [feeds["b1"].probability("m6", post, overrides) for post in posts]
    got = np.stack([changed.probability[response] for response in RESPONSES], axis=1)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert changed.score[0] != plain.score[0]
    assert (changed.score[1] != plain.score[1]) == member_changes
    np.testing.assert_array_equal(client.rank("m6", posts).score, plain.score)  # for that request alone


@pytest.mark.parametrize(
    "overrides", [{"member": {"member_id": "m7"}}, {"posts": {"p6": {"post_id": "p7"}}}, {"posts": {"p7": {}}}]
)
def test_1_the_requests_own_ids_and_other_posts_are_not_overridden(client: FeedClient, overrides: Any) -> None:
    with pytest.raises(RequestError, match="overrides"):
        client.rank("m6", ["p6"], overrides)


@pytest.mark.parametrize(
    ("member", "post", "overrides", "bits"),
    [
        ("m6", "p6", {"posts": {"p6": {"creator_id": "c1", "hashtags": ["h1"]}}}, 0),
        ("m22", "p6", {"posts": {"p6": {"creator_id": "c1", "hashtags": []}}}, 1),
        ("", "p6", {"posts": {"p6": {"creator_id": "c1", "hashtags": []}}}, 1 | 8),
        ("m6", "p42", {"posts": {"p42": {"creator_id": "c1", "hashtags": []}}}, 2),
        ("m6", "p6", {"posts": {"p6": {"creator_id": "c99", "hashtags": []}}}, 4),
        ("m6", "p6", {"posts": {"p6": {"creator_id": "c1", "hashtags": ["h1", "h99"]}}}, 4),
        ("m6", "p6", {"posts": {"p6": {"creator_id": None, "hashtags": [""]}}}, 0),
        ("m1", "p6", {"posts": {"p6": {"creator_id": "c1", "hashtags": []}}}, 8),
        ("m6", "p1", None, 16),
        ("m6", "p1", {"posts": {"p1": {"views": 3}}}, 0),
        ("stranger", "stranger", None, 1 | 2 | 8 | 16),
    ],
)
def test_2_the_unknown_bits_say_what_the_bundle_did_not_know(
    server: TritonServer, member: str, post: str, overrides: Any, bits: int
) -> None:
    texts = {} if overrides is None else {"overrides": [json.dumps(overrides)]}
    answer = send(server, {"member_id": [member], "post_ids": [post], **texts})
    assert answer.as_numpy("unknown").tolist() == [bits]


def test_2_without_a_member_in_the_spec_no_bit_speaks_of_members(feeds: dict[str, Feed]) -> None:
    feed, whole = feeds["b1"], plan()
    posts_only = {"member": None, "lookups": whole.lookups[2:5], "tables": whole.tables[1:]}
    memberless = ServingPlan(**{**vars(whole), **posts_only})
    snapshot, id_maps = feed.snapshot(), feed.id_maps
    tensors = {"member_id": np.array([b"m99"], object), "post_ids": np.array([b"p99"], object)}
    (answer,) = TransformStep("b1", memberless, id_maps, snapshot, 10).run([tensors])
    assert not isinstance(answer, Exception)
    assert answer["unknown"].tolist() == [2 | 16]


@pytest.mark.parametrize(
    ("tensors", "cause"),
    [
        ({"member_id": ["m6"], "post_ids": ["p6"] * 1001}, "post_ids: got 1001 candidates; must be 1 to 1000"),
        ({"member_id": ["m6"], "post_ids": [b"p\xff"]}, "not UTF-8"),
        ({"member_id": [b"\xc3"], "post_ids": ["p6"]}, "member_id[0]"),
        ({"post_ids": ["p6"]}, "member_id: missing"),
        ({"member_id": ["m6"]}, "post_ids: missing"),
        (
            {"member_id": ["m6"], "post_ids": ["p6"], "overrides": ['{"member": {"height": 1}}']},
            '"height" is not a feature',
        ),
        ({"member_id": ["m6"], "post_ids": ["p6"], "overrides": ['{"member": {"age": "x"}}']}, 'member.age: got "x"'),
        ({"member_id": ["m6"], "post_ids": ["p6"], "overrides": ["age=3"]}, "overrides: not JSON"),
    ],
)
def test_3_what_is_refused_is_named_by_bundle_step_and_cause(
    server: TritonServer, tensors: dict[str, Sequence[str | bytes]], cause: str
) -> None:
    with pytest.raises(InferenceServerException) as caught:
        send(server, tensors)
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert 'bundle "b1", feed_transform: ' in caught.value.message()
    assert cause in caught.value.message()


def test_3_no_candidate_is_refused_over_json(server: TritonServer) -> None:
    with pytest.raises(HTTPError) as caught:
        post_json(server, {"member_id": ["m6"], "post_ids": []})
    assert caught.value.code == 400
    assert "post_ids: got 0 candidates; must be 1 to 1000; send at least one" in caught.value.read().decode()


def test_3_a_tensor_of_the_wrong_type_is_refused(server: TritonServer) -> None:
    member = triton.InferInput("member_id", [1], "BYTES")
    member.set_data_from_numpy(np.array([b"m6"], object))
    posts = triton.InferInput("post_ids", [1], "INT64")
    posts.set_data_from_numpy(np.array([6]))
    with (
        triton.InferenceServerClient(server.grpc_url) as plain,
        pytest.raises(InferenceServerException, match="'post_ids' data-type") as caught,
    ):
        plain.infer(RANKER, [member, posts])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_4_the_answer_is_in_the_order_asked_and_repeats_repeated_posts(client: FeedClient) -> None:
    forward = client.rank("m6", ["p6", "p7", "p8", "p6"])
    backward = client.rank("m6", ["p6", "p8", "p7", "p6"])
    np.testing.assert_allclose(forward.score, backward.score[::-1], rtol=1e-6)
    assert forward.score[0] == forward.score[3]
    assert len(set(forward.score.tolist())) == 3


def test_5_grpc_http_and_json_give_the_same_answer(server: TritonServer, client: FeedClient) -> None:
    posts = ["p6", "p7", "p55"]
    over_grpc = client.rank("m6", posts)
    with FeedClient(server.http_url, "b1", "http") as http:
        over_http = http.rank("m6", posts)
    np.testing.assert_array_equal(over_http.score, over_grpc.score)
    for tensors in ({}, {"overrides": [""]}, {"overrides": ["{}"]}):
        over_json = post_json(server, {"member_id": ["m6"], "post_ids": posts, **tensors})
        np.testing.assert_allclose(over_json["score"]["data"], over_grpc.score, rtol=1e-6)
        assert over_json["bundle"]["data"] == ["b1"]


def test_6_the_configuration_names_the_responses(server: TritonServer) -> None:
    with urlopen(f"http://{server.http_url}/v2/models/{RANKER}/config") as answer:
        parameters = json.load(answer)["parameters"]
    assert json.loads(parameters["responses"]["string_value"]) == RESPONSES


def test_7_beyond_the_queue_a_request_is_unavailable_at_once_and_those_in_it_are_answered(
    bundle_root: Path, tmp_path: Path
) -> None:
    settings = config(max_queue_size=4, max_queue_ms=60_000, max_candidates=100_000, instances={"dense": 2})
    export(bundle_root, "b1", settings, tmp_path)
    request = well_formed("b1", posts=(b"p6",) * 20_000)
    with TritonServer(tmp_path, ["b1"], settings) as server:
        options = [("grpc.max_receive_message_length", -1)]
        stub = service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(server.grpc_url, options))
        begun = time.monotonic()
        calls = [stub.ModelInfer.future(request, timeout=60) for _ in range(60)]
        took_s: dict[int, float] = {}
        ended = threading.Semaphore(0)
        for i, call in enumerate(calls):
            call.add_done_callback(lambda _, i=i: (took_s.setdefault(i, time.monotonic() - begun), ended.release()))
        for _ in calls:
            ended.acquire()
        codes = Counter(call.code() for call in calls)
        refused = [call for call in calls if call.code() == grpc.StatusCode.UNAVAILABLE]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        assert codes[grpc.StatusCode.OK] >= 6  # at least those that found room: in the queue and in the processes
        assert all("Exceeds maximum queue size" in call.details() for call in refused)
        assert all("feed_ranker_b1" in call.details() for call in refused)
        answered_s = [took_s[i] for i, call in enumerate(calls) if call.code() == grpc.StatusCode.OK]
        refused_s = [took_s[i] for i, call in enumerate(calls) if call.code() != grpc.StatusCode.OK]
        assert min(refused_s) < max(answered_s)  # refused while others still wait
        # A client's own deadline cuts the time in the queue, too.
        request.parameters["timeout"].int64_param = 1000
        calls = [stub.ModelInfer.future(request, timeout=60) for _ in range(30)]
        said = Counter(call.exception().details().split(", ")[-1] if call.exception() else "ok" for call in calls)
        assert any("Request timeout expired" in words for words in said), said


def test_8_a_probe_of_health_is_answered_and_not_counted(server: TritonServer) -> None:
    def counted() -> float:
        with urlopen(server.metrics_url) as page:
            lines = page.read().decode().splitlines()
        wanted = ("sparsefeed_requests_total", 'bundle="b1"', 'step="feed_transform"', 'outcome="ok"')
        (line,) = [line for line in lines if line.startswith(wanted[0]) and all(part in line for part in wanted)]
        return float(line.split()[-1])

    send(server, {"member_id": ["m6"], "post_ids": ["p6"]})
    time.sleep(2.5)  # the page is at most a second old
    before = counted()
    request = well_formed("b1")
    for name in (PROBE, "another"):
        request.id = name
        with grpc.insecure_channel(server.grpc_url) as channel:
            assert service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request).id == name
    time.sleep(2.5)
    assert counted() == before + 1
