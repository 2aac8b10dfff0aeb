"""Every error sparsefeed raises on purpose, drawn as one tree.

SparsefeedError
├── SpecError        a recipe or FeedSpec that cannot be meant
├── DataError        logs or parquet that break their contract
│   └── BadFileError one file that cannot be read; carries its path
├── IdError          an id map that cannot be built, read or extended
├── TrainError       training that cannot start or go on
├── BundleError      a bundle or delta that is incomplete, altered or of another spec
├── ServeError       a server that cannot start or a request it refuses
│   └── RequestError a request a client must change before it is sent again
├── ReleaseError     a release that is refused or stopped; what served before serves on
└── ToolError        a program or library this command needs is not there

DataWarning (a UserWarning) is what logs may hold but their owner should know.

A message says where, what was got, what is allowed and how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BadFileError",
    "BundleError",
    "DataError",
    "DataWarning",
    "IdError",
    "ReleaseError",
    "RequestError",
    "ServeError",
    "SparsefeedError",
    "SpecError",
    "ToolError",
    "TrainError",
    "did_you_mean",
]


class SparsefeedError(Exception):
    """Base of every error raised on purpose; the CLI prints it without a traceback."""


class SpecError(SparsefeedError):
    """A recipe or FeedSpec that cannot be meant."""


class DataError(SparsefeedError):
    """Logs or parquet that break their contract."""


class DataWarning(UserWarning):
    """Something in the logs that is worked around, and how."""


class BadFileError(DataError):
    """One file that cannot be read; `path` names it, `identity` says what the file was when it was listed."""

    def __init__(self, path: object, cause: object, identity: list[int | str | None] | None = None) -> None:
        super().__init__(f"{path}: {cause}")
        self.path = str(path)
        self.cause = str(cause)
        self.identity = identity

    def __reduce__(self) -> tuple[type[BadFileError], tuple[str, str, list[int | str | None] | None]]:
        return type(self), (self.path, self.cause, self.identity)


class IdError(SparsefeedError):
    """An id map that cannot be built, read or extended."""


class TrainError(SparsefeedError):
    """Training that cannot start or go on."""


class BundleError(SparsefeedError):
    """A bundle or delta that is incomplete, altered or of another spec."""


class ServeError(SparsefeedError):
    """A server that cannot start, or a request it refuses."""


class RequestError(ServeError):
    """A request a client must change before it is sent again."""


class ReleaseError(SparsefeedError):
    """A release that is refused or stopped; what served before serves on."""


class ToolError(SparsefeedError):
    """A program or library this command needs is not there."""


def did_you_mean(got: str, allowed: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the nearest allowed word, else the allowed words."""
    words = sorted(allowed)
    near = difflib.get_close_matches(got, words, n=1)
    return f'; did you mean "{near[0]}"?' if near else f"; allowed: {', '.join(words) or 'none'}"
