"""TransformStep: strings -> keys of rows, dense inputs, lengths and unknown flags.

Notable: the strings of a call are decoded and hashed once, together; what Triton passes on is integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import RequestError
from sparsefeed.etl.ids.codes import rows_of
from sparsefeed.etl.ids.id_map import NULL_ROW, PADDING_ROW, IdMap
from sparsefeed.etl.ids.keys import hash_bytes
from sparsefeed.etl.kernels.state import flag_missing, flag_strange, pad_rows
from sparsefeed.etl.plan import LookupPlan, ServingPlan
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.workflows.serving.request import UNKNOWN_BITS
from sparsefeed.workflows.serving.steps.limits import Limits
from sparsefeed.workflows.serving.steps.overrides import NOTHING, Overrides, OverrideSchema
from sparsefeed.workflows.serving.steps.readings import Backlog, Reading
from sparsefeed.workflows.serving.steps.state import SideState
from sparsefeed.workflows.serving.steps.step import Step, Tensors, require

__all__ = ["RankRequest", "TransformStep"]

_SIZES_KEPT = 64  # numbers of candidates whose layout of KEYS is at hand
_Places = tuple[list[tuple[LookupPlan, slice]], list[int], NDArray[np.int32]]


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
        self,
        bundle: str,
        plan: ServingPlan,
        id_maps: Mapping[str, IdMap],
        snapshot: Snapshot,
        max_candidates: int,
        limits: Limits = Limits(),
    ) -> None:
        super().__init__(bundle)
        self._plan = plan
        self._id_maps = id_maps
        self._snapshot = snapshot
        self._max_candidates = max_candidates
        self._limits = limits
        self._unknown_counts = np.zeros(1 + sum(UNKNOWN_BITS.values()), np.int64)  # posts by their bits
        self._backlog = Backlog(self._count)
        self._schema = OverrideSchema(plan)
        self._name = np.array([bundle.encode()], object)
        self._places = lru_cache(_SIZES_KEPT)(self._places_of)
        self._is_paired = any(table.paired_rows for table in plan.tables)
        self._by_table = [[item for item in plan.lookups if item.table == table.name] for table in plan.tables]
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
        limits = Limits.of(parameters)
        return cls(parameters["bundle"], plan, id_maps, snapshot, int(parameters["max_candidates"]), limits)

    @property
    def id_maps(self) -> Mapping[str, IdMap]:
        """The id map of each table."""
        return self._id_maps

    def check(self, request: Tensors) -> RankRequest:
        """Decode one request."""
        member = require(request, "member_id", object, 1)
        if len(member) != 1:
            raise RequestError(f"member_id: got {len(member)} ids; must be one, empty for an anonymous member")
        posts = require(request, "post_ids", object, 1).tolist()
        if not 1 <= len(posts) <= self._max_candidates:
            mend = "split them into several requests" if posts else "send at least one"
            raise RequestError(f"post_ids: got {len(posts)} candidates; must be 1 to {self._max_candidates}; {mend}")
        text = b""
        if "overrides" in request:
            texts = require(request, "overrides", object, 1)
            if len(texts) != 1:
                raise RequestError(f"overrides: got {len(texts)} texts; must be one JSON object, or left out")
            text = texts[0]
        self._limits.check(member[0], posts, text)
        _check_utf8("member_id", member.tolist())
        _check_utf8("post_ids", posts)
        return RankRequest(member[0], posts, self._schema.parse(text, set(posts)) if text else NOTHING)

    def observe(self, answer: Tensors) -> None:
        """Take what was unknown of the candidates."""
        self._backlog.add(answer["unknown"])

    def _count(self, unknown: NDArray[np.int32]) -> None:
        self._unknown_counts += np.bincount(unknown, minlength=len(self._unknown_counts))

    def readings(self) -> Iterator[Reading]:
        """Candidates, and by kind how many were unknown."""
        self._backlog.count()
        counts, bits = self._unknown_counts.copy(), np.arange(len(self._unknown_counts))
        yield Reading("sparsefeed_candidates_total", int(counts.sum()))
        for kind, bit in UNKNOWN_BITS.items():
            yield Reading("sparsefeed_unknown_total", int(counts[bits & bit > 0].sum()), (("kind", kind),))

    def compute(self, requests: Sequence[RankRequest]) -> list[Tensors]:
        """Read the state of all members and posts, map all ids, and cut the result by request."""
        plan, num = self._plan, len(requests)
        members = [request.member for request in requests]
        strings = requests[0].posts if num == 1 else [post for request in requests for post in request.posts]
        own_keys = hash_bytes([*members, *strings], plan.key_seed)
        # The keys of all ids lie as KEYS has them, so that one request's rows are KEYS as they are.
        places, starts, counts = self._places(num, len(strings))
        hashed = np.empty(starts[-1], np.uint64)
        keys = {item.name: hashed[place].reshape(-1, item.max_length) for item, place in places}
        member = SideState.read(self._snapshot.member, plan.member, own_keys[:num], self._lookups["member"], keys)
        posts = SideState.read(self._snapshot.post, plan.post, own_keys[num:], self._lookups["candidate"], keys)
        overridden: list[int] = []
        if any(request.overrides is not NOTHING for request in requests):
            overridden = self._override(requests, member, posts)
        flat = np.empty(starts[-1], np.int64)
        rows = {item.name: flat[place].reshape(-1, item.max_length) for item, place in places}
        for table, (start, stop) in zip(plan.tables, pairwise(starts), strict=True):
            self._id_maps[table.name].probe.of_keys(hashed[start:stop], flat[start:stop])
        for item, _ in places:
            lengths = (member if item.side == "member" else posts).lengths[item.name]
            pad_rows(keys[item.name], lengths, PADDING_ROW, NULL_ROW, rows[item.name])
        self._tell_apart(rows, member, posts, members, strings)
        ends = list(accumulate(len(request.posts) for request in requests))
        cuts = [slice(end - len(request.posts), end) for request, end in zip(requests, ends, strict=True)]
        unknown = self._unknown(rows, member, posts, cuts, overridden)
        dense = {}
        if plan.member_dense.names:
            dense["member_dense"] = plan.member_dense.apply(member.dense)
        if plan.candidate_dense.names:
            dense["candidate_dense"] = plan.candidate_dense.apply(posts.dense)
        answers: list[Tensors] = []
        for i, cut in enumerate(cuts):
            parts = {"member": slice(i, i + 1), "candidate": cut}
            mine, mine_starts = flat, starts
            if num > 1:
                mine = np.concatenate([rows[item.name][parts[item.side]].ravel() for item, _ in places])
                _, mine_starts, counts = self._places(1, cut.stop - cut.start)
            if self._is_paired:
                mine = self._paired(mine, mine_starts)
            answer: dict[str, NDArray[Any]] = {
                "KEYS": mine[None],
                "NUMKEYS": counts,
                "unknown": unknown[cut],
                "bundle": self._name,
            }
            for side, state in (("member", member), ("candidate", posts)):
                if f"{side}_dense" in dense:
                    answer[f"{side}_dense"] = dense[f"{side}_dense"][parts[side]]
                for item in self._lookups[side]:
                    if item.kind != "id":
                        answer[f"len_{item.name}"] = state.lengths[item.name][parts[side]]
            answers.append(answer)
        return answers

    def _places_of(self, num_members: int, num_candidates: int) -> _Places:
        """Where the ids of each lookup lie among all, in the order of KEYS; where each table's begin; and NUMKEYS."""
        num_rows = {"member": num_members, "candidate": num_candidates}
        places, starts, at = [], [0], 0
        for items in self._by_table:
            for item in items:
                end = at + num_rows[item.side] * item.max_length
                places.append((item, slice(at, end)))
                at = end
            starts.append(at)
        per_id = [table.keys_per_id for table in self._plan.tables]
        counts = np.array([np.diff(starts) * per_id], np.int32)
        counts.flags.writeable = False
        return places, starts, counts

    def _override(self, requests: Sequence[RankRequest], member: SideState, posts: SideState) -> list[int]:
        """Put what the requests bring along in place of what the snapshot has; the posts' rows that they are of."""
        plan = self._plan
        numbered = enumerate((request, post) for request in requests for post in request.posts)
        overridden = [(i, r.overrides.posts[post]) for i, (r, post) in numbered if post in r.overrides.posts]
        member.override(((i, r.overrides.member) for i, r in enumerate(requests)), plan.member_dense, plan.key_seed)
        posts.override(overridden, plan.candidate_dense, plan.key_seed)
        return [row for row, _ in overridden]

    def _paired(self, ids: NDArray[np.int64], starts: Sequence[int]) -> NDArray[np.int64]:
        """KEYS of ids that lie table by table from `starts`, two where the tail is paired."""
        spans = zip(self._plan.tables, pairwise(starts), strict=True)
        parts = [
            np.stack(rows_of(ids[start:stop], table.paired_rows), axis=1).ravel()
            if table.paired_rows
            else ids[start:stop]
            for table, (start, stop) in spans
        ]
        return np.concatenate(parts)

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
        known_posts = posts.found
        if overridden:
            known_posts = known_posts.copy()
            known_posts[overridden] = True
        bits = np.empty(len(known_posts), np.int32)
        flag_missing(known_posts, UNKNOWN_BITS["post_state"], bits)
        for item in self._lookups["candidate"]:
            is_post = item.name == self._plan.post
            bit = UNKNOWN_BITS["post_id" if is_post else "post_feature_id"]
            # Another id that is null is none.
            first_row = self._id_maps[item.table].first_row
            flag_strange(rows[item.name], posts.keys[item.name], first_row, is_post, bit, bits)
        for item in self._lookups["member"]:
            if item.name == self._plan.member:
                first_row = self._id_maps[item.table].first_row
                for i, cut in enumerate(cuts):
                    if rows[item.name][i, 0] < first_row:
                        bits[cut] |= UNKNOWN_BITS["member_id"]
                    if not member.found[i]:
                        bits[cut] |= UNKNOWN_BITS["member_state"]
        return bits


def _check_utf8(name: str, texts: Sequence[bytes]) -> None:
    try:
        # One decoding for all; a line feed cannot be part of a longer character.
        together = b"\n".join(texts)
        if not together.isascii():
            together.decode("utf-8")
    except UnicodeDecodeError:
        for i, text in enumerate(texts):
            try:
                text.decode("utf-8")
            except UnicodeDecodeError as error:
                raise RequestError(
                    f"{name}[{i}]: got {text[:40]!r}, which is not UTF-8 ({error.reason}); encode it so"
                ) from error
