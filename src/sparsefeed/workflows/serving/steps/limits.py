"""Limits: how many bytes one request may bring, checked before anything is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsefeed.errors import RequestError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Of one request; the defaults are those of `serving` in a recipe.

    Attributes:
        max_request_bytes: Of all strings together: member, posts, overrides.
        max_id_bytes: Of the member's id, and of each post's.
    """

    max_request_bytes: int = 4_194_304
    max_id_bytes: int = 1024

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> Limits:
        """Read them from a model's parameters; what a repository of an older version lacks has its default."""
        names = ("max_request_bytes", "max_id_bytes")
        return cls(**{name: int(parameters[name]) for name in names if name in parameters})

    def check(self, member: bytes, posts: Sequence[bytes], overrides: bytes = b"") -> None:
        """RequestError for the first thing that is too long, and what is allowed."""
        lengths = list(map(len, posts))
        total = len(member) + sum(lengths) + len(overrides)
        if total > self.max_request_bytes:
            raise RequestError(
                f"the request: got {total} bytes of strings; must be at most {self.max_request_bytes}; "
                "send fewer candidates or shorter overrides at once"
            )
        longest = lengths.index(max(lengths))
        if len(member) <= self.max_id_bytes and lengths[longest] <= self.max_id_bytes:
            return
        for name, text in (("member_id", member), (f"post_ids[{longest}]", posts[longest])):
            if len(text) > self.max_id_bytes:
                raise RequestError(
                    f"{name}: got {len(text)} bytes; must be at most {self.max_id_bytes}; "
                    "send the id alone, or raise serving.max_id_bytes"
                )
