"""The key of model control: who may load and unload models over gRPC.

From the environment or a file, never from a recipe, which is shared and kept; where there is none, one is made in the
workspace, readable by its owner alone.

Notable: this version of Triton takes the key on its command line alone, which other users of the machine can read. They
could control the server all the same, over HTTP on the loopback address; the key keeps out everybody else.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from sparsefeed.errors import ServeError

__all__ = ["FILE_VARIABLE", "HEADER", "PROTOCOLS", "VARIABLE", "control_key", "new_key"]

VARIABLE, FILE_VARIABLE = "SPARSEFEED_CONTROL_KEY", "SPARSEFEED_CONTROL_KEY_FILE"
HEADER = "triton-grpc-protocol-admin-key"
# What the key closes. Triton takes any word here and closes nothing for one it does not know: a test tries each.
PROTOCOLS = ("model-repository", "shared-memory", "logging", "trace")
_ALLOWED = re.compile(r"[A-Za-z0-9_-]{16,256}")


def new_key() -> str:
    """A random key."""
    return secrets.token_urlsafe(32)


def control_key(file: Path, environment: Mapping[str, str] = os.environ) -> str:
    """The key: of SPARSEFEED_CONTROL_KEY, else of the file that SPARSEFEED_CONTROL_KEY_FILE names, else of `file`.

    Args:
        file: Made with a new key, mode 0600, if it is not there.
        environment: Variables.

    Raises:
        ServeError: It cannot be a key, or others than its owner can read the file.
    """
    if VARIABLE in environment:
        return _checked(environment[VARIABLE], VARIABLE)
    if FILE_VARIABLE in environment:
        return _read(Path(environment[FILE_VARIABLE]))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return _read(file)
    with os.fdopen(descriptor, "w") as made:
        key = new_key()
        made.write(key + "\n")
    return key


def _read(file: Path) -> str:
    try:
        mode, text = file.stat().st_mode & 0o777, file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ServeError(f"{file}: no key can be read: {error}; name another in {FILE_VARIABLE}") from error
    if mode & 0o077:
        raise ServeError(f"{file}: mode {mode:04o} lets others read the key; chmod 600 it")
    return _checked(text.strip(), str(file))


def _checked(key: str, where: str) -> str:
    if not _ALLOWED.fullmatch(key):
        raise ServeError(f"{where}: holds {len(key)} characters; a key is 16 to 256 of A-Z, a-z, 0-9, _ and -")
    return key
