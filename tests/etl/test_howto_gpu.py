"""docs/howto/gpu.md and environment.yml: settings that can be meant, versions that the CPU environment has too."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.spec import validate

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "gpu.md").read_text("utf-8")
ENVIRONMENT = (ROOT / "environment.yml").read_text("utf-8")


def test_the_settings_of_the_page_are_ones_that_the_declaration_has() -> None:
    here, there = (
        validate(EtlConfig, yaml.safe_load(b)["etl"]) for b in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    )
    assert (here.cluster.gpu, here.cluster.address) == (True, None)
    assert there.cluster.address == "tcp://scheduler:8786"


def test_python_on_the_page_compiles() -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        compile(block, "gpu.md", "exec")


def test_what_both_environments_pin_is_one_version() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    on_cpu = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    *conda, of_pip = yaml.safe_load(ENVIRONMENT)["dependencies"]
    exact = dict(re.split("==?", pin) for pin in [*conda, *of_pip["pip"]] if re.search("[a-z]==?[0-9]", pin))
    shared = {name: version for name, version in exact.items() if name in on_cpu and name != "pyarrow"}
    assert {"dask", "distributed", "pandas", "nvtabular", "merlin-core", "dask-cuda"} <= set(shared)
    for name, version in shared.items():
        loose = [int(part) for part in version.split(".")]
        assert [int(part) for part in on_cpu[name].split(".")][: len(loose)] == loose, name
