"""What the command line shows: progress bars, tables, errors without tracebacks."""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from sparsefeed.progress import Progress

__all__ = ["console", "quiet_libraries", "stage"]

_LINE_EVERY_S = 5.0
console = Console(highlight=False)


def quiet_libraries() -> None:
    """Keep what libraries say of themselves off the screen; our own warnings and errors stay."""
    warnings.filterwarnings(
        "ignore", module=r"(merlin|nvtabular|dask|distributed|torch|torchrec|lightgbm|pandas)(\.|$)"
    )
    for name in ("merlin", "nvtabular", "distributed", "torch", "dask"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_LOGS", "-all")


@contextmanager
def stage(name: str) -> Iterator[Progress]:
    """A progress bar for one stage; on a terminal it moves, in a log it is a line now and then."""
    started = time.perf_counter()
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[stage]:9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        with Bar(*columns, console=console, transient=True) as bar:
            task = bar.add_task("", total=None, stage=name)

            def move(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total, description=what)

            yield move
    else:
        word, told, begun, first = "", started, started, 0

        def line(done: int, total: int, what: str) -> None:
            nonlocal word, told, begun, first
            now = time.perf_counter()
            if what.split(" ", maxsplit=1)[0] != word:
                word, told, begun, first = what.split(" ", maxsplit=1)[0], 0.0, now, done
            if now - told > _LINE_EVERY_S:
                told = now
                rest = (now - begun) * (total - done) / (done - first) if done > first else 0.0
                left = f", {rest:,.0f} s left" if rest >= 1 else ""
                words = f"{name:9} {now - started:6.1f} s  {what} ({done:,} of {total:,}{left})"
                console.print(words, soft_wrap=True)

        yield line
    console.print(f"[green]done[/green] {name:9} {time.perf_counter() - started:6.1f} s")
