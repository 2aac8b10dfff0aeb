from __future__ import annotations

from sparsefeed.workflows.serving.steps.readings import FAMILIES, SECONDS, Meter, Reading


def value(readings: list[Reading], name: str, **labels: str) -> float:
    (found,) = [one.value for one in readings if one.name == name and dict(one.labels) == labels]
    return found


def test_a_meter_counts_requests_by_outcome_and_calls_by_time() -> None:
    meter = Meter()
    meter.add(0.0004, ok=3)
    meter.add(0.004, ok=1, refused=2)
    meter.add(3.0, failed=1)
    found = list(meter.readings())
    for outcome, count in {"ok": 4, "refused": 2, "failed": 1}.items():
        assert value(found, "sparsefeed_requests_total", outcome=outcome) == count
    assert value(found, "sparsefeed_calls_total") == 3
    assert value(found, "sparsefeed_compute_seconds_total") == 3.0044
    buckets = {one.labels[0][1]: one.value for one in found if one.name == "sparsefeed_compute_seconds_bucket"}
    assert list(buckets) == [*map(str, SECONDS), "+Inf"]
    assert list(buckets.values()) == sorted(buckets.values())  # as Prometheus has them: each holds those below
    assert (buckets["0.0005"], buckets["0.002"], buckets["0.005"], buckets["0.5"], buckets["+Inf"]) == (1, 1, 2, 2, 3)


def test_every_reading_has_a_family_and_counters_are_named_like_counters() -> None:
    assert {one.name for one in Meter().readings()} <= set(FAMILIES)
    for name, (kind, said) in FAMILIES.items():
        assert (kind == "counter") == name.endswith(("_total", "_bucket"))
        assert said
