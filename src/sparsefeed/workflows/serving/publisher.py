"""Publisher: a step's readings on Triton's Prometheus page, once a second, from a thread of the step's process.

Notable: each metric set or raised is a message to the server's process and back; so requests only count in memory,
and what has changed is sent together, beside them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sparsefeed.workflows.serving.steps.readings import FAMILIES, Reading

__all__ = ["Publisher"]

_LOG = logging.getLogger(__name__)


class Publisher:
    """Sends readings under fixed labels until it is closed.

    Args:
        triton: The module `triton_python_backend_utils`.
        read: Gives the readings of now; called from the publisher's thread.
        labels: Of every counter.
        process: Names the process; a label of gauges alone, which cannot be added up over processes.
        every_s: Seconds between two looks.
    """

    def __init__(
        self,
        triton: Any,
        read: Callable[[], Iterable[Reading]],
        labels: Mapping[str, str],
        process: str,
        every_s: float = 1.0,
    ) -> None:
        self._triton, self._read, self._labels, self._process = triton, read, dict(labels), process
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        self._sent: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._every_s, self._closing = every_s, threading.Event()
        self._thread = threading.Thread(target=self._run, name="sparsefeed-publisher", daemon=True)
        self._thread.start()

    def publish(self) -> None:
        """Send what has changed since the last time."""
        for name, value, labels in self._read():
            before = self._sent.get((name, labels), 0.0)
            if value == before and (name, labels) in self._metrics:
                continue
            kind = FAMILIES[name][0]
            metric = self._metric(name, kind, labels)
            if kind == "gauge":
                metric.set(value)
            elif value > before:
                metric.increment(value - before)
            self._sent[name, labels] = value

    def close(self) -> None:
        """Send the rest, and stop."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        closing = False
        while not closing:
            closing = self._closing.wait(self._every_s)
            try:
                self.publish()
            except Exception:  # a page that cannot be written must not end what it is about
                _LOG.exception("metrics were not published")

    def _metric(self, name: str, kind: str, labels: tuple[tuple[str, str], ...]) -> Any:
        found = self._metrics.get((name, labels))
        if found is None:
            family = self._families.get(name)
            if family is None:
                kinds = self._triton.MetricFamily
                family = self._families[name] = kinds(
                    name=name,
                    description=FAMILIES[name][1],
                    kind=kinds.GAUGE if kind == "gauge" else kinds.COUNTER,
                )
            own = {"process": self._process} if kind == "gauge" else {}
            found = self._metrics[name, labels] = family.Metric(labels=self._labels | own | dict(labels))
        return found
