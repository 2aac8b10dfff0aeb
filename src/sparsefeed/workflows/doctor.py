"""Doctor: what this machine has, what sparsefeed will use of it, and why not the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsefeed.native import library

__all__ = ["Finding", "examine"]


@dataclass(frozen=True)
class Finding:
    """One thing looked for."""

    what: str
    found: str  # version or description; "" if absent
    used_for: str
    why_not: str = ""


def _package(name: str, used_for: str, mend: str) -> Finding:
    try:
        return Finding(name, importlib.metadata.version(name), used_for)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, "", used_for, f"not installed; {mend}")


def _gpu() -> Finding:
    used_for = "ETL on LocalCUDACluster, training on NCCL"
    program = shutil.which("nvidia-smi")
    if program is None:
        return Finding("GPU", "", used_for, "no nvidia-smi on PATH: everything runs on the CPU")
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Finding("GPU", "", used_for, f"nvidia-smi fails: {error}")
    return Finding("GPU", "; ".join(answer.stdout.strip().splitlines()), used_for)


def _module(name: str, used_for: str, mend: str) -> Finding:
    found = importlib.util.find_spec(name) is not None
    return Finding(name, "importable" if found else "", used_for, "" if found else f"not importable; {mend}")


def _beside(name: str, used_for: str, mend: str) -> Finding:
    """A program of this environment, whether or not it is activated."""
    path = shutil.which(name, path=str(Path(sys.executable).parent))
    return Finding(name, "in this environment" if path else "", used_for, "" if path else f"not found; {mend}")


def _program(name: str, used_for: str, mend: str) -> Finding:
    path = shutil.which(name)
    return Finding(name, path or "", used_for, "" if path else f"not on PATH; {mend}")


def _version(package: str, find: Callable[[], object]) -> str:
    find()  # raises where the files are not whole
    return f"of {package} {importlib.metadata.version(package)}"


def examine() -> list[Finding]:
    """Look for everything sparsefeed can use; never raises."""
    from sparsefeed.workflows.serving.runtime import TritonRuntime

    gpu_machine = "environment.yml is the environment for a GPU machine"
    findings = [
        Finding("Python", platform.python_version(), "everything"),
        Finding("CPU", f"{os.cpu_count()} cores, {platform.machine()}", "everything"),
        _gpu(),
        _module("cudf", "ETL on GPU frames", gpu_machine),
        _module(
            "hugectr", "training on NVIDIA's trainer", "it comes in NVIDIA's container alone; TorchRec trains here"
        ),
        _package("nvtabular", "ETL", "make env"),
        _package("dask", "ETL on many processes", "make env"),
        _package("torch", "training", "make env"),
        _package("torchrec", "sharded embedding tables", "make env"),
        _package("onnxruntime", "the dense step of serving", "make env"),
    ]
    try:
        findings.append(Finding("tritonserver", _version("nvidia-pytriton", TritonRuntime.find), "serving"))
    except Exception as error:
        findings.append(Finding("tritonserver", "", "serving", str(error)))
    found = "built" if library.built() else ""
    findings.append(Finding("native lookup", found, "serving, feed_hps", "" if found else f"not built; {library.HOW}"))
    findings.append(_package("tritonclient", "FeedClient", "make env"))
    findings.append(_beside("perf_analyzer", "measuring the server", "it comes with tritonclient; make env"))
    findings.append(
        _program("redis-server", "the shared tier of the parameter server", "install Debian's redis-server")
    )
    return findings
