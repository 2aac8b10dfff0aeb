"""Recorded requests: a few requests and the scores a bundle must give, so that a server is tested before it is sent to.

`export` records them into the bundle (`recorded.json`), through the steps that Triton runs, in the exporter's process.
A version made by a delta has none of its own: the requests of the version it came from are scored anew, from its files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sparsefeed.errors import BundleError, ReleaseError, ServeError
from sparsefeed.etl.ids.inverse import Inverse
from sparsefeed.etl.spec import FeedSpec, Frozen
from sparsefeed.models.bundle import Bundle, open_version, read_json
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.steps.dense import DenseStep
from sparsefeed.workflows.serving.steps.lookup import LookupStep
from sparsefeed.workflows.serving.steps.transform import TransformStep

__all__ = ["Recorded", "Request", "record", "recorded_of", "test"]

_FILE = "recorded.json"
_NUM_REQUESTS, _NUM_POSTS = 8, 20
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5  # of float32 on another processor; another model is further off


class Request(Frozen):
    """One request and the scores of its posts."""

    member: str
    posts: tuple[str, ...] = Field(min_length=1)
    score: tuple[float, ...]


class Recorded(Frozen):
    """`recorded.json`."""

    format: Literal[1] = 1
    requests: tuple[Request, ...] = Field(min_length=1)


def record(folder: Path, inverse: Path) -> None:
    """Write `recorded.json` into a bundle's folder that is not sealed yet.

    Args:
        folder: with all other files.
        inverse: the ETL's folder of inverses, which knows the strings of ids.
    """
    spec = FeedSpec.load(folder / "spec.json")
    members = _some_ids(spec, spec.logs.member, inverse, _NUM_REQUESTS - 2) if spec.logs.member else []
    posts = _some_ids(spec, spec.logs.post, inverse, _NUM_REQUESTS * _NUM_POSTS)
    asked = _requests(members, posts)
    (folder / _FILE).write_text(_score(folder, asked).model_dump_json(indent=1) + "\n", "utf-8")


def recorded_of(root: Path, version: Bundle) -> Recorded:
    """The recorded requests of a version; where it has none, scored anew from its files.

    Raises:
        BundleError: they cannot be read.
        ReleaseError: the bundle's own steps refuse them.
    """
    asked, ancestor = _requests([], []), version
    while True:
        if (ancestor.path / _FILE).exists():
            found = read_json(Recorded, ancestor.path / _FILE)
            if ancestor is version:
                return found
            asked = [(one.member, list(one.posts)) for one in found.requests]
            break
        if ancestor.manifest.parent is None:
            break
        try:
            ancestor = open_version(root, ancestor.manifest.parent)
        except BundleError:
            break  # the parent was removed; requests of strangers have scores, too
    return _score(version.path, asked)


def test(version: Bundle, recorded: Recorded, grpc_url: str, max_candidates: int) -> float:
    """Ask a server's bundle the recorded requests, twice, so that it is warm; return the largest difference of a score.

    Args:
        version: the bundle.
        recorded: its requests.
        grpc_url: host:port of the server.
        max_candidates: of a request; posts beyond are left out, as no post's score depends on another post.

    Raises:
        ReleaseError: it does not answer, or answers otherwise.
    """
    largest = 0.0
    with FeedClient(grpc_url, version.id, timeout_s=60.0) as client:
        for request in recorded.requests * 2:
            posts = request.posts[:max_candidates]
            try:
                answer = client.rank(request.member, posts)
            except ServeError as error:
                raise ReleaseError(f'bundle "{version.id}": a recorded request is not answered: {error}') from error
            want = np.array(request.score[: len(posts)], np.float32)
            if answer.bundle != version.id or not np.allclose(answer.score, want, _RELATIVE, _ABSOLUTE):
                i = int(np.argmax(np.abs(answer.score - want))) if answer.score.shape == want.shape else 0
                raise ReleaseError(
                    f'bundle "{version.id}": a recorded request (member "{request.member}", post "{posts[i]}") '
                    f'scores {answer.score[i]:.6g}, answered by "{answer.bundle}"; recorded was {want[i]:.6g}; '
                    "does the server read another folder, or run another version of sparsefeed?"
                )
            largest = max(largest, float(np.abs(answer.score - want).max()))
    return largest


def _some_ids(spec: FeedSpec, feature: str, inverse: Path, count: int) -> list[str]:
    """Ids spread evenly over the rows that have one."""
    table = next(one.table for one in spec.lookups if one.name == feature and one.kind == "id")
    strings = Inverse.load(inverse / table)
    num = len(strings.offsets) - 1
    rows = strings.first_row + np.unique(np.linspace(0, max(num - 1, 0), min(count, num)).astype(np.int64))
    return [text for text in strings.decode(rows).to_pylist() if text]


def _requests(members: Sequence[str], posts: Sequence[str]) -> list[tuple[str, list[str]]]:
    """One request per member, an anonymous one and a stranger's, each with posts of its own and one nobody knows."""
    asked = []
    for i, member in enumerate([*members, "", "sparsefeed-stranger"]):
        own = list(posts[i * (_NUM_POSTS - 1) : (i + 1) * (_NUM_POSTS - 1)])
        asked.append((member, [*own, "sparsefeed-stranger"]))
    return asked


def _score(folder: Path, asked: Sequence[tuple[str, list[str]]]) -> Recorded:
    most = max(len(posts) for _, posts in asked)
    parameters = {"bundle": folder.name, "folder": str(folder), "max_candidates": str(most), "threads": "1"}
    steps = [step.open(parameters) for step in (TransformStep, LookupStep, DenseStep)]
    requests = []
    for member, posts in asked:
        tensors: dict[str, NDArray[Any]] = {
            "member_id": np.array([member.encode()], object),
            "post_ids": np.array([post.encode() for post in posts], object),
        }
        for step in steps:
            (answer,) = step.run([tensors])
            if isinstance(answer, Exception):
                raise ReleaseError(f"{folder}: a recorded request is refused: {answer}") from answer
            tensors = {**tensors, **answer}
        requests.append(Request(member=member, posts=tuple(posts), score=tuple(tensors["score"].tolist())))
    return Recorded(requests=tuple(requests))
