"""Whatever bytes a client sends, the server answers with the right code, stays up, and holds no more than before."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2_grpc

from sparsefeed.models.bundle import Bundle, open_version
from sparsefeed.workflows.serving.memory import running
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.malformed import malformed, well_formed

pytestmark = pytest.mark.triton
MIB = 2**20


@pytest.fixture(scope="module")
def stub(server: TritonServer) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_url, [("grpc.max_receive_message_length", -1)]) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel)


def send_all(stub: Any, count: int, seed: int) -> dict[str, Counter[str]]:
    """Send so many requests one by one, and a good one now and then; codes by kind."""
    want = stub.ModelInfer(well_formed("b1")).raw_output_contents
    codes: dict[str, Counter[str]] = defaultdict(Counter)
    for i, (kind, request) in enumerate(malformed("b1", count, seed)):
        try:
            answer = stub.ModelInfer(request, timeout=60)
            # Triton passes over raw contents that no input asks for; and to look no key up is no fault.
            nothing = kind == "to_a_step" and not any(answer.raw_output_contents)
            assert nothing or answer.raw_output_contents == want, (kind, str(request)[:500])
            code = "OK"
        except grpc.RpcError as error:
            code = error.code().name
            assert "Traceback" not in error.details()
            assert "\nAt:" not in error.details(), error.details()  # Triton's own way to show a Python traceback
            assert code in ("INVALID_ARGUMENT", "NOT_FOUND"), (kind, code, error.details(), str(request)[:500])
        codes[kind][code] += 1
        if i % 100 == 0:
            assert stub.ModelInfer(well_formed("b1")).raw_output_contents == want
    return codes


def held(server: TritonServer, repository: Path, bundle: Bundle) -> tuple[dict[int, int], int]:
    """Bytes of memory by process, and bytes in /dev/shm."""
    processes = {p.process_id: p.pss_bytes for p in running(repository, bundle)}
    assert server.process_id in processes
    return processes, sum(path.stat().st_size for path in Path("/dev/shm").glob("sparsefeed_*"))


def check(
    server: TritonServer, repository: Path, bundle: Bundle, stub: Any, count: int, seed: int, num_readings: int
) -> None:
    def readings(seed: int) -> list[tuple[dict[int, int], int]]:
        # What large requests leave in the server's heap comes and goes; so several looks, each after every kind.
        found = []
        for i in range(num_readings):
            send_all(stub, 400, seed + i)
            found.append(held(server, repository, bundle))
        return found

    before = readings(seed + 1000)
    codes = send_all(stub, count, seed)
    after = readings(seed + 2000)
    assert sum(sum(counts.values()) for counts in codes.values()) == count
    assert {kind for kind, counts in codes.items() if counts["OK"]} <= {"contents_mixed_up", "to_a_step"}
    assert {kind for kind, counts in codes.items() if counts["NOT_FOUND"]} == {"no_such_model", "shared_memory"}
    for process_id in before[0][0]:
        assert all(process_id in processes for processes, _ in after)  # no process died
        most, least = max(p[process_id] for p, _ in before), min(p[process_id] for p, _ in after)
        assert least - most < 32 * MIB, (process_id, before, after)
    # Triton's pool grows in steps and keeps what it has.
    assert min(shared for _, shared in after) - max(shared for _, shared in before) < 32 * MIB


def test_two_thousand_malformed_requests_are_refused_with_the_right_code(
    server: TritonServer, repository: Path, bundle_root: Path, stub: Any
) -> None:
    check(server, repository, open_version(bundle_root, "b1"), stub, 2000, seed=1, num_readings=4)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_malformed_requests_are_refused_with_the_right_code(
    server: TritonServer, repository: Path, bundle_root: Path, stub: Any
) -> None:
    check(server, repository, open_version(bundle_root, "b1"), stub, 100_000, seed=3, num_readings=5)


def test_a_string_whose_length_is_a_lie_is_refused_by_its_tensor_and_step(stub: Any) -> None:
    request = well_formed("b1")
    request.raw_input_contents[1] = b"\xff\xff\xff\xff" + request.raw_input_contents[1][4:]
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert 'bundle "b1", feed_transform: post_ids: string 0 has' in caught.value.details()


def test_what_a_client_made_long_comes_back_short(stub: Any) -> None:
    request = well_formed("b1")
    text = b'{"member": {"' + "\U0001f600".encode() * 9000 + b'": 1}}'
    request.inputs.add(name="overrides", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(text).to_bytes(4, "little") + text)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # not RESOURCE_EXHAUSTED: headers have a limit
    assert "is not a feature of the member" in caught.value.details()
