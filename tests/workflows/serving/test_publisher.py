from __future__ import annotations

from typing import Any

from sparsefeed.workflows.serving.publisher import Publisher
from sparsefeed.workflows.serving.steps.readings import Reading


class Page:
    """Stands for triton_python_backend_utils: keeps what would be on the page."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, str], float] = {}
        self.messages = 0
        page = self

        class MetricFamily:
            COUNTER, GAUGE = "counter", "gauge"

            def __init__(self, name: str, description: str, kind: str) -> None:
                self.name, self.kind = name, kind

            def Metric(self, labels: dict[str, str]) -> Any:  # Triton's name
                key = (self.name, ",".join(f"{k}={v}" for k, v in sorted(labels.items())))
                page.values.setdefault(key, 0.0)
                family = self

                class Metric:
                    def increment(self, by: float) -> None:
                        assert family.kind == "counter"
                        assert by > 0
                        page.values[key] += by
                        page.messages += 1

                    def set(self, value: float) -> None:
                        assert family.kind == "gauge"
                        page.values[key] = value
                        page.messages += 1

                return Metric()

        self.MetricFamily = MetricFamily


def test_counters_grow_by_what_was_added_and_gauges_are_of_now() -> None:
    page, counted = Page(), {"calls": 2.0, "mean": 0.5}

    def read() -> list[Reading]:
        return [
            Reading("sparsefeed_calls_total", counted["calls"]),
            Reading("sparsefeed_unknown_total", 0, (("kind", "post_id"),)),
            Reading("sparsefeed_score_mean", counted["mean"]),
        ]

    publisher = Publisher(page, read, {"bundle": "b1", "step": "feed_dense"}, "feed_dense_0", every_s=3600)
    publisher.publish()
    sent = page.messages
    publisher.publish()
    assert page.messages == sent == 2  # what has not changed is not sent; a counter of nothing is on the page
    counted.update(calls=5.0, mean=-0.25)
    publisher.publish()
    assert page.values == {
        ("sparsefeed_calls_total", "bundle=b1,step=feed_dense"): 5.0,
        ("sparsefeed_unknown_total", "bundle=b1,kind=post_id,step=feed_dense"): 0.0,
        ("sparsefeed_score_mean", "bundle=b1,process=feed_dense_0,step=feed_dense"): -0.25,
    }
    counted["calls"] = 6.0
    publisher.close()  # sends the rest
    assert page.values["sparsefeed_calls_total", "bundle=b1,step=feed_dense"] == 6.0


def test_a_page_that_fails_does_not_end_the_publishing(caplog: Any) -> None:
    page, failing = Page(), [True]

    def read() -> list[Reading]:
        if failing.pop() if failing else False:
            raise RuntimeError("no memory")
        return [Reading("sparsefeed_calls_total", 1)]

    publisher = Publisher(page, read, {}, "p", every_s=0.01)
    while not page.values:
        pass
    publisher.close()
    assert "metrics were not published" in caplog.text
