"""Overrides: feature values a request brings along, checked against the plan (docs/contracts/request.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sparsefeed.errors import RequestError, did_you_mean
from sparsefeed.etl.plan import ServingPlan

__all__ = ["NOTHING", "OverrideSchema", "Overrides"]

Kind = Literal["id", "ids", "history", "dense"]
Value = float | tuple[str, ...]  # a dense number (NaN: null), or ids in order ("": null)
_ALLOWED = {
    "id": "a string or null",
    "ids": "a list of strings",
    "history": "a list of strings, most recent first",
    "dense": "a number that fits float32, or null",
}


@dataclass(frozen=True)
class Overrides:
    """Checked values per feature: the member's, and those of each overridden post."""

    member: Mapping[str, Value]
    posts: Mapping[bytes, Mapping[str, Value]]


NOTHING = Overrides({}, {})


class OverrideSchema:
    """Which features of which side a request may override, and with what."""

    def __init__(self, plan: ServingPlan) -> None:
        self._kinds: dict[str, dict[str, Kind]] = {
            # The ids of the request itself are not overridden: another id is another request.
            side: {
                **{item.name: item.kind for item in plan.lookups if item.side == side},
                **dict.fromkeys(dense.names, "dense"),
            }
            for side, dense in (("member", plan.member_dense), ("candidate", plan.candidate_dense))
        }
        for side, own in (("member", plan.member), ("candidate", plan.post)):
            self._kinds[side].pop(own or "", None)

    def parse(self, text: bytes, posts: set[bytes]) -> Overrides:
        """Read the JSON of one request; empty text overrides nothing.

        Raises:
            RequestError: Not JSON, an unknown key or feature, a post that is not among `posts`, or a value of the
                wrong type; the message begins with the path, like `overrides.member.age`.
        """
        if not text:
            return NOTHING
        try:
            value = json.loads(text.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"overrides: not JSON: {error}; send an object, or leave it out") from error
        outer = _object(value, "overrides")
        for key in outer:
            if key not in ("member", "posts"):
                raise RequestError(f'overrides: "{key}" is not a key{did_you_mean(key, ("member", "posts"))}')
        by_post: dict[bytes, Mapping[str, Value]] = {}
        for post, features in _object(outer.get("posts", {}), "overrides.posts").items():
            encoded = post.encode("utf-8", "surrogatepass")
            if encoded not in posts:
                raise RequestError(
                    f'overrides.posts: "{post}" is not among post_ids; send it there or drop the override'
                )
            by_post[encoded] = self._features("candidate", features, f'overrides.posts["{post}"]')
        return Overrides(self._features("member", outer.get("member", {}), "overrides.member"), by_post)

    def _features(self, side: str, value: object, where: str) -> dict[str, Value]:
        kinds = self._kinds[side]
        values: dict[str, Value] = {}
        for name, item in _object(value, where).items():
            if name not in kinds:
                raise RequestError(f'{where}: "{name}" is not a feature of the {side}{did_you_mean(name, kinds)}')
            values[name] = _value(kinds[name], item, f"{where}.{name}")
        return values


def _value(kind: Kind, item: object, where: str) -> Value:
    if kind == "dense":
        if item is None:
            return float("nan")
        # bool is an int to Python, but no number to a client.
        if isinstance(item, int | float) and not isinstance(item, bool) and abs(item) <= np.finfo(np.float32).max:
            return float(item)
    elif kind == "id":
        if item is None or isinstance(item, str):
            return (_utf8(item or "", where),)
    elif isinstance(item, list) and all(isinstance(part, str) for part in item):
        return tuple(_utf8(part, where) for part in item)
    raise RequestError(f"{where}: got {json.dumps(item)[:80]}; must be {_ALLOWED[kind]}")


def _utf8(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(f"{where}: not Unicode text: {error}; send whole characters") from error
    return text


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RequestError(f"{where}: got {json.dumps(value)[:80]}; must be an object")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
