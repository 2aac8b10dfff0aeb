from __future__ import annotations

import pytest

from sparsefeed.errors import ServeError
from sparsefeed.workflows.serving.perf import StepTime, measure, parse_csv, step_times
from sparsefeed.workflows.serving.request import STEPS
from sparsefeed.workflows.serving.server import TritonServer

HEADER = "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency"


def test_the_csv_is_read_by_its_header_whatever_the_order() -> None:
    (load,) = parse_csv(f"{HEADER}\n4,227.5,6,3651,8451,9389,11659\n")
    columns, values = HEADER.split(","), ["4", "227.5", "6", "3651", "8451", "9389", "11659"]
    assert parse_csv(f"{','.join(reversed(columns))}\n{','.join(reversed(values))}\n") == (load,)
    assert (load.concurrency, load.requests_per_s) == (4, 227.5)
    assert (load.p50_ms, load.p90_ms, load.p95_ms, load.p99_ms) == (3.651, 8.451, 9.389, 11.659)


@pytest.mark.parametrize(
    "text", ["Concurrency,Inferences/Second\n1,2\n", f"{HEADER}\n1,fast,6,1,1,1,1\n", f"{HEADER}\n1\n"]
)
def test_a_csv_without_its_columns_is_an_error(text: str) -> None:
    with pytest.raises(ServeError, match="perf_analyzer: its CSV lacks or garbles a column"):
        parse_csv(text)


def test_step_times_are_means_of_what_was_added_between_two_readings() -> None:
    def reading(count: int, ns: int) -> dict[str, dict[str, int]]:
        parts = {
            part: {"count": count, "ns": ns} for part in ("queue", "compute_input", "compute_infer", "compute_output")
        }
        return {"success": {"count": count, "ns": 0}, **parts}

    times = step_times({"feed_hps": reading(10, 5_000_000)}, {"feed_hps": reading(14, 13_000_000)})
    assert times == (StepTime("hps", 2.0, 2.0, 2.0, 2.0),)


def test_without_requests_there_is_nothing_to_measure() -> None:
    with pytest.raises(ServeError, match="requests: got none"):
        measure("127.0.0.1:1", "b1", [])


@pytest.mark.triton
def test_a_running_server_is_measured_per_concurrency_and_per_step(server: TritonServer) -> None:
    told: list[str] = []
    drawn = [("m1", ["p1", "p2"]), ("", ["p3"] * 20)]
    loads = measure(
        server.grpc_url,
        "b1",
        drawn,
        concurrencies=(1, 2),
        num_requests=20,
        progress=lambda done, total, what: told.append(what),
    )
    assert [load.concurrency for load in loads] == [1, 2]
    assert told == ["1 requests in flight", "2 requests in flight", "measured"]
    for load in loads:
        assert load.requests_per_s > 1
        assert 0 < load.p50_ms <= load.p90_ms <= load.p95_ms <= load.p99_ms
        assert [step.step for step in load.steps] == [name.removeprefix("feed_") for name in STEPS]
        assert all(step.infer_ms > 0 for step in load.steps)


@pytest.mark.triton
def test_a_bundle_that_is_not_served_cannot_be_measured(server: TritonServer) -> None:
    with pytest.raises(ServeError, match="b9"):
        measure(server.grpc_url, "b9", [("m1", ["p1"])])
