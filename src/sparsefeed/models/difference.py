"""What differs between two declarations, in the words that a user wrote them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

__all__ = ["difference"]

_MOST = 4


def difference(before: Any, now: Any) -> str:
    """Say where two models, mappings or values differ: "tables.post.dim: 8 there, 16 asked for"."""
    found = list(_differences("", before, now))
    more = f", and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return ", ".join(found[:_MOST]) + more


def _differences(where: str, before: Any, now: Any) -> Iterator[str]:
    before, now = _plain(before), _plain(now)
    if before == now:
        return
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(f"{where}.{key}".lstrip("."), before.get(key), now.get(key))
    else:
        there, asked = ("nothing" if value in ("", None) else value for value in (before, now))
        yield f"{where}: {there} there, {asked} asked for".removeprefix(": ")


def _plain(value: Any) -> Any:
    """Mappings of models, and of lists of what has a name by it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, Mapping) and "name" in one for one in value):
        return {one["name"]: one for one in value}
    return value
