"""Routes: which bundle answers whom (docs/contracts/router.md), as one JSON object, and nothing of Triton.

Sticky without a table: a member's place in [0, 1) is XXH64(id) under the canary's salt, and the canary takes those
below its percent. So raising the percent keeps everyone who is in, and the next release draws other members.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from sparsefeed.errors import ReleaseError, did_you_mean
from sparsefeed.etl.ids.xxh64 import xxh64

__all__ = ["Canary", "Choice", "Routes", "Shadow", "place_of"]

FORMAT = 1
_ID = re.compile(r"[A-Za-z0-9_-]{1,120}")
_SALT = re.compile(r"[A-Za-z0-9_-]{1,160}")  # names a folder of figures, too
_MAX_PREVIOUS, _MAX_PINNED = 50, 500

Reason = Literal["stable", "canary", "pinned"]
Part = TypeVar("Part", "Canary", "Shadow")


@dataclass(frozen=True)
class Canary:
    """A bundle that answers some members.

    Attributes:
        bundle: which.
        percent: of members, in (0, 100].
        salt: of the release: another salt draws other members.
    """

    bundle: str
    percent: float
    salt: str


@dataclass(frozen=True)
class Shadow:
    """A bundle that is asked, too, and whose answer nobody gets.

    Attributes:
        bundle: which.
        percent: of requests that are copied, in (0, 100].
    """

    bundle: str
    percent: float


@dataclass(frozen=True)
class Choice:
    """Who answers one request, and why."""

    bundle: str
    reason: Reason


@dataclass(frozen=True)
class Routes:
    """One state of a server's routes.

    Attributes:
        revision: one more with each replacement.
        stable: the bundle that answers whoever is not sent elsewhere.
        previous: what was stable before, newest first; `rollback` goes there.
        canary: answers some members; None: there is none.
        shadow: is asked, too; None: there is none.
        pinned: member id -> bundle, before all else.
        decision: what made this state: action, who, when, why, figures; the release log's line.
    """

    revision: int
    stable: str
    previous: tuple[str, ...] = ()
    canary: Canary | None = None
    shadow: Shadow | None = None
    pinned: Mapping[str, str] = field(default_factory=dict)
    decision: Mapping[str, Any] = field(default_factory=dict)

    def choose(self, member: bytes) -> Choice:
        """Whom to ask for a member: their pin, else the canary if they are among its share, else the stable bundle.

        An anonymous member (empty id) is nobody who could be kept to one side: the stable bundle answers.
        """
        if self.pinned and member in self._pinned:
            return Choice(self._pinned[member], "pinned")
        if self.canary is not None and member and place_of(member, self._seed) < self.canary.percent / 100:
            return Choice(self.canary.bundle, "canary")
        return Choice(self.stable, "stable")

    @property
    def named(self) -> frozenset[str]:
        """Every bundle that a request may be sent to."""
        others = [part.bundle for part in (self.canary, self.shadow) if part is not None]
        return frozenset((self.stable, *others, *self.pinned.values()))

    def with_changes(self, **changes: Any) -> Routes:
        """The next revision, with these fields."""
        return replace(self, **{"revision": self.revision + 1, **changes})

    def dump(self) -> str:
        """One line of JSON; ReleaseError when it would not be read back."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False)
        self.parse(text, "routes")
        return text

    @classmethod
    def parse(cls, text: str, where: str) -> Routes:
        """Read routes; ReleaseError says where, what was got and what is allowed."""
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ReleaseError(f"{where}: not JSON: {error}; mend it, or run `sparsefeed rollback`") from error
        names = {"format", *(one.name for one in fields(cls))}
        _keys(value, names, where, needed=names)
        if value["format"] != FORMAT or isinstance(value["format"], bool):
            raise ReleaseError(f"{where}: format: got {value['format']!r}; this program reads {FORMAT}; use its like")
        revision = value["revision"]
        if not isinstance(revision, int) or isinstance(revision, bool) or revision < 0:
            raise ReleaseError(f"{where}: revision: got {revision!r}; must be a number from 0")
        previous, pinned = value["previous"], value["pinned"]
        if not isinstance(previous, list) or len(previous) > _MAX_PREVIOUS:
            raise ReleaseError(f"{where}: previous: must be a list of at most {_MAX_PREVIOUS} bundles, newest first")
        if not isinstance(pinned, dict) or len(pinned) > _MAX_PINNED:
            raise ReleaseError(f"{where}: pinned: must be an object of at most {_MAX_PINNED} members, id: bundle")
        if "" in pinned:
            raise ReleaseError(f'{where}: pinned: got ""; an anonymous member cannot be pinned')
        if not isinstance(value["decision"], dict):
            raise ReleaseError(f"{where}: decision: must be an object")
        return cls(
            revision=revision,
            stable=_bundle(value["stable"], f"{where}: stable"),
            previous=tuple(_bundle(one, f"{where}: previous[{i}]") for i, one in enumerate(previous)),
            canary=_part(Canary, value["canary"], f"{where}: canary"),
            shadow=_part(Shadow, value["shadow"], f"{where}: shadow"),
            pinned={member: _bundle(bundle, f"{where}: pinned[{member!r}]") for member, bundle in pinned.items()},
            decision=value["decision"],
        )

    @cached_property
    def _pinned(self) -> dict[bytes, str]:
        return {member.encode("utf-8", "surrogatepass"): bundle for member, bundle in self.pinned.items()}

    @cached_property
    def _seed(self) -> np.uint64:
        assert self.canary is not None
        return _hash(self.canary.salt.encode("utf-8"), np.uint64(0))


def place_of(member: bytes, seed: np.uint64) -> float:
    """Where in [0, 1) a member stands; 53 bits of XXH64, so that no place is rounded to 1."""
    return float(int(_hash(member, seed)) >> 11) / (1 << 53)


def _hash(text: bytes, seed: np.uint64) -> np.uint64:
    return np.uint64(xxh64(np.frombuffer(text, np.uint8), 0, len(text), seed))


def _part(kind: type[Part], value: object, where: str) -> Part | None:
    if value is None:
        return None
    names = {one.name for one in fields(kind)}
    given = _keys(value, names, where, needed=names)
    percent = given["percent"]
    if not isinstance(percent, int | float) or isinstance(percent, bool) or not 0 < percent <= 100:
        raise ReleaseError(f"{where}: percent: got {percent!r}; must be above 0 and at most 100")
    salt = {"salt": given["salt"]} if "salt" in names else {}
    if salt and (not isinstance(salt["salt"], str) or not _SALT.fullmatch(salt["salt"])):
        raise ReleaseError(f"{where}: salt: got {salt['salt']!r}; must match {_SALT.pattern}")
    return kind(bundle=_bundle(given["bundle"], f"{where}: bundle"), percent=float(percent), **salt)


def _keys(value: object, allowed: set[str], where: str, needed: set[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ReleaseError(f"{where}: got {json.dumps(value)[:80]}; must be an object")
    for key in value:
        if key not in allowed:
            raise ReleaseError(f'{where}: "{key}" is not a key{did_you_mean(key, allowed)}')
    for key in sorted(needed - set(value)):
        raise ReleaseError(f'{where}: "{key}" is missing; it must be given')
    return value


def _bundle(value: object, where: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ReleaseError(f"{where}: got {json.dumps(value)[:80]}; must be a bundle's id, {_ID.pattern}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
