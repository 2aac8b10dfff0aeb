"""What is served is what was trained: ids, features and scores, for every pair of member and post."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sparsefeed.etl.ids.codes import rows_of
from sparsefeed.etl.ids.id_map import IdMap
from sparsefeed.etl.plan import ServingPlan
from sparsefeed.models.bundle import open_version
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.torchrec.checkpoint import latest
from sparsefeed.models.torchrec.columns import Rows
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.serving.steps.overrides import NOTHING
from sparsefeed.workflows.serving.steps.transform import RankRequest, TransformStep
from tests.e2e.conftest import Run
from tests.e2e.shown import shown


def every_pair(raw: pd.DataFrame) -> list[tuple[str, str]]:
    return [(m, p) for m in sorted(raw.member_id.unique()) for p in sorted(raw.post_id.unique())]


def transform_step(run: Run) -> TransformStep:
    version = open_version(run.workspace.bundles)
    return TransformStep.open({"bundle": version.id, "folder": str(version.path), "max_candidates": "1000"})


def test_the_serving_plan_equals_the_nvtabular_workflow(run: Run, raw: pd.DataFrame) -> None:
    pairs = every_pair(raw)
    expected = run.feed.workflow.transform(shown(run, raw, pairs))
    members = sorted({m for m, _ in pairs})
    requests = [RankRequest(m.encode(), [p.encode() for owner, p in pairs if owner == m], NOTHING) for m in members]
    plan = ServingPlan.load(open_version(run.workspace.bundles).plan)
    start = 0
    for answer in transform_step(run).compute(requests):
        n = len(answer["candidate_dense"])
        rows = expected.iloc[start : start + n]
        start += n
        for side, count in (("member", 1), ("candidate", n)):
            names = getattr(plan, f"{side}_dense").names
            np.testing.assert_allclose(
                answer[f"{side}_dense"], rows[list(names)].astype(np.float32).to_numpy()[:count], atol=1e-6
            )
        at = 0
        for table in plan.tables:
            for item in (lookup for lookup in plan.lookups if lookup.table == table.name):
                count = 1 if item.side == "member" else n
                size = count * item.max_length * table.keys_per_id
                keys = answer["KEYS"][0, at : at + size].reshape(count, item.max_length, table.keys_per_id)
                at += size
                lengths = [1] * count if item.kind == "id" else answer[f"len_{item.name}"]
                for i in range(count):
                    ids = np.atleast_1d(np.array(rows[item.name].iloc[i], np.int64))
                    wanted = np.stack(rows_of(ids, table.paired_rows), axis=-1) if table.paired_rows else ids[:, None]
                    assert keys[i, : lengths[i]].tolist() == wanted.tolist(), item.name
                    assert (keys[i, lengths[i] :] == 0).all()
    assert start == len(expected) > 500


def test_ids_at_serving_equal_ids_in_training_for_every_string(run: Run, raw: pd.DataFrame) -> None:
    version = open_version(run.workspace.bundles)
    strange = ["", "p-unseen", "x" * 10_000, "ünïcödé", "\x00"]
    for table, column in (("member", "member_id"), ("post", "post_id"), ("creator", "creator_id")):
        strings = sorted(raw[column].unique()) + strange
        served = IdMap.load(version.ids(table))
        trained = run.feed.map_ids.maps[table]
        assert served.encode(pa.array(strings)).tolist() == trained.encode(pa.array(strings)).tolist()


@pytest.mark.triton
def test_served_scores_equal_the_trainers(run: Run, raw: pd.DataFrame, server: TritonServer) -> None:
    pairs = every_pair(raw)
    table = pa.Table.from_pandas(run.feed.workflow.transform(shown(run, raw, pairs)), preserve_index=False)
    checkpoint = latest(run.workspace.training("ips"))
    assert checkpoint is not None
    logits = Scorer(run.recipe.feed, checkpoint).score_rows(Rows.from_arrow(run.recipe.feed, table))
    calibration = Calibration.load(open_version(run.workspace.bundles).calibration)
    expected = calibration.probability(logits)
    place = {pair: i for i, pair in enumerate(pairs)}
    posts = sorted(raw.post_id.unique())
    random = np.random.default_rng(0)
    worst, num_requests = 0.0, 0
    with FeedClient(server.grpc_url) as client:
        for _ in range(100):
            for member in sorted(raw.member_id.unique()):
                asked = [str(p) for p in random.choice(posts, random.integers(1, len(posts)), replace=False)]
                ranking = client.rank(member, asked)
                num_requests += 1
                assert ranking.bundle == run.bundle
                at = [place[member, post] for post in asked]
                for r, response in enumerate(run.recipe.feed.responses):
                    worst = max(worst, float(np.abs(ranking.probability[response.name] - expected[at, r]).max()))
                weights = np.array([response.score_weight for response in run.recipe.feed.responses])
                np.testing.assert_allclose(ranking.score, expected[at] @ weights, atol=1e-5)
    assert num_requests == 2000
    assert worst <= 1e-5
    assert expected.std(axis=0).min() > 1e-3, "the model must tell pairs apart, or equality means nothing"


@pytest.mark.triton
def test_a_post_seen_for_the_first_time_is_scored_from_its_creator_and_hashtags(
    run: Run, raw: pd.DataFrame, server: TritonServer
) -> None:
    with FeedClient(server.grpc_url) as client:
        features = {"creator_id": "c3", "hashtags": ["h0", "h1"], "post_length": 40.0, "post_age_hours": 0.0}
        plain = client.rank("m1", ["p-new"])
        told = client.rank("m1", ["p-new", "p1"], {"posts": {"p-new": features}})
        other = client.rank("m1", ["p-new"], {"posts": {"p-new": features | {"creator_id": "c4"}}})
    assert plain.unknown[0] == {"post_id", "post_state"}
    assert told.unknown[0] == {"post_id"}
    assert told.unknown[1] == frozenset()
    scores = [plain.score[0], told.score[0], other.score[0]]
    assert len({round(float(score), 7) for score in scores}) == 3


def test_the_bundle_carries_one_step_and_the_specs_digest(run: Run) -> None:
    version = open_version(run.workspace.bundles)
    checkpoint = latest(run.workspace.training("ips"))
    assert checkpoint is not None
    assert version.manifest.step == json.loads((checkpoint / "checkpoint.json").read_text())["step"]
    assert version.manifest.spec_digest == run.recipe.feed.digest
    assert version.manifest.trained_days == ("2026-11-02", "2026-11-03")


def test_exporting_again_gives_the_same_bundle(run: Run) -> None:
    from sparsefeed.workflows.stages import export_serving

    assert export_serving(run.recipe, run.workspace)[0] == run.bundle
