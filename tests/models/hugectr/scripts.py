"""Runs models/hugectr/train.py as NVIDIA's container would, with the stub for its `hugectr`."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig
from sparsefeed.models.hugectr import train
from sparsefeed.models.plan import Plan, make_plan
from sparsefeed.models.topology import Topology
from tests.models.hugectr.stub import Graph, Stub

__all__ = ["MODEL", "plan_of", "run_script"]

MODEL = ModelConfig(hidden=(12, 6), cross_layers=2, cross_rank=3)


def plan_of(spec: FeedSpec, data: Path, gpus: int, model: ModelConfig = MODEL, **asked: Any) -> Plan:
    rows = json.loads((data / "etl.json").read_text())["capacity_rows"]
    topology = Topology.gpus(gpus, devices_per_host=min(gpus, 8))
    return make_plan(spec, model, rows, topology, 16 * gpus, asked=asked)


def run_script(
    patch: pytest.MonkeyPatch,
    folder: Path,
    data: Path,
    plan: Plan,
    *options: str,
    release: str = "24.06",
    spec: Path | None = None,
    rank: int = 0,
) -> Graph:
    """Run it in `folder`, where it writes `out`; what it recorded."""
    stub = Stub(release)
    plan.save(folder / "plan.json")
    mpi = ModuleType("mpi4py")
    mpi.MPI = SimpleNamespace(COMM_WORLD=SimpleNamespace(Get_rank=lambda: rank))  # type: ignore[attr-defined]
    with patch.context() as patched:
        patched.setitem(sys.modules, "hugectr", stub.module)
        patched.setitem(sys.modules, "mpi4py", mpi)
        given = ["--spec", spec or data / "spec.json", "--data", data, "--plan", "plan.json", "--out", "out"]
        patched.setattr(sys, "argv", ["train.py", *map(str, given), *options])
        patched.chdir(folder)
        runpy.run_path(train.__file__, run_name="__main__")
    return stub.graph
