"""`sparsefeed plan`: what was asked on the command line -> a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sparsefeed.errors import SpecError, did_you_mean
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.plan import Plan, make_plan
from sparsefeed.models.topology import Topology
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.stages import read_etl
from sparsefeed.workflows.workspace import Workspace

__all__ = ["plan_training", "read_rows", "read_size"]

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def plan_training(
    recipe: Recipe,
    workspace: Workspace,
    asked: Mapping[str, str],
    gpus: int | None,
    per_host: int,
    machine: Mapping[str, Any],
    batch_size: int | None,
) -> Plan:
    """Plan the recipe's training.

    Args:
        recipe: with the feed, the model and how it is trained.
        workspace: whose ETL says how many rows tables have, where `asked` does not.
        asked: rows by option, as given: {"--members": "1e9"}.
        gpus: how many; None: processes of this machine.
        per_host: GPUs of a host.
        machine: what is known of a device, as `Topology` calls it.
        batch_size: rows of a global batch; None: the recipe's.
    """
    feed = recipe.feed
    rows = read_rows(feed, asked)
    if len(rows) < len(feed.tables):
        rows = _rows_of_etl(recipe, workspace, rows) | rows
    if gpus is None:
        topology = Topology.processes(recipe.train.processes or recipe.train.ON_CPU, **machine)
    else:
        topology = Topology.gpus(gpus, devices_per_host=per_host, **machine)
    size, micro_batches = batch_size or recipe.train.batch_size, recipe.train.micro_batches
    return make_plan(feed, recipe.model, rows, topology, size, micro_batches, recipe.train.sharding)


def _rows_of_etl(recipe: Recipe, workspace: Workspace, given: Mapping[str, int]) -> dict[str, int]:
    lacking = [table.name for table in recipe.feed.tables if table.name not in given]
    if not (workspace.etl / "etl.json").exists():
        options = " ".join(f"--{name} ROWS" for name in lacking)
        raise SpecError(f"plan: give {options}, or run `sparsefeed etl` first: {workspace.etl} holds no finished ETL")
    _, etl = read_etl(recipe, workspace)
    return {name: int(etl["capacity_rows"][name]) for name in lacking}


def read_rows(feed: FeedSpec, asked: Mapping[str, str]) -> dict[str, int]:
    """Rows by table from `--TABLE NUMBER`; a table may stand in the plural."""
    rows, names = {}, [table.name for table in feed.tables]
    for option, text in asked.items():
        word = option.removeprefix("--")
        name = next((name for name in names if word in (name, f"{name}s")), None)
        if name is None or not option.startswith("--"):
            raise SpecError(f"plan: {option} is no option and no table{did_you_mean(word, names)}")
        try:
            number = float(text.replace("_", ""))
        except ValueError:
            number = 0.0
        if not 1 <= number < 2**62:
            raise SpecError(f"plan: {option} is {text!r}; allowed: a number of rows, as 1e9")
        rows[name] = int(number)
    return rows


def read_size(text: str) -> int:
    """Bytes of "80GiB", "50GB" or "1e9"."""
    found = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?) *([KMGT]?i?)B?(?:/s)?", text)
    if not found or found[2] not in _UNITS:
        raise SpecError(f"plan: got {text!r}; allowed: a size as 80GiB, 50GB or 1e9")
    return int(float(found[1]) * _UNITS[found[2]])
