"""TransformStep: strings -> keys of rows, dense inputs, lengths and unknown flags.

Notable: the strings of a call are decoded and hashed once, together; what Triton passes on is integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import RequestError
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.plan import LookupPlan, ServingPlan
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.workflows.serving.request import UNKNOWN_BITS
from sparsefeed.workflows.serving.steps.overrides import NOTHING, Overrides, OverrideSchema
from sparsefeed.workflows.serving.steps.state import SideState
from sparsefeed.workflows.serving.steps.step import Step, Tensors, require

__all__ = ["RankRequest", "TransformStep"]


@dataclass(frozen=True)
class RankRequest:
    """One member, the posts to score, and what the request brings along."""

    member: bytes
    posts: list[bytes]
    overrides: Overrides


class TransformStep(Step[RankRequest]):
    """`member_id`, `post_ids`, `overrides` -> the inputs of feed_hps and feed_dense, `unknown` and `bundle`."""

    name = "feed_transform"

    def __init__(
        self, bundle: str, plan: ServingPlan, id_maps: Mapping[str, IdMap], snapshot: Snapshot, max_candidates: int
    ) -> None:
        super().__init__(bundle)
        self._plan = plan
        self._id_maps = id_maps
        self._snapshot = snapshot
        self._max_candidates = max_candidates
        self._schema = OverrideSchema(plan)
        self._lookups = {
            side: tuple(item for item in plan.lookups if item.side == side) for side in ("member", "candidate")
        }

    @classmethod
    def open(cls, parameters: Mapping[str, str]) -> TransformStep:
        """Open a bundle's plan, id maps and snapshot; arrays are memory-mapped."""
        folder = Path(parameters["folder"])
        plan = ServingPlan.load(folder / "transform" / "plan.json")
        id_maps = {table.name: IdMap.load(folder / "ids" / table.name) for table in plan.tables}
        snapshot = Snapshot.load(folder / "snapshot")
        return cls(parameters["bundle"], plan, id_maps, snapshot, int(parameters["max_candidates"]))

    def check(self, request: Tensors) -> RankRequest:
        """Decode one request."""
        member = require(request, "member_id", object, 1)
        if len(member) != 1:
            raise RequestError(f"member_id: got {len(member)} ids; must be one, empty for an anonymous member")
        posts = require(request, "post_ids", object, 1).tolist()
        if not 1 <= len(posts) <= self._max_candidates:
            mend = "split them into several requests" if posts else "send at least one"
            raise RequestError(f"post_ids: got {len(posts)} candidates; must be 1 to {self._max_candidates}; {mend}")
        _check_utf8("member_id", member.tolist())
        _check_utf8("post_ids", posts)
        overrides = NOTHING
        if "overrides" in request:
            text = require(request, "overrides", object, 1)
            if len(text) != 1:
                raise RequestError(f"overrides: got {len(text)} texts; must be one JSON object, or left out")
            overrides = self._schema.parse(text[0], set(posts))
        return RankRequest(member[0], posts, overrides)

    def compute(self, requests: Sequence[RankRequest]) -> list[Tensors]:
        """Read the state of all members and posts, map all ids, and cut the result by request."""
        plan, num = self._plan, len(requests)
        ends = np.cumsum([len(request.posts) for request in requests]).tolist()
        cuts = [slice(end - len(request.posts), end) for request, end in zip(requests, ends, strict=True)]
        strings = [request.member for request in requests] + [post for request in requests for post in request.posts]
        keys, _ = hash_strings(strings, plan.key_seed)
        member = SideState.read(self._snapshot.member, plan.member, keys[:num], self._lookups["member"])
        posts = SideState.read(self._snapshot.post, plan.post, keys[num:], self._lookups["candidate"])
        overridden = [
            (cut.start + i, request.overrides.posts[post])
            for request, cut in zip(requests, cuts, strict=True)
            if request.overrides.posts
            for i, post in enumerate(request.posts)
            if post in request.overrides.posts
        ]
        member.override(((i, r.overrides.member) for i, r in enumerate(requests)), plan.member_dense, plan.key_seed)
        posts.override(overridden, plan.candidate_dense, plan.key_seed)
        rows = self._rows(member, posts)
        self._tell_apart(rows, member, posts, strings[:num], strings[num:])
        unknown = self._unknown(rows, member, posts, cuts, [row for row, _ in overridden])
        member_dense = plan.member_dense.apply(member.dense)
        candidate_dense = plan.candidate_dense.apply(posts.dense)
        answers: list[Tensors] = []
        for i, cut in enumerate(cuts):
            sides: dict[str, tuple[SideState, slice]] = {"member": (member, slice(i, i + 1)), "candidate": (posts, cut)}
            by_table = [
                [rows[item.name][sides[item.side][1]].ravel() for item in plan.lookups if item.table == table.name]
                for table in plan.tables
            ]
            answer: dict[str, NDArray[Any]] = {
                "KEYS": np.concatenate([part for parts in by_table for part in parts])[None],
                "NUMKEYS": np.array([[sum(map(len, parts)) for parts in by_table]], np.int32),
                "member_index": np.zeros(cut.stop - cut.start, np.int64),
                "unknown": unknown[cut],
                "bundle": np.array([self.bundle.encode()], object),
            }
            if plan.member_dense.names:
                answer["member_dense"] = member_dense[i : i + 1]
            if plan.candidate_dense.names:
                answer["candidate_dense"] = candidate_dense[cut]
            for item in plan.lookups:
                if item.kind != "id":
                    side, part = sides[item.side]
                    answer[f"len_{item.name}"] = side.lengths[item.name][part]
            answers.append(answer)
        return answers

    def _rows(self, member: SideState, posts: SideState) -> dict[str, NDArray[np.int64]]:
        """Per lookup, int64 [rows, max_length]: the table's row of each key, 0 beyond the length."""
        state = {"member": member, "candidate": posts}
        rows: dict[str, NDArray[np.int64]] = {}
        for table in self._plan.tables:
            items = [item for item in self._plan.lookups if item.table == table.name]
            keys = np.concatenate([state[item.side].keys[item.name].ravel() for item in items])
            found = self._id_maps[table.name].lookup(keys, keys != 0)
            start = 0
            for item in items:
                shape = state[item.side].keys[item.name].shape
                part = found[start : start + shape[0] * shape[1]].reshape(shape)
                start += part.size
                inside = np.arange(shape[1]) < state[item.side].lengths[item.name][:, None]
                rows[item.name] = np.where(inside, part, 0)
        return rows

    def _tell_apart(
        self,
        rows: Mapping[str, NDArray[np.int64]],
        member: SideState,
        posts: SideState,
        member_ids: Sequence[bytes],
        post_ids: Sequence[bytes],
    ) -> None:
        # Ids whose keys are equal are told apart where their strings are at hand: the request's own ids and those of
        # overrides; a state has keys alone. A bundle with none pays nothing.
        own = {self._plan.member: member_ids, self._plan.post: post_ids}
        for item in self._plan.lookups:
            id_map = self._id_maps[item.table]
            if not id_map.exceptions:
                continue
            if item.name in own:
                rows[item.name][:, 0] = id_map.encode(own[item.name])
            texts = (member if item.side == "member" else posts).texts.get(item.name, [])
            if texts:
                row, place, strings = zip(*texts, strict=True)
                rows[item.name][list(row), list(place)] = id_map.encode(strings)

    def _unknown(
        self,
        rows: Mapping[str, NDArray[np.int64]],
        member: SideState,
        posts: SideState,
        cuts: Sequence[slice],
        overridden: Sequence[int],
    ) -> NDArray[np.int32]:
        """int32 [n]: the bits of each candidate. Without a member id in the spec, no bit speaks of members."""
        bits = np.zeros(len(posts.found), np.int32)
        known_posts = posts.found.copy()
        known_posts[overridden] = True
        bits |= np.where(known_posts, 0, UNKNOWN_BITS["post_state"]).astype(np.int32)
        for item in self._lookups["candidate"]:
            is_post = item.name == self._plan.post
            strange = self._has_no_row(item, rows[item.name])
            if not is_post:
                strange &= posts.keys[item.name] != 0  # a null is no id
            bit = UNKNOWN_BITS["post_id" if is_post else "post_feature_id"]
            bits |= np.where(strange.any(axis=1), bit, 0).astype(np.int32)
        for item in self._lookups["member"]:
            if item.name == self._plan.member:
                strange = self._has_no_row(item, rows[item.name])[:, 0]
                for i, cut in enumerate(cuts):
                    bits[cut] |= strange[i] * UNKNOWN_BITS["member_id"]
                    bits[cut] |= (not member.found[i]) * UNKNOWN_BITS["member_state"]
        return bits

    def _has_no_row(self, item: LookupPlan, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        return ~self._id_maps[item.table].known(rows.ravel()).reshape(rows.shape)


def _check_utf8(name: str, texts: Sequence[bytes]) -> None:
    try:
        # One decoding for all; a line feed cannot be part of a longer character.
        b"\n".join(texts).decode("utf-8")
    except UnicodeDecodeError:
        for i, text in enumerate(texts):
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise RequestError(
                    f"{name}[{i}]: got {text[:40]!r}, which is not UTF-8 ({error.reason}); encode it so"
                ) from error
