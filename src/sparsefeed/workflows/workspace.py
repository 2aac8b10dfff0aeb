"""Workspace: where a run keeps what it makes. One folder, a room for each stage."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

__all__ = ["Workspace"]


@dataclass(frozen=True)
class Workspace:
    """Paths below the run's root folder (default `artifacts/`)."""

    root: Path

    @property
    def logs(self) -> Path:
        """Simulated logs, or those of a published data set (others are given by --logs)."""
        return self.root / "logs"

    @property
    def etl(self) -> Path:
        """Training parquet and fitted artefacts."""
        return self.root / "etl"

    @property
    def etl_days(self) -> Path:
        """Days added to the ETL, each like `etl`."""
        return self.root / "etl-days"

    def training(self, weights: str) -> Path:
        """Checkpoints and learning curve of a training run, by its weights ("ips" or "none")."""
        return self.root / "training" / weights

    def training_day(self, weights: str, day: date | str) -> Path:
        """What training a day that was added to the ETL left, or a part of it: like `training`, and `changes/`."""
        return self.root / "training-days" / weights / str(day)

    @property
    def evaluation(self) -> Path:
        """Quality of the models, as JSON."""
        return self.root / "evaluation.json"

    def evaluation_day(self, day: date | str) -> Path:
        """Quality, on a day that was added, of the models of the days before it; as JSON."""
        return self.root / "evaluation-days" / f"{day}.json"

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
