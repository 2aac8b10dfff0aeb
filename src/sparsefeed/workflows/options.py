"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["ARTIFACTS", "TINY", "RecipeName", "Root", "Url"]

TINY, ARTIFACTS = "tiny", Path("artifacts")

RecipeName = Annotated[str, typer.Option("--recipe", "-r", help="A recipe's name or .yaml file.")]
Root = Annotated[Path, typer.Option("--workspace", "-w", help="Folder that holds what a run makes.")]
Url = Annotated[str, typer.Option("--url", help="host:port of the server's gRPC.")]
