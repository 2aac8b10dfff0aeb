"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ARTIFACTS", "TINY", "LogsFolder", "RecipeName", "Root", "Url"]

TINY, ARTIFACTS = "tiny", Path("artifacts")

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name or .yaml file.")]
Root = Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds what a run makes.")]
LogsFolder = Annotated[
    str | None, typer.Option("--logs", help="Your own logs, a folder or URL; default: the workspace's.")
]
Url = Annotated[str, typer.Option("--url", help="host:port of the server's gRPC.")]
