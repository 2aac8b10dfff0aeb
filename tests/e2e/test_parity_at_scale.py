"""The demo's recipe at its full size: what is served is what was trained, for thousands of real requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.etl.logs import LogFolder
from sparsefeed.models.bundle import open_version
from sparsefeed.models.calibration import Calibration
from sparsefeed.models.torchrec.checkpoint import latest
from sparsefeed.models.torchrec.columns import Rows
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.workflows.recipe import load_recipe
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.server import TritonServer
from sparsefeed.workflows.stages import simulate_logs
from sparsefeed.workflows.workspace import Workspace
from tests.e2e.conftest import finish, ports, training_days
from tests.e2e.shown import shown

NUM_REQUESTS = 3000


@pytest.mark.slow
@pytest.mark.triton
@pytest.mark.timeout(900)
def test_served_scores_equal_the_trainers_for_sessions_of_the_held_out_day(tmp_path: Path) -> None:
    recipe = load_recipe("tiny")
    recipe = recipe.model_copy(update={"serving": ServingConfig(**ports())})
    workspace = Workspace(tmp_path)
    simulate_logs(recipe, workspace)
    run = finish(recipe, workspace, workspace.logs, tmp_path / "reference")
    raw = training_days(run)
    known = set(raw["member_id"]), set(raw["post_id"])
    opened = LogFolder.open(workspace.logs, recipe.feed)
    day = pq.read_table(opened.of_days(opened.days[-1:])[0].path, columns=["session_id", "member_id", "post_id"])
    sessions: list[tuple[str, list[str]]] = []
    for _, session in day.to_pandas().groupby("session_id"):
        posts = [post for post in session["post_id"] if post in known[1]]
        if session["member_id"].iloc[0] in known[0] and posts:
            sessions.append((session["member_id"].iloc[0], posts))
        if len(sessions) == NUM_REQUESTS:
            break
    pairs = [(member, post) for member, posts in sessions for post in posts]
    frame: pd.DataFrame = run.feed.workflow.transform(shown(run, raw, pairs))
    checkpoint = latest(workspace.training("ips"))
    assert checkpoint is not None
    rows = Rows.from_arrow(recipe.feed, pa.Table.from_pandas(frame, preserve_index=False))
    calibration = Calibration.load(open_version(workspace.bundles).calibration)
    expected = calibration.probability(Scorer(recipe.feed, checkpoint).score_rows(rows))
    served = []
    with (
        TritonServer(workspace.triton_repo, [run.bundle], recipe.serving) as server,
        FeedClient(server.grpc_url) as client,
    ):
        for member, posts in sessions:
            ranking = client.rank(member, posts)
            served.append(np.stack(list(ranking.probability.values()), axis=1))
    difference = np.abs(np.concatenate(served) - expected)
    print(f"{len(sessions)} requests, {len(pairs)} candidates, greatest difference {difference.max():.2e}")
    assert len(sessions) == NUM_REQUESTS
    assert difference.max() <= 1e-5
    assert expected.std(axis=0).min() > 1e-3
