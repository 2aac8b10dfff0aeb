"""Measure a suite on this machine and append its rows to benchmarks/results.csv.

    python benchmarks/run.py etl|train|quality|serve|release|ids|all [--scale tiny|small|large] [--check]

Suites share one workspace (artifacts/bench), so `all` simulates, prepares and trains once. --check prints every
target of benchmarks/targets.toml with its measured figure and exits with 1 where one falls short.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from etl_suite import etl
from ids import ids
from quality_suite import quality
from release_suite import release
from results import Recorder, Row, append, check, read
from serve_suite import serve
from train_suite import train

from sparsefeed.workflows.console import console, quiet_libraries
from sparsefeed.workflows.recipe import Recipe, load_recipe
from sparsefeed.workflows.workspace import Workspace

Suite = Callable[[Recipe, Workspace, Recorder], list[Row]]


SUITES: dict[str, Suite] = {
    "etl": etl,
    "train": train,
    "quality": quality,
    "serve": serve,
    "release": release,
    "ids": ids,
}


def main() -> int:
    """Run, record, and check if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=[*SUITES, "all"])
    parser.add_argument("--scale", default="tiny", choices=["tiny", "small", "large"])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    recipe, workspace = load_recipe("tiny", options.scale), Workspace(Path("artifacts") / "bench" / options.scale)
    failed = False
    for name in SUITES if options.suite == "all" else [options.suite]:
        record = Recorder(name, f"python benchmarks/run.py {name} --scale {options.scale}")
        rows = SUITES[name](recipe, workspace, record)
        append(rows)
        for row in rows:
            beside = f"  {row.peer} {row.peer_value:.4g}, ratio {row.ratio:.3f}" if row.ratio else f"  {row.peer}"
            line = f"{name:8} {row.case:32} {row.metric:22} {row.value:12.4f} {row.unit}{beside}"
            console.print(line, soft_wrap=True)
        if options.check:
            for what, holds, shown in check(read(), name):
                failed |= not holds
                verdict = "[green]holds[/green]" if holds else "[red]SHORT[/red]"
                console.print(f"{verdict}  {name}: {what}: {shown}", soft_wrap=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
