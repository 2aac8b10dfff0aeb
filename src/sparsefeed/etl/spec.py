"""FeedSpec: the one declaration that ETL, training, export and serving derive everything from.

A feature is declared once, where it stands. The order of tables, features and responses in the
declaration is the order of columns, of lookups and of outputs everywhere.

Invariant: a spec that validates can be built; what cannot be meant is refused here, with the
path of the field, what was got and what is allowed.
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from sparsefeed.errors import SpecError, did_you_mean
from sparsefeed.etl.features import (
    DenseFeature,
    Feature,
    Frozen,
    HistoryFeature,
    IdFeature,
    IdListFeature,
    Name,
    Side,
    Table,
    side_of,
)

__all__ = [
    "Actions",
    "DenseFeature",
    "Feature",
    "FeedSpec",
    "Frozen",
    "HistoryFeature",
    "IdFeature",
    "IdListFeature",
    "Ips",
    "Logs",
    "Name",
    "Response",
    "Sampling",
    "Sessions",
    "Side",
    "Table",
    "side_of",
    "validate",
]


class Response(Frozen):
    """One thing a member may do; a binary label and a head of the model."""

    name: Name
    column: Name | None = None  # label column of the impressions; None: an action named like the response
    score_weight: float = 0.0  # its share in the combined score


class Actions(Frozen):
    """The later log of actions, joined to impressions by `impression`."""

    impression: Name = "impression_id"
    action: Name = "action"
    time: Name = "time"
    attribution_days: int = Field(default=1, ge=0)  # an action later than this belongs to no impression


class Logs(Frozen):
    """Columns of the impression log that are not features (docs/contracts/logs.md)."""

    impression: Name = "impression_id"
    time: Name = "time"
    member: Name | None = "member_id"  # an `id` feature; None: no histories
    post: Name = "post_id"  # an `id` feature of the candidate
    position: Name | None = "position"
    surface: Name | None = None
    session: Name | None = None  # what rows of one session share, text or integer; needed for sampling.sessions
    actions: Actions | None = None
    max_null_share: float = Field(default=0.01, ge=0, le=1)  # of null or empty ids per column


class Sessions(Frozen):
    """Which impressions a random policy ordered, and which the production policy."""

    column: Name = "session"
    random: str = "random"
    production: str = "production"


class Ips(Frozen):
    """Inverse propensity weights: random-session rate / production-session rate per cell."""

    position_edges: tuple[int, ...] = tuple(range(1, 101))  # first position of each bucket
    smoothing: float = Field(default=0.0, ge=0)  # pseudo-impressions at the surface's rate; 0: exact identities hold
    clip: float | None = Field(default=None, gt=1)  # weights are held in [1/clip, clip]; None: unclipped
    self_normalise: bool = False  # after smoothing and clipping, weights of a position sum to its rows again

    @model_validator(mode="after")
    def _edges_rise(self) -> Ips:
        if not self.position_edges or any(b <= a for a, b in pairwise(self.position_edges)):
            raise ValueError(f"position_edges: got {list(self.position_edges)}; must be one or more rising integers")
        return self


class Sampling(Frozen):
    """Which rows of the training days are written; a row kept with rate p weighs 1 / p more.

    A row is kept with the greatest rate of the responses it has, with `others` if it has none; rows of random sessions
    are all kept. Which ones, the impression's id decides: always the same. Of sessions, `engaged` writes those alone in
    which there was a response, random ones too. Fits read all rows.
    """

    rates: dict[Name, Annotated[float, Field(gt=0, le=1)]] = Field(default={})  # by response; one not named: 1
    others: float = Field(default=1.0, gt=0, le=1)
    sessions: Literal["all", "engaged"] = "all"
    seed: int = Field(default=0, ge=0, lt=2**32)


class FeedSpec(Frozen):
    """Features, tables, responses and sessions of one feed.

    Example:
        >>> spec = FeedSpec.load("feed.json")  # doctest: +SKIP
        >>> [table.name for table in spec.tables]  # doctest: +SKIP
        ['member', 'creator', 'post', 'hashtag']
    """

    name: Name
    tables: tuple[Table, ...]
    features: tuple[Feature, ...]
    responses: tuple[Response, ...] = Field(min_length=1)
    logs: Logs = Logs()
    sessions: Sessions | None = None
    ips: Ips | Literal["none"] = "none"
    sampling: Sampling | None = None  # None: every row is written
    key_seed: int = Field(default=0, ge=0, lt=2**32)  # XXH64 seed, fixed for the life of the id maps

    @classmethod
    def parse(cls, value: object, where: str = "") -> FeedSpec:
        """Validate plain data; SpecError names the field, what was got and what is allowed."""
        return validate(cls, value, where)

    @classmethod
    def load(cls, path: str | Path) -> FeedSpec:
        """Read `spec.json`."""
        try:
            value = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise SpecError(f"{path}: not readable as JSON: {error}") from error
        return cls.parse(value, where=str(path))

    def dump(self) -> str:
        """The spec as canonical JSON: equal specs give equal text."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of SHA-256 over the canonical JSON."""
        return hashlib.sha256(self.dump().encode()).hexdigest()[:16]

    @cached_property
    def table_by_name(self) -> dict[str, Table]:
        """Tables by name, in order."""
        return {table.name: table for table in self.tables}

    @cached_property
    def feature_by_name(self) -> dict[str, Feature]:
        """Features by name, in order."""
        return {feature.name: feature for feature in self.features}

    def of_kind(self, *kinds: str, side: Side | None = None) -> tuple[Any, ...]:
        """Features of these kinds (and this side; histories are the member's), in order."""
        return tuple(f for f in self.features if f.kind in kinds and (side is None or side_of(f) == side))

    @cached_property
    def dense(self) -> tuple[DenseFeature, ...]:
        """Dense features in order."""
        return self.of_kind("dense")

    @cached_property
    def lookups(self) -> tuple[IdFeature | IdListFeature | HistoryFeature, ...]:
        """Features that read a table, in the order of the declaration."""
        return self.of_kind("id", "ids", "history")

    @cached_property
    def learned(self) -> tuple[HistoryFeature, ...]:
        """Histories whose pooling is learned, in order."""
        return tuple(feature for feature in self.histories if feature.pooling == "learned")

    @cached_property
    def histories(self) -> tuple[HistoryFeature, ...]:
        """History features in order."""
        return self.of_kind("history")

    def table_of(self, feature: IdFeature | IdListFeature | HistoryFeature) -> Table:
        """The table a lookup reads; a history shares its item's."""
        if isinstance(feature, HistoryFeature):
            item = self.feature_by_name[feature.of]
            assert isinstance(item, IdFeature)
            return self.table_by_name[item.table]
        return self.table_by_name[feature.table]

    def lookups_of(self, table: str) -> tuple[IdFeature | IdListFeature | HistoryFeature, ...]:
        """Features that read this table, in the order of the declaration."""
        return tuple(f for f in self.lookups if self.table_of(f).name == table)

    @model_validator(mode="after")
    def _names_are_unique(self) -> FeedSpec:
        for kind in ("tables", "features", "responses"):
            names = [part.name for part in getattr(self, kind)]
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise ValueError(f'{kind}[{i}].name: "{name}" is declared twice; give each its own name')
        return self

    @model_validator(mode="after")
    def _names_are_free(self) -> FeedSpec:
        """No feature may take a name that a column or a file of a contract has."""
        logs = self.logs
        taken = {"keys": "the snapshot", "dense": "the snapshot"}
        of_rows = ("impression_id", "position", "random", "surface", "new_member", "new_post")
        taken |= dict.fromkeys(of_rows, "the training data")
        of_logs = (logs.impression, logs.time, logs.position, logs.surface, logs.session)
        logged = (*of_logs, *(r.column for r in self.responses))
        taken |= {f"{kind}_{r.name}": "a response" for r in self.responses for kind in ("y", "t", "w", "cell")}
        taken |= {name: "the logs" for name in (*logged, self.sessions and self.sessions.column) if name}
        for i, feature in enumerate(self.features):
            where = "ours" if feature.name.startswith("_") else taken.get(feature.name)
            if where is not None:
                raise ValueError(f'features[{i}].name: "{feature.name}" is a name of {where}; give it another')
        if self.sessions and self.sessions.random == self.sessions.production:
            raise ValueError(f'sessions: random and production are both "{self.sessions.random}"; they must differ')
        return self

    @model_validator(mode="after")
    def _tables_are_declared_and_read(self) -> FeedSpec:
        names = [table.name for table in self.tables]
        read = {f.table for f in self.features if isinstance(f, IdFeature | IdListFeature)}
        for i, feature in enumerate(self.features):
            if isinstance(feature, IdFeature | IdListFeature) and feature.table not in names:
                hint = did_you_mean(feature.table, names)
                raise ValueError(f'features[{i}].table: "{feature.table}" is not a table{hint}')
        for i, name in enumerate(names):
            if name not in read:
                raise ValueError(f'tables[{i}]: no feature reads "{name}"; drop it or name it in a feature')
        return self

    @model_validator(mode="after")
    def _histories_can_be_built(self) -> FeedSpec:
        items = self._ids_of("candidate")
        responses = [response.name for response in self.responses]
        for i, feature in enumerate(self.features):
            if not isinstance(feature, HistoryFeature):
                continue
            if feature.of not in items:
                hint = did_you_mean(feature.of, items)
                raise ValueError(f'features[{i}].of: "{feature.of}" is not an id feature of the candidate{hint}')
            if feature.response not in responses:
                hint = did_you_mean(feature.response, responses)
                raise ValueError(f'features[{i}].response: "{feature.response}" is not a response{hint}')
            if self.logs.member is None:
                raise ValueError(
                    f"features[{i}]: a history needs logs.member; name the member's id or drop the history"
                )
        return self

    @model_validator(mode="after")
    def _logs_fit_the_features(self) -> FeedSpec:
        sides: tuple[tuple[str, str | None, Side], ...] = (
            ("member", self.logs.member, "member"),
            ("post", self.logs.post, "candidate"),
        )
        for field, name, side in sides:
            ids = self._ids_of(side)
            if name is not None and name not in ids:
                raise ValueError(f'logs.{field}: "{name}" is not an id feature of the {side}{did_you_mean(name, ids)}')
        for i, response in enumerate(self.responses):
            if response.column is None and self.logs.actions is None:
                raise ValueError(
                    f'responses[{i}]: "{response.name}" has no column and there are no logs.actions; give one of them'
                )
        return self

    @model_validator(mode="after")
    def _weights_can_be_built(self) -> FeedSpec:
        if self.ips != "none" and self.sessions is None:
            raise ValueError("ips: needs sessions (what tells random from production); declare them or set ips: none")
        if self.ips != "none" and self.logs.position is None:
            raise ValueError("ips: needs logs.position; name the position column or set ips: none")
        return self

    @model_validator(mode="after")
    def _sampling_names_responses(self) -> FeedSpec:
        names = [response.name for response in self.responses]
        for name in self.sampling.rates if self.sampling else ():
            if name not in names:
                raise ValueError(f'sampling.rates: "{name}" is not a response{did_you_mean(name, names)}')
        if self.sampling and self.sampling.sessions == "engaged" and self.logs.session is None:
            raise ValueError(
                'sampling.sessions: "engaged" needs logs.session; name the column that tells sessions apart'
            )
        return self

    @property
    def weighted(self) -> bool:
        """Whether training rows bear weights."""
        return self.ips != "none" or self.sampling is not None

    def _ids_of(self, side: Side) -> list[str]:
        return [f.name for f in self.features if isinstance(f, IdFeature) and f.side == side]


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], value: object, where: str = "") -> Model:
    """Validate plain data against a declaration, or raise SpecError with one line per fault."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        prefix = f"{where}: " if where else ""
        raise SpecError("\n".join(prefix + line for line in _lines(model, error))) from error


def _lines(model: type[BaseModel], error: ValidationError) -> list[str]:
    lines = []
    for fault in error.errors():
        if "literal['none']" in fault["loc"]:
            continue  # the other branch of `ips: none` has its own, better line
        path = _path(fault["loc"])
        if fault["type"] == "extra_forbidden":
            got = str(fault["loc"][-1])
            lines.append(f'{path}: "{got}" is not a key{did_you_mean(got, _keys_at(model, fault["loc"][:-1]))}')
        elif fault["type"] == "value_error":
            message = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{path}.{message}" if path else message)
        elif fault["type"] == "missing":
            lines.append(f"{path}: missing; it must be given")
        else:
            lines.append(f"{path}: got {fault['input']!r}; {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return lines


def _path(parts: tuple[int | str, ...]) -> str:
    """Render `features[3].table`, without the tags of unions, which nobody wrote."""
    path = ""
    for before, part in pairwise((None, *parts)):
        if isinstance(part, int):
            path += f"[{part}]"
        elif part is not None and not _is_tag(before, part):
            path += f".{part}"
    return path.lstrip(".")


def _is_tag(before: int | str | None, part: str) -> bool:
    kind = isinstance(before, int) and part in ("id", "ids", "dense", "history")
    return kind or part == Ips.__name__ or part.startswith("function-")


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> set[str]:
    """The keys allowed where an unknown one was found: those of every model the path can mean."""
    kind_to_model: dict[str, type[BaseModel]] = {
        "id": IdFeature, "ids": IdListFeature, "dense": DenseFeature, "history": HistoryFeature,
    }  # fmt: skip
    models = [model]
    for part in path:
        if isinstance(part, int):
            continue
        if part in kind_to_model:
            models = [kind_to_model[part]]
            continue
        found = [
            m for owner in models if part in owner.model_fields for m in _models_in(owner.model_fields[part].annotation)
        ]
        models = found or models
    return {key for m in models for key in m.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for argument in getattr(annotation, "__args__", ()) for m in _models_in(argument)]
