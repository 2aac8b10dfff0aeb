"""A version with overlays and the one folded from it, on a real server: both answer what plain Python says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.etl.ids.keys import hash_strings
from sparsefeed.etl.snapshot import Snapshot
from sparsefeed.models.bundle import open_version
from sparsefeed.models.delta import IdChange, RowChange, apply_delta, write_delta
from sparsefeed.models.fold import fold
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.conftest import config
from tests.workflows.serving.feed import RESPONSES, SPEC, Feed, requests

pytestmark = pytest.mark.triton


def refreshed(root: Path, out: Path) -> tuple[str, Feed]:
    """A version made of b1 by a day that saw some members and posts and gave p40 and p41 rows, and the truth of it."""
    before, later = Feed.make(1), Feed.make(5)
    before.publish(root, "b1")
    day = replace(
        later,
        members={name: later.members[name] for name in list(later.members)[::2]},
        posts={name: later.posts[name] for name in list(later.posts)[::3]},
    )
    known = day.snapshot()
    keys, _ = hash_strings(["p40", "p41"], SPEC.key_seed)
    post, rows = before.id_maps["post"].add(keys)
    values = np.random.default_rng(5).normal(size=(len(rows), 8)).astype(np.float32)

    def build(folder: Path) -> None:
        Snapshot(known.member, known.post, 1, known.key_seed, known.spec_digest).save(folder / "snapshot")

    write_delta(
        open_version(root, "b1"), "b1-day", out,
        step=2, created="2024-01-02T00:00:00+00:00", code_version="test", trained_days=(),
        rows={"post": RowChange(rows, values)}, ids={"post": IdChange(keys, rows, keys[:0])}, build=build,
    )  # fmt: skip
    table = before.tables["post"].copy()
    table[rows] = values
    truth = replace(
        before,
        members={**before.members, **day.members},
        posts={**before.posts, **day.posts},
        id_maps={**before.id_maps, "post": post},
        tables={**before.tables, "post": table},
    )
    return apply_delta(root, out), truth


def test_overlays_and_their_fold_answer_the_same_and_the_truth(tmp_path: Path) -> None:
    root = tmp_path / "bundles"
    overlaid, truth = refreshed(root, tmp_path / "delta")
    assert (open_version(root, overlaid).snapshot / "overlay").exists()
    folded = fold(root, overlaid)
    settings = config()
    for name in (overlaid, folded):
        export(root, name, settings, tmp_path / "triton_repo")
    with TritonServer(tmp_path / "triton_repo", [overlaid, folded], settings) as server:
        clients = [FeedClient(server.grpc_url, name) for name in (overlaid, folded)]
        for member, posts, overrides in [("m6", ["p40", "p41", "p8", "p7"], None), *requests(truth, 20, 3)]:
            answers = [client.rank(member, posts, overrides) for client in clients]
            assert [answer.bundle for answer in answers] == [overlaid, folded]
            for name in RESPONSES:
                bits = [answer.probability[name].view(np.uint32).tolist() for answer in answers]
                assert bits[0] == bits[1]
                expected = [truth.probability(member, post, overrides)[RESPONSES.index(name)] for post in posts]
                np.testing.assert_allclose(answers[0].probability[name], expected, rtol=1e-4, atol=1e-6)
        for client in clients:
            client.close()
