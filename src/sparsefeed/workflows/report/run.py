"""Run: what a workspace holds of one run, read once and checked field by field.

Notable: a file that is not there is None, for a run may have come only half way; a file that is there but
cannot be meant is an error that names it, the field and the command that makes it again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sparsefeed.errors import BadFileError, DataError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.bundle import Manifest, open_version
from sparsefeed.workflows.loop import LoopDay, read_loop
from sparsefeed.workflows.workspace import Workspace

__all__ = [
    "Bench",
    "CurvePoint",
    "Deciles",
    "Etl",
    "Evaluation",
    "IpsCell",
    "Load",
    "Metrics",
    "Quality",
    "RankedPost",
    "Ranking",
    "Run",
    "Served",
    "SimulatedCounts",
    "SimulatedWorld",
    "Simulation",
    "Slice",
    "SliceMetrics",
    "StepTime",
    "StoredTable",
    "read_run",
]

_WEIGHTS = ("ips", "none")


class _Record(BaseModel):
    # A stage may write more than the report shows.
    model_config = ConfigDict(frozen=True, extra="ignore")


class SimulatedWorld(_Record):
    """How large the simulated platform is."""

    scale: str
    seed: int
    num_members: int
    num_creators: int
    num_posts_per_day: int


class SimulatedCounts(_Record):
    """How much was logged."""

    impressions: int
    random_impressions: int


class Simulation(_Record):
    """`logs/simulation.json`."""

    config: SimulatedWorld
    summary: SimulatedCounts


class Etl(_Record):
    """`etl/etl.json`."""

    train_days: tuple[str, ...] = Field(min_length=1)
    eval_days: tuple[str, ...] = Field(min_length=1)
    num_train_rows: int
    num_eval_rows: int
    num_ids: dict[str, int]  # ids with a row of their own, by table
    num_rows: dict[str, int]  # with padding, null and tail
    capacity_rows: dict[str, int]
    warnings: tuple[str, ...] = ()


class IpsCell(_Record):
    """One row of `etl/ips.parquet`: a response, surface, position bucket and y, of rows that sampling left whole."""

    response: str
    surface: str
    position: int
    y: int
    weight: float
    reason: str  # "" where covered, else why the weight is 1
    low: float | None = None  # 95 % bounds of the ratio of rates, before it was clipped and normalised; None where a
    high: float | None = None  # rate is 0
    num_random: int
    num_random_y: int
    num_production: int
    num_production_y: int


class CurvePoint(_Record):
    """One line of `curve.jsonl`: the mean loss since the line before."""

    samples: int
    loss: dict[str, float]


class SliceMetrics(_Record):
    """Quality of one model for one response in a slice; NaN where it is not defined."""

    auc: float
    log_loss: float
    predicted_over_actual: float


class SliceQuality(SliceMetrics):
    """Measured on drawn labels; `expected` on the true probabilities, where they are known."""

    expected: SliceMetrics | None = None

    @property
    def best_known(self) -> SliceMetrics:
        """`expected`, or else what was measured on drawn labels."""
        return self.expected or self


class Slice(_Record):
    """Some of the rows: response -> model -> quality."""

    num_rows: int
    responses: dict[str, dict[str, SliceQuality]]


class Metrics(SliceMetrics):
    """Quality of one model for one response on all rows; the last two within members."""

    normalised_entropy: float
    grouped_auc: float = math.nan
    ndcg: float = math.nan


class Deciles(_Record):
    """Mean prediction and mean label over bins of rising prediction."""

    predicted: tuple[float, ...]
    actual: tuple[float, ...]


class Quality(Metrics):
    """Measured on drawn labels; `expected` on the true probabilities, where they are known."""

    curve: Deciles
    expected: Metrics | None = None


class Evaluation(_Record):
    """`evaluation.json`: response -> model -> quality."""

    num_rows: int
    responses: dict[str, dict[str, Quality]] = Field(min_length=1)
    calibrated: dict[str, Metrics] = {}  # of the first model, by response
    compared: tuple[str, ...] = ()  # the models of the slices: the first one and the best baseline
    slices: dict[str, dict[str, Slice]] = {}  # by what -> slice

    @property
    def observed(self) -> dict[str, dict[str, Metrics]]:
        """Response -> model -> quality on the drawn labels."""
        return {response: dict(models) for response, models in self.responses.items()}

    @property
    def expected(self) -> dict[str, dict[str, Metrics]]:
        """Response -> model -> quality on the true probabilities; empty where one is not known."""
        known = {r: {m: q.expected for m, q in models.items() if q.expected} for r, models in self.responses.items()}
        return known if all(len(known[r]) == len(models) for r, models in self.responses.items()) else {}

    @property
    def best_known(self) -> dict[str, dict[str, Metrics]]:
        """`expected`, or else `observed`."""
        return self.expected or self.observed


class StoredTable(_Record):
    """One table of a bundle's `tables.json`."""

    name: str
    dim: int
    rows: int
    row_format: str

    @property
    def bytes_fp32(self) -> int:
        """Its size as float32 rows."""
        return self.rows * self.dim * 4

    @property
    def bytes_int8(self) -> int:
        """Its size as int8 rows, each with a float32 scale and bias (docs/contracts/tables.md)."""
        return self.rows * (self.dim + 8)


class _StoredTables(_Record):
    tables: tuple[StoredTable, ...] = Field(min_length=1)


class StepTime(_Record):
    """Mean milliseconds per request in one step of the server."""

    step: str
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float

    @property
    def compute_ms(self) -> float:
        """All but waiting."""
        return self.input_ms + self.infer_ms + self.output_ms


class Load(_Record):
    """What clients saw with so many candidates a request and requests in flight."""

    candidates: int
    concurrency: int
    requests_per_s: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    steps: tuple[StepTime, ...]

    @property
    def name(self) -> str:
        """How plots and tables call it."""
        return f"{self.candidates} posts, {self.concurrency} in flight"


class Bench(_Record):
    """`bench.json`."""

    bundle: str
    machine: str
    loads: tuple[Load, ...] = Field(min_length=1)


class RankedPost(_Record):
    """One post of a feed: its place as shown and as ranked."""

    post: str
    before: int
    after: int
    score: float
    probability: dict[str, float]
    unknown: tuple[str, ...]


class Ranking(_Record):
    """`ranking.json`: one session of one member."""

    bundle: str
    member: str
    posts: tuple[RankedPost, ...] = Field(min_length=1)


@dataclass(frozen=True)
class Served:
    """The current bundle."""

    manifest: Manifest
    spec: FeedSpec
    tables: tuple[StoredTable, ...]


@dataclass(frozen=True)
class Run:
    """What a workspace holds; None for what was not made yet.

    Attributes:
        spec: the declaration the ETL ran with; given where `etl` is.
        ips: the cells of the weights, in the order of the file; also None where the spec has none.
        curves: learning curves by weights ("ips", "none"), of the trainings that began.
        loop: days of the loop, in order; empty where there was none.
    """

    spec: FeedSpec | None
    simulation: Simulation | None
    etl: Etl | None
    ips: tuple[IpsCell, ...] | None
    curves: Mapping[str, tuple[CurvePoint, ...]]
    evaluation: Evaluation | None
    served: Served | None
    bench: Bench | None
    ranking: Ranking | None
    loop: tuple[LoopDay, ...] = ()

    @property
    def judged_on(self) -> str:
        """What the evaluation's rows are: without declared sessions no impression is known to be random."""
        random = self.spec is None or self.spec.sessions is not None
        return "held-out impressions of random sessions" if random else "held-out impressions"


def read_run(workspace: Workspace) -> Run:
    """Read every file the report shows.

    Raises:
        DataError: the workspace is not there, or (BadFileError) a file of it is damaged.
        SpecError, BundleError, ReleaseError: the spec, the current bundle or loop.jsonl is.
    """
    if not workspace.root.is_dir():
        raise DataError(f"{workspace.root}: not there; run `sparsefeed demo`, or give the folder of a run")
    etl = _read(workspace.etl / "etl.json", _json(Etl), "etl")
    curves = {
        weights: _read(workspace.training(weights) / "curve.jsonl", _curve, f"train --weights {weights}")
        for weights in _WEIGHTS
    }
    return Run(
        # Without etl.json the folder is unfinished and is not read (docs/contracts/training.md).
        spec=FeedSpec.load(workspace.etl / "spec.json") if etl else None,
        simulation=_read(workspace.logs / "simulation.json", _json(Simulation), "simulate"),
        etl=etl,
        ips=_read(workspace.etl / "ips.parquet", _ips, "etl") if etl else None,
        curves={weights: curve for weights, curve in curves.items() if curve},
        evaluation=_read(workspace.evaluation, _json(Evaluation), "eval"),
        served=_served(workspace.bundles),
        bench=_read(workspace.bench, _json(Bench), "bench"),
        ranking=_read(workspace.ranking, _json(Ranking), "bench"),
        loop=tuple(read_loop(workspace.loop)),
    )


Content = TypeVar("Content")
Model = TypeVar("Model", bound=BaseModel)


def _read(path: Path, parse: Callable[[bytes], Content], command: str) -> Content | None:
    try:
        return parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in fault["loc"]).lstrip(".")
        cause = f"{where}: {fault['msg']}" if where else fault["msg"]
        raise BadFileError(path, f"{cause}; make it again with `sparsefeed {command}`") from error
    except (OSError, pa.ArrowException) as error:
        raise BadFileError(path, f"{error}; make it again with `sparsefeed {command}`") from error


def _json(model: type[Model]) -> Callable[[bytes], Model]:
    return model.model_validate_json


def _curve(content: bytes) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint.model_validate_json(line) for line in content.splitlines())


def _ips(content: bytes) -> tuple[IpsCell, ...]:
    rows = pq.read_table(pa.BufferReader(content)).to_pylist()
    # Other strata are the same cells again, their weights times what sampling left out.
    whole = [row for row in rows if row.get("stratum", 0) == 0]
    return TypeAdapter(tuple[IpsCell, ...]).validate_python(whole)


def _served(root: Path) -> Served | None:
    if not (root / "current").exists():
        return None
    version = open_version(root)
    path = version.tables / "tables.json"
    index = _read(path, _json(_StoredTables), "export")
    if index is None:
        raise BadFileError(path, "missing; make the bundle again with `sparsefeed export`")
    return Served(version.manifest, FeedSpec.load(version.spec), index.tables)
