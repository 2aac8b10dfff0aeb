"""MapIds.fit: the admitted ids are exact, whatever the partitions, the column's layout and the keys."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsefeed.errors import DataError
from sparsefeed.etl import frame, ids
from sparsefeed.etl.cluster import open_cluster
from sparsefeed.etl.config import ClusterConfig
from sparsefeed.etl.ids import IdMap, Inverse
from sparsefeed.etl.ids.string_counts import StringCounts
from sparsefeed.etl.impressions import ReadImpressions
from sparsefeed.etl.logs import LogFolder
from sparsefeed.etl.ops import map_ids
from sparsefeed.etl.ops.map_ids import MapIds
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.etl.workflow import FeedWorkflow
from tests import logs
from tests.etl.ids.narrow import use_narrow_keys

Layout = Callable[[list[str | None]], Any]
PLAIN: Layout = lambda ids: np.array(ids, object)  # noqa: E731
CATEGORICAL: Layout = pd.Categorical


def spec(**policy: Any) -> FeedSpec:
    """Posts and their parents share a table, which has the policy; members have their own, which admits all."""
    post = {"kind": "id", "table": "post", "side": "candidate"}
    return FeedSpec.parse(
        {
            "name": "feed",
            "tables": [{"name": "post", "dim": 4, "tail_rows": 3, **policy}, {"name": "member", "dim": 4}],
            "features": [
                {**post, "name": "post_id"},
                {"kind": "ids", "name": "parent_ids", "table": "post", "side": "candidate"},
                {"kind": "id", "name": "member_id", "table": "member", "side": "member"},
            ],
            "responses": [{"name": "click", "column": "click"}],
            "logs": {"position": None, "max_null_share": 0.5},
        }
    )


def frame_of(posts: list[str | None], layout: Layout = PLAIN) -> pd.DataFrame:
    """Each post's parents are itself twice, so it is counted three times a row; one member a row."""
    parents = pd.Series([[post, post] if post else [] for post in posts], dtype=object)
    members = [f"m{i}" for i in range(len(posts))]
    return pd.DataFrame({"post_id": layout(posts), "parent_ids": parents, "member_id": layout(members)})


def fit(operator: MapIds, partitions: list[pd.DataFrame], read: Callable[[pd.DataFrame], Any] = lambda p: p) -> None:
    """Fit as NVTabular does without a cluster."""
    meta = frame_of([])
    ddf = dd.from_map(read, partitions, meta=meta, enforce_metadata=False)
    operator.fit_finalize(dask.compute([operator.fit(None, ddf)], scheduler="synchronous")[0][0])


def keys_of(strings: list[str]) -> list[int]:
    return ids.id_map.hash_strings(strings, 0)[0].tolist()  # as a map hashes, which may be patched


def admitted(counts: Counter[str], min_count: int, max_ids: int | None) -> set[str]:
    keys = dict(zip(counts, keys_of(list(counts)), strict=True))
    ranked = sorted((s for s in counts if counts[s] >= min_count), key=lambda s: (-counts[s], keys[s], s))
    return set(ranked[:max_ids])


@pytest.fixture
def narrow_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_keys(monkeypatch)


PARTITIONS = st.lists(st.lists(st.integers(0, 30), max_size=25), min_size=1, max_size=4).filter(any)


def check_admission(folder: Path, parts: list[list[int]], min_count: int, max_ids: int | None, layout: Layout) -> None:
    posts = [[f"p{i}" for i in part] for part in parts if part]
    operator = MapIds(spec(min_count=min_count, max_ids=max_ids), folder)
    fit(operator, [frame_of(part, layout) for part in posts])
    counts = Counter(post for part in posts for post in 3 * part)
    chosen = sorted(admitted(counts, min_count, max_ids))
    built = operator.maps["post"]
    assert built.num_admitted == len(chosen)
    rows = built.own_rows(chosen)
    assert sorted(rows.tolist()) == list(range(built.first_row, built.first_row + len(chosen)))
    # One whose key only one admitted string has reads that string's row.
    rest = [post for post in counts if keys_of([post])[0] not in keys_of(chosen)]
    assert (built.own_rows(rest) == -1).all()
    assert Inverse.load(folder / "inverse" / "post").decode(rows).to_pylist() == chosen


SETTINGS = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
POLICY = (st.integers(1, 12), st.none() | st.integers(1, 20))


@SETTINGS
@given(PARTITIONS, *POLICY, st.sampled_from([PLAIN, CATEGORICAL]))
def test_the_admitted_are_the_most_frequent_of_all_partitions_together(
    tmp_path: Path, parts: list[list[int]], min_count: int, max_ids: int | None, layout: Layout
) -> None:
    check_admission(tmp_path, parts, min_count, max_ids, layout)


@SETTINGS
@given(PARTITIONS, *POLICY)
def test_strings_that_share_a_key_are_counted_and_admitted_one_by_one(
    tmp_path: Path, narrow_keys: None, parts: list[list[int]], min_count: int, max_ids: int | None
) -> None:
    check_admission(tmp_path, parts, min_count, max_ids, PLAIN)


def test_neither_order_nor_grouping_of_partitions_moves_a_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    posts = [f"p{i}" for i in rng.zipf(1.3, 2000) % 500]
    headers = []
    for name, num_parts, step in (("a", 1, 1), ("b", 12, 1), ("c", 5, -1)):
        parts = [frame_of(part.tolist()) for part in np.array_split(posts, num_parts)][::step]
        fit(MapIds(spec(min_count=4, max_ids=200), tmp_path / name), parts)
        headers.append((tmp_path / name / "ids" / "post" / "id_map.json").read_text())  # it holds the arrays' digests
    assert headers[0] == headers[1] == headers[2]


def test_one_read_is_enough_no_partition_is_kept_and_nothing_is_left_beside_the_maps(tmp_path: Path) -> None:
    read_frames: list[weakref.ref[pd.DataFrame]] = []

    def read(partition: pd.DataFrame) -> pd.DataFrame:
        gc.collect()
        assert sum(ref() is not None for ref in read_frames) <= 1
        copy = partition.copy()
        read_frames.append(weakref.ref(copy))
        return copy

    operator = MapIds(spec(min_count=2), tmp_path)
    fit(operator, [frame_of(["a", "b"])] * 5, read)
    assert len(read_frames) == 5
    assert operator.maps["post"].num_admitted == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ids", "inverse", "runs", "state"]
    assert not list((tmp_path / "runs").rglob("*"))


def test_a_job_merges_no_more_at_a_time_than_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_ids, "_ROWS_AT_ONCE", 20)
    sizes: list[int] = []
    merge = StringCounts.merge

    def note(self: StringCounts, *others: StringCounts) -> StringCounts:
        if others:
            sizes.append(len(self) + sum(map(len, others)))
        return merge(self, *others)

    monkeypatch.setattr(StringCounts, "merge", note)
    posts = [f"p{i}" for i in range(500)]
    fit(MapIds(spec(min_count=4), tmp_path), [frame_of(posts[:250]), frame_of(posts[250:] + posts[:250:10])])
    ranges = [size for size in sizes if size < 100]  # a partition merges its own columns too: they are as long as it
    assert len(ranges) > 20
    assert max(ranges) < 60
    built = IdMap.load(tmp_path / "ids" / "post")
    assert sorted(built.known(built.encode(posts)).nonzero()[0].tolist()) == list(range(0, 250, 10))


@pytest.mark.parametrize("layout", [PLAIN, CATEGORICAL])
@pytest.mark.parametrize("min_count", [1, 3])
def test_nulls_and_empty_strings_are_counted_and_never_admitted(tmp_path: Path, layout: Layout, min_count: int) -> None:
    operator = MapIds(spec(min_count=min_count), tmp_path / "a")
    with pytest.warns(match='column "post_id": 3 of 8 ids are null or empty; they read row 1'):
        fit(operator, [frame_of(["a", None, "a", ""], layout), frame_of(["a", None, "b", "b"], layout)])
    assert operator.maps["post"].num_admitted == 2
    with pytest.raises(DataError, match=r'column "post_id": 3 of 4 ids are null or empty, 75.00%; .* allows 50.00%'):
        fit(MapIds(spec(min_count=min_count), tmp_path / "b"), [frame_of(["a", None, "", None], layout)])


@pytest.mark.parametrize("layout", [PLAIN, CATEGORICAL])
def test_a_partition_of_nulls_alone_counts_as_nulls(tmp_path: Path, layout: Layout) -> None:
    nulls = MapIds(spec(), tmp_path).collect(frame_of([None, None], layout), 0)
    assert nulls == {"post_id": (2, 2), "parent_ids": (0, 0), "member_id": (0, 2)}


def test_an_id_that_is_no_text_is_named_with_its_column(tmp_path: Path) -> None:
    wrong = pa.array([b"a", b"\xff"], pa.binary()).view(pa.string())
    part = frame_of(["a", "b"]).assign(post_id=frame.arrow_column(wrong))
    with pytest.raises(DataError, match=r'column "post_id": ids: an id is no text .*allowed: UTF-8'):
        MapIds(spec(), tmp_path).collect(part, 0)


def test_a_cluster_of_two_workers_fits_the_same_maps(logs_folder: Path, tmp_path: Path) -> None:
    tables = [{"name": n, "dim": 8, "min_count": 9, "max_ids": 25} for n in ("member", "creator", "post", "hashtag")]
    feed_spec = logs.spec(tables=tables)
    folder = LogFolder.open(logs_folder, feed_spec)
    for workers in (0, 2):
        with open_cluster(ClusterConfig(workers=workers)):
            feed = FeedWorkflow(feed_spec, tmp_path / str(workers))
            read = ReadImpressions.prepare(feed_spec, folder, 100, tmp_path / "scratch")
            feed.fit(read, folder.partitions(100), folder.text_impressions)
    for table in ("member", "creator", "post", "hashtag"):
        one, two = (tmp_path / str(n) / "ids" / table for n in (0, 2))
        assert (one / "id_map.json").read_text() == (two / "id_map.json").read_text()
    assert IdMap.load(tmp_path / "2" / "ids" / "post").num_admitted == 25
