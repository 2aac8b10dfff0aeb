"""Commands about NVIDIA's software: `sparsefeed hps check`, `sparsefeed hugectr check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sparsefeed.workflows.console import console, stage

__all__ = ["hps", "hugectr"]

hps = typer.Typer(no_args_is_help=True)
hugectr = typer.Typer(no_args_is_help=True)


@hps.callback()
def _group() -> None:
    """What is for NVIDIA's Hierarchical Parameter Server."""  # without a callback typer would drop the word `check`


@hps.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A ps.json.", show_default=False)],
    config: Annotated[
        Path | None, typer.Option(help="A model's config.pbtxt; default: those of the folders beside FILE.")
    ] = None,
) -> None:
    """Say what HPS would misuse in silence: keys, lists, tiers, sizes of sparse folders, config.pbtxt."""
    from sparsefeed.workflows.hps import look_at

    checked = look_at(file, config)
    for note in checked.notes:
        console.print("[yellow]note[/yellow] ", end="")
        console.print(note, markup=False, soft_wrap=True)
    for problem in checked.problems:
        console.print("[red]problem[/red] ", end="")
        console.print(problem, markup=False, soft_wrap=True)
    if checked.problems:
        raise typer.Exit(1)
    size = f", {checked.num_bytes:,} bytes" if checked.num_bytes else ""
    console.print(f"{_number(len(checked.models), 'model')}, {_number(checked.num_tables, 'table')}{size}: no problem")


@hugectr.callback()
def _hugectr_group() -> None:
    """What is for NVIDIA's trainer HugeCTR."""


@hugectr.command("check")
def check_rows(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Of `etl --for hugectr`.", show_default=False)],
) -> None:
    """Read every value of training rows for HugeCTR, and say each thing it would stumble over or misread."""
    from sparsefeed.etl.hugectr_check import check_hugectr

    with stage("check") as progress:
        rows = check_hugectr(folder, progress)
    console.print(f"{rows:,} rows: no problem")


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
