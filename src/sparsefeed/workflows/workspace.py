"""Workspace: where a run keeps what it makes. One folder, a room for each stage.

Notable: the ETL, the days added to it and their models are one *base*. The first lies in the root itself; one that a
retrain made has a folder of its own, and is in force from the moment the file `base` names it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

__all__ = ["Workspace"]

_ROOMS = ("etl", "etl-days", "training", "training-days", "evaluation.json")  # of a base


@dataclass(frozen=True)
class Workspace:
    """Paths below the run's root folder (default `artifacts/`).

    Attributes:
        root: the folder.
        of_base: a base whose paths are meant, whether or not it is in force; None: the one that is.
    """

    root: Path
    of_base: str | None = None

    @property
    def base(self) -> str:
        """The base that paths are of: the day of the retrain that made it; "" for the first."""
        if self.of_base is not None:
            return self.of_base
        try:
            return (self.root / "base").read_text("utf-8").strip()
        except FileNotFoundError:
            return ""

    def put_in_force(self) -> None:
        """Have every command mean this base from now on, by one atomic rename."""
        beside = self.root / ".base.partial"
        with beside.open("w", encoding="utf-8") as file:
            file.write(f"{self.base}\n")
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.root / "base")
        folder = os.open(self.root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def other_bases(self) -> Iterator[Path]:
        """What is there of bases that are not in force: before one, or made and refused."""
        if self.base:
            yield from (path for name in _ROOMS if (path := self.root / name).exists())
        yield from (path for path in sorted(self.root.glob("bases/*")) if path.name != self.base)

    @property
    def _base(self) -> Path:
        return self.root / "bases" / base if (base := self.base) else self.root

    @property
    def logs(self) -> Path:
        """Simulated logs, or those of a published data set (others are given by --logs)."""
        return self.root / "logs"

    @property
    def etl(self) -> Path:
        """Training parquet and fitted artefacts."""
        return self._base / "etl"

    @property
    def etl_days(self) -> Path:
        """Days added to the ETL, each like `etl`."""
        return self._base / "etl-days"

    def training(self, weights: str) -> Path:
        """Checkpoints and learning curve of a training run, by its weights ("ips" or "none")."""
        return self._base / "training" / weights

    def training_day(self, weights: str, day: date | str) -> Path:
        """What training a day that was added to the ETL left, or a part of it: like `training`, and `changes/`."""
        return self._base / "training-days" / weights / str(day)

    @property
    def evaluation(self) -> Path:
        """Quality of the models, as JSON."""
        return self._base / "evaluation.json"

    def evaluation_day(self, day: date | str) -> Path:
        """Quality, on a day that was added, of the models of the days before it; as JSON."""
        return self.root / "evaluation-days" / f"{day}.json"

    def gate(self, day: date | str) -> Path:
        """What a day's version was found to be worth before it was made; as JSON."""
        return self.evaluation_day(day).with_suffix(".gate.json")

    def retrain_gate(self, day: date) -> Path:
        """What the model that a retrain made was found to be worth on its day; as JSON."""
        return self.evaluation_day(day).with_suffix(".retrain.json")

    @property
    def loop(self) -> Path:
        """What every day of `sparsefeed loop` gave and took, a line of JSON each."""
        return self.root / "loop.jsonl"

    @property
    def deltas(self) -> Path:
        """What refreshes changed, a folder a day (docs/contracts/delta.md)."""
        return self.root / "deltas"

    @property
    def bundles(self) -> Path:
        """`versions/` and `current`."""
        return self.root / "bundles"

    @property
    def triton_repo(self) -> Path:
        """Deployable Triton model folders."""
        return self.root / "triton_repo"

    def server(self, replica: int = 0) -> Workspace:
        """Where another server on this machine keeps its models, routes and log; the workspace itself for the first."""
        return Workspace(self.root / "replicas" / str(replica)) if replica else self

    @property
    def release(self) -> Path:
        """Routes of the server, the log of its releases, its figures."""
        return self.root / "release"

    @property
    def server_log(self) -> Path:
        """What tritonserver printed."""
        return self.root / "tritonserver.log"

    @property
    def bench(self) -> Path:
        """Latency measurements, as JSON."""
        return self.root / "bench.json"

    @property
    def width(self) -> Path:
        """Time of the dense step by its width, as JSON."""
        return self.root / "width.json"

    @property
    def ranking(self) -> Path:
        """One feed before and after ranking, as JSON."""
        return self.root / "ranking.json"

    @property
    def report(self) -> Path:
        """The report."""
        return self.root / "report.html"
