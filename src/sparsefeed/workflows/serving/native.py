"""Whether a bundle's lookup is the native one, and what that reads: `tables.txt` in the model's version folder.

Notable: a backend gets its model's parameters as JSON alone, and C++ has no JSON; so the bundle, its tables' folder
and the entries of tables.json stand in lines of words.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from sparsefeed.errors import ServeError
from sparsefeed.models.bundle import Bundle
from sparsefeed.models.store.store import ParameterStore
from sparsefeed.native import library
from sparsefeed.workflows.serving.request import step_name

__all__ = ["native_files", "require_built"]

_FORMAT = "sparsefeed feed_hps 1"  # as in native/feed_hps.cpp


def native_files(bundle: Bundle, lookup_backend: Literal["auto", "native", "python"]) -> dict[str, str] | None:
    """Files of the native lookup's version folder by name; None where the lookup is the Python step.

    Raises:
        BundleError: The bundle's tables are not what their index says.
        ServeError: `lookup_backend` is native and it is not built here.
    """
    if lookup_backend == "python" or (lookup_backend == "auto" and library.built() is None):
        return None
    if library.built() is None:
        raise ServeError(
            f'serving.lookup_backend: got "native", which is not built here: {library.HOW}; or set auto or python'
        )
    folder = bundle.tables.resolve()
    if "\n" in str(folder):
        raise ServeError(f"{folder!r}: the native lookup takes no line feed in a path; move it, or set python")
    lines = [_FORMAT, f"bundle {bundle.id}", f"folder {folder}"]
    lines += [
        f"table {table.name} {table.dim} {table.rows} {table.row_format} {len(table.overlay_rows)}"
        for table in ParameterStore.open(folder).tables
    ]
    return {"tables.txt": "\n".join(lines) + "\n"}


def require_built(repository: Path, bundle: str) -> None:
    """ServeError when a bundle was exported for the native lookup and that is not built here."""
    config = repository / step_name("feed_hps", bundle) / "config.pbtxt"
    text = config.read_text("utf-8") if config.is_file() else ""
    if re.search(rf'^backend: "{library.BACKEND}"', text, re.MULTILINE) and library.built() is None:
        raise ServeError(
            f"{config.parent}: exported for the native lookup, which is not built here: {library.HOW}; or export the "
            "bundle again with serving.lookup_backend python"
        )
