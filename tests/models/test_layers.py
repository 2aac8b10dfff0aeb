"""The layer rule: workflows -> models -> etl, and a core that imports numpy, pyarrow and numba alone."""

from __future__ import annotations

import importlib.util
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = (
    "sparsefeed.etl.ids",
    "sparsefeed.etl.kernels",
    "sparsefeed.etl.plan",
    "sparsefeed.etl.snapshot",
    "sparsefeed.models.store",
    "sparsefeed.workflows.release.routing",
    "sparsefeed.workflows.serving.steps",
)
HEAVY = {"torch", "torchrec", "dask", "distributed", "nvtabular", "merlin", "pandas", "cudf", "pydantic"}


def core_modules() -> list[str]:
    names = []
    for name in CORE:
        spec = importlib.util.find_spec(name)
        assert spec is not None, f"{name} is named as core but is not there"
        names.append(name)
        names += [f"{name}.{module.name}" for module in pkgutil.iter_modules(spec.submodule_search_locations or [])]
    return names


def test_the_contracts_of_import_linter_are_kept() -> None:
    pytest.importorskip("importlinter")
    script = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_module_of_the_core_loads_a_heavy_library() -> None:
    names = core_modules()
    assert len(names) > len(CORE)
    script = f"""
import importlib, sys
for name in {names!r}:
    importlib.import_module(name)
    loaded = set({sorted(HEAVY)!r}) & set(sys.modules)
    assert not loaded, f"{{name}} loads {{sorted(loaded)}}"
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
