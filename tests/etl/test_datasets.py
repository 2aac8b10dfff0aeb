"""Published data sets: small files in each published layout -> logs -> the ETL under the recipe of that name.

The sets themselves are nowhere in this project. Those who have some name their folder by SPARSEFEED_DATA, as
docs/howto/real_logs.md lays it out, and the last test reads them, too.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, DataError
from sparsefeed.etl.config import ClusterConfig
from sparsefeed.etl.datasets import DatasetName, LogsSummary, write_logs
from sparsefeed.etl.ids import IdMap
from sparsefeed.etl.pipeline import run
from sparsefeed.workflows.choices import Dataset
from sparsefeed.workflows.recipe import Recipe, load_recipe
from tests import logs as by_hand

REAL = os.environ.get("SPARSEFEED_DATA")
Rows = dict[str, list[Any]]
NUM_USERS, NUM_VIDEOS = 12, 10


# The published layouts ---------------------------------------------------------------------------------------------


def kuairand_logs(first_day: int, days: int, seed: int) -> Rows:
    """Rows of a `log_standard_*` file: 40 a day in April 2022, the first of each day twice."""
    random, rows = np.random.default_rng(seed), {}
    for day in range(first_day, first_day + days):
        midnight_ms = int(pd.Timestamp(f"2022-04-{day:02d}", tz="Asia/Shanghai").timestamp() * 1000)
        for number in [0, *range(40)]:
            draw = np.random.default_rng([seed, day, number])
            click = int(draw.random() < 0.5)
            row = {
                "user_id": int(draw.integers(NUM_USERS)), "video_id": int(draw.integers(NUM_VIDEOS)),
                "date": int(f"202204{day:02d}"), "hourmin": 100, "time_ms": midnight_ms + 60_000 * number,
                "is_click": click, "is_like": int(click and draw.random() < 0.3),
                "is_follow": 0, "is_comment": 0, "is_forward": 0, "is_hate": 0,
                "long_view": int(click and draw.random() < 0.7), "play_time_ms": 9, "duration_ms": 30_000,
                "profile_stay_time": 0, "comment_stay_time": 0, "is_profile_enter": 0, "is_rand": 0,
                "tab": int(random.integers(3)),
            }  # fmt: skip
            for name, value in row.items():
                rows.setdefault(name, []).append(value)
    return rows


def kuairand_users() -> Rows:
    users = range(NUM_USERS)
    rows: Rows = {
        "user_id": [*users],
        "user_active_degree": ["full_active"] * NUM_USERS,
        "is_lowactive_period": [0] * 12,
    }
    rows |= {"is_live_streamer": [-124] * NUM_USERS, "is_video_author": [1] * NUM_USERS}
    for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"):
        rows |= {name: [7 * u for u in users], f"{name}_range": ["[1,10)"] * NUM_USERS}
    floats = {4, *range(12, 18)}  # pandas wrote them: some are missing
    return rows | {f"onehot_feat{i}": [float(u % 3) if i in floats else u % 3 for u in users] for i in range(18)}


def kuairand_videos() -> Rows:
    videos = range(NUM_VIDEOS)
    return {
        "video_id": [*videos], "author_id": [100 + v % 4 for v in videos], "video_type": ["NORMAL"] * NUM_VIDEOS,
        "upload_dt": ["2022-04-09"] * NUM_VIDEOS, "upload_type": ["Web"] * NUM_VIDEOS,
        "visible_status": [0.0] * NUM_VIDEOS,
        "video_duration": [None, *(1000.0 * v for v in videos[1:])], "server_width": [720.0] * NUM_VIDEOS,
        "server_height": [1280.0] * NUM_VIDEOS, "music_id": [9_000_000_000 + v for v in videos],
        "music_type": [9.0] * NUM_VIDEOS, "tag": ["20,43" if v % 2 else "7" for v in videos],
    }  # fmt: skip


def kuairand(folder: Path) -> Path:
    """KuaiRand-Pure as it is unpacked; the statistics, which leak, and the random log must not be read."""
    data = folder / "data"
    csv(data / "log_standard_4_08_to_4_21_pure.csv", kuairand_logs(20, 2, seed=0))
    csv(data / "log_standard_4_22_to_5_08_pure.csv", kuairand_logs(24, 7, seed=1))
    csv(data / "user_features_pure.csv", kuairand_users())
    csv(data / "video_features_basic_pure.csv", kuairand_videos())
    for name in ("video_features_statistic_pure.csv", "log_random_4_22_to_5_08_pure.csv"):
        (data / name).write_text("not,read\n")
    return folder


def obd(folder: Path) -> Path:
    """Open Bandit Dataset as it is unpacked: two policies, two of the three campaigns, seven days."""
    for policy in ("random", "bts"):
        for campaign, num_items in (("men", 34), ("women", 46)):
            random, num = np.random.default_rng([len(policy), num_items]), 700
            times = pd.date_range("2019-11-24", "2019-11-30 23:59:59", num, tz="UTC").floor("s")
            rows: Rows = {
                "": [*range(num)],  # pandas' index: a column without a name
                "timestamp": [str(t + pd.Timedelta(microseconds=1)) for t in times],
                "item_id": random.integers(num_items, size=num).tolist(),
                "position": random.integers(1, 4, num).tolist(),
                "click": (random.random(num) < 0.2).astype(int).tolist(),
                "propensity_score": [1 / num_items] * num,
                **{f"user_feature_{i}": [f"hash{x}" for x in random.integers(4, size=num)] for i in range(4)},
                **{f"user-item_affinity_{i}": [0.0] * num for i in range(num_items)},
            }
            csv(folder / policy / campaign / f"{campaign}.csv", rows)
            items: Rows = {"": [*range(num_items)], "item_id": [*range(num_items)]}
            items |= {"item_feature_0": [i / 10 for i in range(num_items)]}
            items |= {f"item_feature_{k}": [f"hash{i % (3 + k)}" for i in range(num_items)] for k in (1, 2, 3)}
            csv(folder / policy / campaign / "item_context.csv", items)
    return folder


def movielens(folder: Path) -> Path:
    """ml-32m as it is unpacked: ordered by user, times in seconds, half stars, two thirds of a year."""
    random, num = np.random.default_rng(0), 600
    start, end = (int(pd.Timestamp(text, tz="UTC").timestamp()) for text in ("2023-02-01", "2023-10-12"))
    rows = {
        "userId": np.sort(random.integers(1, 20, num)).tolist(),
        "movieId": random.integers(1, 9, num).tolist(),
        "rating": (random.integers(1, 11, num) / 2).tolist(),
        "timestamp": random.integers(start, end, num).tolist(),
    }
    csv(folder / "ratings.csv", rows)
    titles = ["Toy Story (1995)", 'Heat, "uncut" (1995)', "No year", *(f"Film {i} (20{i:02d}) " for i in range(4, 9))]
    genres = ["Animation|Children", "Action", "(no genres listed)", *["Drama|Sci-Fi"] * 5]
    csv(folder / "movies.csv", {"movieId": [*range(1, 9)], "title": titles, "genres": genres})
    return folder


def csv(path: Path, columns: Mapping[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(columns).to_csv(path, index=False)


PUBLISHED: dict[DatasetName, Callable[[Path], Path]] = {"kuairand": kuairand, "obd": obd, "movielens": movielens}


@pytest.fixture(params=PUBLISHED)
def name(request: pytest.FixtureRequest) -> DatasetName:
    return request.param  # type: ignore[no-any-return]


def read(folder: Path) -> pd.DataFrame:
    """All impressions, in the order of days, and the day of each row's folder."""
    files = sorted(folder.glob("impressions/*/*.parquet"))
    return pd.concat([pq.read_table(f, partitioning=None).to_pandas().assign(day=f.parent.name[4:]) for f in files])


def recipe(name: str) -> Recipe:
    """The recipe that comes along, in this process."""
    loaded = load_recipe(name)
    here = {"cluster": ClusterConfig(workers=0), "min_files": 1}
    return loaded.model_copy(update={"etl": loaded.etl.model_copy(update=here)})


def prepared(name: DatasetName, source: Path, root: Path) -> dict[str, Any]:
    """Logs in `root/logs`, an ETL of them in `root/etl`; the content of etl.json."""
    write_logs(name, source, root / "logs")
    loaded = recipe(name)
    return run(loaded.feed, root / "logs", root / "etl", loaded.etl)


# What comes out ----------------------------------------------------------------------------------------------------


def test_every_data_set_has_a_recipe_and_a_word_on_the_command_line() -> None:
    assert sorted(get_args(DatasetName)) == sorted(d.value for d in Dataset) == sorted(PUBLISHED)


def test_kuairand_has_the_features_of_its_users_and_videos_in_every_row(tmp_path: Path) -> None:
    summary = write_logs("kuairand", kuairand(tmp_path / "KuaiRand-Pure"), tmp_path / "logs")
    assert summary == LogsSummary(9 * 41, 9, "2022-04-20", "2022-04-30")
    rows = read(tmp_path / "logs")
    expected = pd.DataFrame(
        {k: v + w for (k, v), w in zip(kuairand_logs(20, 2, 0).items(), kuairand_logs(24, 7, 1).values(), strict=True)}
    )
    assert rows["time_ms"].tolist() == expected["time_ms"].tolist()
    assert (rows["day"].str.replace("-", "").astype(int) == expected["date"].to_numpy()).all()
    for column in ("user_id", "video_id", "tab"):
        assert rows[column].tolist() == expected[column].astype(str).tolist()
    for column in ("is_click", "long_view", "is_like"):
        assert rows[column].tolist() == expected[column].tolist()
    video, user = expected["video_id"].to_numpy(), expected["user_id"].to_numpy()
    assert rows["author_id"].tolist() == [str(100 + v % 4) for v in video]
    assert rows["music_id"].tolist() == [str(9_000_000_000 + v) for v in video]
    assert [t.tolist() for t in rows["tags"]] == [["20", "43"] if v % 2 else ["7"] for v in video]
    assert rows["video_duration"].tolist() == [
        1000 * v if v else 30_000 for v in video
    ]  # of the log where it is missing
    assert rows["register_days"].tolist() == [7 * u for u in user]
    assert rows["onehot_feat4"].tolist() == rows["onehot_feat1"].tolist() == [str(u % 3) for u in user]  # not "2.0"
    days = (
        pd.to_datetime(rows["time_ms"], unit="ms") + pd.Timedelta(hours=8) - pd.Timestamp("2022-04-09")
    ) / pd.Timedelta(days=1)
    np.testing.assert_allclose(rows["video_age_days"], days, rtol=1e-6)
    assert not {"show_cnt", "play_cnt", "counts"} & set(rows)


def test_kuairands_days_before_the_25th_are_looked_back_at_and_repeated_rows_count_once(tmp_path: Path) -> None:
    summary = prepared("kuairand", kuairand(tmp_path / "published"), tmp_path)
    assert summary["days_before"] == ["2022-04-20", "2022-04-21", "2022-04-24"]
    assert summary["train_days"] == [f"2022-04-{day}" for day in range(25, 30)]
    assert summary["eval_days"] == ["2022-04-30"]
    assert (summary["num_train_rows"], summary["num_eval_rows"]) == (200, 40)
    assert summary["warnings"] == ['column "impression_id": 9 of 369 rows repeat an id; dropped']
    first = by_hand.training_rows(tmp_path / "etl" / "train").sort_values("impression_id")
    raw = read(tmp_path / "logs").drop_duplicates("impression_id")
    videos = IdMap.load(tmp_path / "etl" / "ids" / "video")
    for _, row in first.iloc[::20].iterrows():
        shown = raw[raw["impression_id"] == row["impression_id"]].iloc[0]
        earlier = raw[
            (raw["user_id"] == shown["user_id"]) & (raw["time_ms"] < shown["time_ms"]) & (raw["is_click"] == 1)
        ]
        expected = videos.encode(pa.array(earlier.sort_values("time_ms")["video_id"][::-1][:30]))
        assert row["clicked_videos"].tolist() == expected.tolist()


def test_obd_has_both_policies_campaigns_as_surfaces_and_items_of_their_own(tmp_path: Path) -> None:
    summary = prepared("obd", obd(tmp_path / "published"), tmp_path)
    rows = read(tmp_path / "logs")
    assert len(rows) == 4 * 700
    assert rows["impression_id"].is_unique
    assert rows.groupby("session")["campaign"].value_counts().to_dict() == {
        (s, c): 700 for s in ("random", "production") for c in ("men", "women")
    }
    assert sorted(rows["item_id"].unique()) == sorted(
        [f"men-{i}" for i in range(34)] + [f"women-{i}" for i in range(46)]
    )
    item = rows["item_id"].str.split("-").str[1].astype(int)
    np.testing.assert_allclose(rows["item_feature_0"], item / 10, rtol=1e-6)
    assert rows["item_feature_3"].tolist() == [f"hash{i % 6}" for i in item]
    assert (rows["time"].dt.strftime("%Y-%m-%d") == rows["day"]).all()
    source = pd.read_csv(tmp_path / "published" / "bts" / "men" / "men.csv")
    of_file = rows[rows["impression_id"].str.startswith("bts-men-")]
    of_file = of_file.iloc[np.argsort(of_file["impression_id"].str.split("-").str[2].astype(int))]
    for column in ("position", "click", "user_feature_2"):
        assert of_file[column].tolist() == source[column].tolist()
    assert summary["eval_days"] == ["2019-11-30"]
    ips = pq.read_table(tmp_path / "etl" / "ips.parquet").to_pandas()
    assert sorted(set(zip(ips["surface"], ips["position"], strict=True))) == [
        (c, p) for c in ("men", "women") for p in (1, 2, 3)
    ]
    assert set(ips["reason"]) == {""}


def test_movielens_says_liked_of_four_stars_and_has_a_folder_per_month(tmp_path: Path) -> None:
    summary = prepared("movielens", movielens(tmp_path / "published"), tmp_path)
    rows = read(tmp_path / "logs").sort_values(["userId", "movieId", "time"])
    source = pd.read_csv(tmp_path / "published" / "ratings.csv").astype({"userId": str, "movieId": str})
    source = source.sort_values(["userId", "movieId", "timestamp"])
    assert rows["time"].tolist() == (source["timestamp"] * 1000).tolist()
    assert rows["liked"].tolist() == (source["rating"] >= 4).tolist()
    assert 0 < rows["liked"].mean() < 1
    assert rows["day"].tolist() == [f"{pd.Timestamp(t, unit='s'):%Y-%m}-01" for t in source["timestamp"]]
    of_movie = rows.drop_duplicates("movieId").set_index("movieId")
    assert of_movie.loc["1", "genres"].tolist() == ["Animation", "Children"]
    assert of_movie.loc["2", "released"] == 1995
    assert np.isnan(of_movie.loc["3", "released"])
    assert of_movie.loc["8", "released"] == 2008
    assert summary["eval_days"] == ["2023-08-01", "2023-09-01", "2023-10-01"]
    assert summary["warnings"] == []


def test_parquet_compressed_csv_and_csv_give_the_same_logs(tmp_path: Path, name: DatasetName) -> None:
    source = PUBLISHED[name](tmp_path / "csv")
    write_logs(name, source, tmp_path / "logs")
    for number, path in enumerate([p for p in sorted(source.rglob("*.csv")) if "not,read" not in p.read_text()]):
        if number % 2:
            pq.write_table(pacsv.read_csv(path), path.with_suffix(".parquet"))
        else:
            path.with_suffix(".csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    write_logs(name, source, tmp_path / "other")
    for path in sorted((tmp_path / "logs").glob("impressions/*/*.parquet")):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "other" / path.relative_to(tmp_path / "logs")))


def test_a_cut_of_kuairand_begins_with_what_was_watched_before_it(tmp_path: Path) -> None:
    cut = kuairand(tmp_path / "cut") / "data"
    for path in cut.glob("log_*"):
        path.unlink()
    csv(cut / "policy_20220425_0426.csv", kuairand_logs(25, 2, seed=1))
    last_ms = int(pd.Timestamp("2022-04-24 23:30", tz="Asia/Shanghai").timestamp() * 1000)
    sequences = {"watch_seq": [[3, 4, 3, 5]], "long_watch_seq": [[8, 4, 3]], "like_seq": [[5]]}  # 8: before the others
    history = pa.table({"user_id": [2], "history_len": [9], "last_time_ms": [last_ms], **sequences})
    pq.write_table(history, cut / "user_history_to_20220424.parquet")
    write_logs("kuairand", cut, tmp_path / "logs")
    rows = read(tmp_path / "logs")
    watched = rows[rows["day"] == "2022-04-24"]
    assert watched["video_id"].tolist() == ["8", "3", "4", "3", "5"]
    assert watched["long_view"].tolist() == watched["is_click"].tolist() == [1, 0, 1, 1, 0]
    assert watched["is_like"].tolist() == [0, 0, 0, 0, 1]
    assert watched["time_ms"].tolist() == [last_ms - i for i in (4, 3, 2, 1, 0)]
    assert watched["tab"].unique().tolist() == ["unknown"]
    assert watched["video_duration"].tolist() == [8000, 3000, 4000, 3000, 5000]
    assert len(rows) == 5 + 82


# What goes wrong ---------------------------------------------------------------------------------------------------


def test_a_file_that_lies_there_in_two_forms_is_not_read_twice(tmp_path: Path) -> None:
    source = kuairand(tmp_path / "published")
    log = source / "data" / "log_standard_4_22_to_5_08_pure.csv"
    log.with_suffix(".csv.gz").write_bytes(gzip.compress(log.read_bytes()))
    with pytest.raises(DataError, match=r"log_standard_4_22_to_5_08_pure\.csv.*: lies there in another form, too"):
        write_logs("kuairand", source, tmp_path / "logs")


@pytest.mark.parametrize(
    ("dataset", "gone", "message"),
    [
        (
            "kuairand",
            "data/log_standard_4_*",
            r"published: no log_standard_\*\.csv or policy_\*\.csv \(impressions\), as",
        ),
        (
            "kuairand",
            "data/user_features_*",
            r"no user_features_\*\.csv \(features of users\), as \.csv, \.csv\.gz or \.parq",
        ),
        (
            "obd",
            "random/*/*",
            r"no random/CAMPAIGN/CAMPAIGN\.csv \(CAMPAIGN: all, men, women\); give the folder that holds",
        ),
        ("obd", "*/men/item_context.csv", r"no random/men/item_context\.csv or items_men\.csv|no bts/men/item_context"),
        (
            "movielens",
            "movies.csv",
            r"published: no movies\.csv \(movies\), as \.csv, .*; give the folder that holds it",
        ),
    ],
)
def test_a_missing_file_is_named_with_what_is_looked_for(
    tmp_path: Path, dataset: DatasetName, gone: str, message: str
) -> None:
    source = PUBLISHED[dataset](tmp_path / "published")
    for path in source.glob(gone):
        path.unlink()
    with pytest.raises(DataError, match=message):
        write_logs(dataset, source, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("dataset", "file", "column", "message"),
    [
        (
            "kuairand",
            "data/log_standard_4_22_to_5_08_pure.csv",
            "long_view",
            r'5_08_pure\.csv: column "long_view" is missing',
        ),
        (
            "kuairand",
            "data/video_features_basic_pure.csv",
            "author_id",
            r'basic_pure\.csv: column "author_id" is missing',
        ),
        ("obd", "bts/men/men.csv", "position", r'bts/men/men\.csv: column "position" is missing'),
        (
            "movielens",
            "ratings.csv",
            "timestamp",
            r'ratings\.csv: column "timestamp" is missing.*; take the published file',
        ),
    ],
)
def test_a_missing_column_is_named_with_its_file(
    tmp_path: Path, dataset: DatasetName, file: str, column: str, message: str
) -> None:
    source = PUBLISHED[dataset](tmp_path / "published")
    frame = pd.read_csv(source / file)
    frame.drop(columns=column).to_csv(source / file, index=False)
    with pytest.raises(DataError, match=message):
        write_logs(dataset, source, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


def test_a_value_of_another_kind_and_a_file_that_is_none_are_named(tmp_path: Path) -> None:
    source = movielens(tmp_path / "published")
    whole = (source / "ratings.csv").read_text()
    (source / "ratings.csv").write_text(whole.replace("\n", "\n7,1,five,1690000000\n", 1))
    with pytest.raises(BadFileError, match=r"ratings\.csv: cannot be read: .*'five'.*; unpack or download it again"):
        write_logs("movielens", source, tmp_path / "logs")
    (source / "ratings.csv").rename(source / "ratings.parquet")
    with pytest.raises(BadFileError, match=r"ratings\.parquet: cannot be read"):
        write_logs("movielens", source, tmp_path / "logs")
    (source / "ratings.parquet").unlink()
    (source / "ratings.csv").write_text("userId,movieId,rating,timestamp\n")
    with pytest.raises(DataError, match=r"published: there is no row in ratings\.csv, movies\.csv"):
        write_logs("movielens", source, tmp_path / "logs")
    (source / "ratings.csv.gz").write_bytes(gzip.compress(whole.encode()))
    with pytest.raises(DataError, match=r"ratings\.csv: lies there in another form, too; each row would count twice"):
        write_logs("movielens", source, tmp_path / "logs")


def test_of_features_one_file_is_read(tmp_path: Path) -> None:
    source = kuairand(tmp_path / "published")
    csv(source / "data" / "user_features_1k.csv", kuairand_users())
    told = r"user_features_1k\.csv, user_features_pure\.csv are there, one is read \(.*\); leave one"
    with pytest.raises(DataError, match=told):
        write_logs("kuairand", source, tmp_path / "logs")
    with pytest.raises(DataError, match=r"nowhere: no such folder; give the one that the data set was unpacked to"):
        write_logs("movielens", tmp_path / "nowhere", tmp_path / "logs")


def test_logs_that_are_there_stay_and_other_ones_are_refused(tmp_path: Path) -> None:
    source = movielens(tmp_path / "published")
    told: list[str] = []
    first = write_logs("movielens", source, tmp_path / "logs", lambda done, total, what: told.append(what))
    assert told == ["movielens: 600 rows, reading ratings.csv"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "logs").rglob("*")}
    assert write_logs("movielens", source, tmp_path / "logs") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "logs").rglob("*")} == before
    assert json.loads((tmp_path / "logs" / "dataset.json").read_text())["summary"]["impressions"] == 600
    with pytest.raises(DataError, match=r"logs: holds movielens of other files than obd's; remove it or name another"):
        write_logs("obd", obd(tmp_path / "obd"), tmp_path / "logs")
    by_hand.write(tmp_path / "own", days=1, sessions=2)
    with pytest.raises(DataError, match=r"own: exists and holds no finished logs of a data set .*; remove it or name"):
        write_logs("movielens", source, tmp_path / "own")


# The sets themselves, for those who have them ----------------------------------------------------------------------


if REAL:

    @pytest.mark.parametrize(("dataset", "folder"), [("kuairand", "kuairand*"), ("obd", "obd*"), ("movielens", "ml-*")])
    def test_the_published_files_go_through(tmp_path: Path, dataset: DatasetName, folder: str) -> None:
        found = [path for path in sorted(Path(REAL).glob(folder)) if path.is_dir()]
        for source in found:
            try:
                summary = prepared(dataset, source, tmp_path / source.name)
            except DataError as error:
                if "; give the folder that holds" not in str(error):
                    raise
                continue  # of another layout: counts, not logs
            assert summary["num_train_rows"] > 0
            assert summary["num_eval_rows"] > 0
            return
        pytest.skip(f"no {folder} below SPARSEFEED_DATA")
