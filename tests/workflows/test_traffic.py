from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sparsefeed.errors import DataError
from sparsefeed.workflows.traffic import last_day, real_requests, write_requests
from tests import logs


def test_a_members_candidates_are_the_posts_of_one_of_their_sessions(logs_folder: Path) -> None:
    spec = logs.spec()
    day = last_day(logs_folder, spec, ["member_id", "post_id", "time"]).to_pandas().dropna()
    sessions = {key: list(dict.fromkeys(rows)) for key, rows in day.groupby(["member_id", "time"])["post_id"]}
    shortest = min(map(len, sessions.values()))
    for member, posts in real_requests(spec, logs_folder, shortest, 100):
        assert posts in [rows[:shortest] for (owner, _), rows in sessions.items() if owner == member]


def test_more_candidates_than_a_session_has_are_filled_up_with_the_days_posts(logs_folder: Path) -> None:
    spec = logs.spec()
    day = last_day(logs_folder, spec, ["member_id", "post_id", "time"]).to_pandas().dropna()
    of_the_day = set(day["post_id"])
    wanted = min(12, len(of_the_day))
    for member, posts in real_requests(spec, logs_folder, wanted, 50):
        assert len(set(posts)) == len(posts) == wanted
        assert set(posts) <= of_the_day
        own = [set(rows) for (m, _), rows in day.groupby(["member_id", "time"])["post_id"] if m == member]
        assert any(rows <= set(posts) for rows in own)


def test_another_days_sessions_are_asked_as_they_were_shown(logs_folder: Path) -> None:
    spec, first = logs.spec(), logs.START.date()
    day = last_day(logs_folder, spec, ["member_id", "post_id", "time"], first).to_pandas().dropna()
    sessions = {key: list(dict.fromkeys(rows)) for key, rows in day.groupby(["member_id", "time"])["post_id"]}
    assert set(day["time"].dt.date) == {first}
    for member, posts in real_requests(spec, logs_folder, None, 100, day=first):
        assert set(posts) <= {post for (owner, _), rows in sessions.items() if owner == member for post in rows}
        assert 0 < len(posts) <= 4


def test_members_ask_by_zipfs_law(logs_folder: Path) -> None:
    spec = logs.spec()
    day = last_day(logs_folder, spec, ["member_id", "post_id"]).to_pandas().dropna()
    activity = day["member_id"].value_counts().sort_index().sort_values(ascending=False, kind="stable")
    counts = Counter(member for member, _ in real_requests(spec, logs_folder, 1, 20_000, zipf=1.0))
    harmonic = sum(1 / k for k in range(1, len(activity) + 1))
    for k, member in enumerate(activity.index[:5], 1):
        assert counts[member] == pytest.approx(20_000 / k / harmonic, rel=0.15)
    alike = Counter(member for member, _ in real_requests(spec, logs_folder, 1, 20_000, zipf=0.0))
    assert max(alike.values()) < 1.5 * min(alike.values())
    assert len(alike) == len(activity)


def test_the_same_seed_gives_the_same_requests(logs_folder: Path) -> None:
    first, again, other = (real_requests(logs.spec(), logs_folder, 3, 40, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_what_cannot_be_drawn_is_refused(logs_folder: Path) -> None:
    with pytest.raises(DataError, match="candidates wanted; ask for fewer"):
        real_requests(logs.spec(), logs_folder, 100_000, 1)
    with pytest.raises(DataError, match="zipf: got -1"):
        real_requests(logs.spec(), logs_folder, 1, 1, zipf=-1)


def test_requests_are_kept_as_perf_analyzer_reads_them(tmp_path: Path) -> None:
    write_requests(tmp_path / "new" / "requests.json", [("m1", ["p1", "p2"])])
    assert json.loads((tmp_path / "new" / "requests.json").read_text()) == {
        "data": [
            {
                "member_id": {"content": ["m1"], "shape": [1]},
                "post_ids": {"content": ["p1", "p2"], "shape": [2]},
                "overrides": {"content": [""], "shape": [1]},
            }
        ]
    }
