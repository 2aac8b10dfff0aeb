"""Published data sets -> logs that the ETL reads (docs/contracts/logs.md): KuaiRand, Open Bandit, MovieLens.

The published files are CSV, and what an impression was shown with lies in files of its own. Here rows are joined with
their features and put into a folder per day, block by block; nothing is chosen, counted, filled or split. That is the
recipes' business, which name the columns as the data sets do. Repeated rows stay: they get the same impression id, and
the ETL drops and counts them.

Layouts, as their authors describe them (chongminggao/KuaiRand, README; st-tech/zr-obp, obd/README; ml-32m, README):

    kuairand   log_standard_*.csv, user_features_*.csv, video_features_basic_*.csv
    obd        {random,bts}/{all,men,women}/{campaign}.csv and item_context.csv beside it
    movielens  ratings.csv, movies.csv

Each file may as well be parquet with the same columns. docs/howto/real_logs.md says where to get them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sparsefeed.errors import DataError
from sparsefeed.etl.published_file import SUFFIXES, find, find_one, read, read_whole
from sparsefeed.progress import Progress, silent

__all__ = ["DatasetName", "LogsSummary", "write_logs"]

DatasetName = Literal["kuairand", "obd", "movielens"]
FORMAT = 1  # of the folder: raised when the same files would give other logs
_DAY_MS = 86_400_000
_CHINA_MS = 8 * 3_600_000  # KuaiRand's dates are of UTC+8

_ID, _NUMBER, _LABEL, _INT, _MS = pa.string(), pa.float32(), pa.int8(), pa.int32(), pa.int64()
_TIME = pa.timestamp("us", "UTC")
_Days = NDArray[np.str_]  # of each row, the day of the folder that it goes to
_Block = tuple[Path, _Days, pa.Table]  # and the file that it is from


@dataclass(frozen=True)
class LogsSummary:
    """What was written: rows, repeated ones included, and the first and last day."""

    impressions: int
    days: int
    first_day: str
    last_day: str


@dataclass(frozen=True)
class _Sources:
    """The files of one data set, and what gives their rows."""

    files: tuple[Path, ...]
    blocks: Callable[[], Iterator[_Block]]


def write_logs(name: DatasetName, source: Path, out: Path, progress: Progress = silent) -> LogsSummary:
    """Lay a published data set out as logs: `out/impressions/day=.../`, and `out/dataset.json`, written last.

    Guarantees: equal files give equal logs. `out` appears only when it is whole; one that was made from the same files
    (names, sizes, times of change) is left as it is. Memory is that of a block, of the features and of an open file per
    day, whatever the number of rows.

    Args:
        name: of the data set.
        source: folder of its files, as they are unpacked.
        out: folder to make.
        progress: told the files and the rows so far.

    Raises:
        DataError: a file or column is missing, a value is of another kind, or `out` holds something else.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; give the one that the data set was unpacked to")
    sources = _FIND[name](source)
    made_from = [(str(f.relative_to(source)), f.stat().st_size, f.stat().st_mtime_ns) for f in sources.files]
    wanted: dict[str, object] = {"format": FORMAT, "dataset": name, "files": [list(file) for file in made_from]}
    if out.exists():
        return _existing(wanted, out)
    partial = out.parent / f".{out.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    num_rows: dict[str, int] = {}
    with _DayFiles(partial / "impressions", num_rows) as files:
        for path, days, table in sources.blocks():
            files.write(days, table)
            done = sources.files.index(path)
            progress(done, len(sources.files), f"{name}: {sum(num_rows.values()):,} rows, reading {path.name}")
    if not num_rows:
        raise DataError(f"{source}: there is no row in {', '.join(f.name for f in sources.files)}; unpack it again")
    summary = LogsSummary(sum(num_rows.values()), len(num_rows), min(num_rows), max(num_rows))
    (partial / "dataset.json").write_text(json.dumps({**wanted, "summary": asdict(summary)}, indent=1) + "\n", "utf-8")
    partial.rename(out)
    return summary


def _existing(wanted: dict[str, object], out: Path) -> LogsSummary:
    remedy = "remove it or name another workspace"
    try:
        found = json.loads((out / "dataset.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{out}: exists and holds no finished logs of a data set ({error}); {remedy}") from error
    if {key: found.get(key) for key in wanted} != wanted:
        raise DataError(f"{out}: holds {found.get('dataset')} of other files than {wanted['dataset']}'s; {remedy}")
    return LogsSummary(**found["summary"])


class _DayFiles:
    """A parquet file per day, open until all is written; a block gives each of its days a row group."""

    def __init__(self, folder: Path, num_rows: dict[str, int]) -> None:
        self._folder = folder
        self._num_rows = num_rows
        self._open: dict[str, pq.ParquetWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _DayFiles:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def write(self, days: _Days, table: pa.Table) -> None:
        order = np.argsort(days, kind="stable")
        found, first = np.unique(days[order], return_index=True)
        table = table.take(pa.array(order))
        for day, start, end in zip(found, first, [*first[1:], len(days)], strict=True):
            if day not in self._open:
                path = self._folder / f"day={day}" / "part-000.parquet"
                path.parent.mkdir(parents=True)
                self._open[day] = self._stack.enter_context(pq.ParquetWriter(path, table.schema))
            self._open[day].write_table(table.slice(start, end - start))
            self._num_rows[str(day)] = self._num_rows.get(str(day), 0) + int(end - start)


# Reading ------------------------------------------------------------------------------------------------------------


def _of(key: pa.ChunkedArray, features: pa.Table, named: str) -> dict[str, pa.ChunkedArray]:
    """Columns of a table of features for each key, null where it has no row."""
    row = pc.index_in(key, features[named].combine_chunks())
    return {name: features[name].take(row) for name in features.column_names if name != named}


def _joined(*parts: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(*(part.cast(_ID) for part in parts), "-")


def _dates(time_ms: NDArray[np.int64], unit: str = "D") -> _Days:
    """The day of each moment, or the first of its month."""
    return np.datetime_as_string(time_ms.astype("datetime64[ms]").astype(f"datetime64[{unit}]").astype("datetime64[D]"))


# KuaiRand -----------------------------------------------------------------------------------------------------------

_RESPONSES = (
    "is_click",
    "long_view",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "is_profile_enter",
)
_SHOWN: Mapping[str, pa.DataType] = {
    "user_id": _ID, "video_id": _ID, "date": _ID, "time_ms": _MS, "tab": _ID, "duration_ms": _NUMBER,
    **dict.fromkeys(_RESPONSES, _LABEL),
}  # fmt: skip
_USER: Mapping[str, pa.DataType] = {
    "user_id": _ID, "user_active_degree": _ID, "is_live_streamer": _ID, "is_video_author": _ID,
    **dict.fromkeys(("follow_user_num", "fans_user_num", "friend_user_num", "register_days"), _NUMBER),
    **{f"onehot_feat{i}": _ID for i in range(18)},
}  # fmt: skip
_VIDEO: Mapping[str, pa.DataType] = {
    "video_id": _ID, "author_id": _ID, "video_type": _ID, "upload_dt": _ID, "upload_type": _ID,
    "video_duration": _NUMBER, "server_width": _NUMBER, "server_height": _NUMBER, "music_id": _ID, "music_type": _ID,
    "tag": _ID,
}  # fmt: skip
_HISTORY: Mapping[str, pa.DataType] = {
    "user_id": _ID, "last_time_ms": _MS,
    **dict.fromkeys(("watch_seq", "like_seq", "long_watch_seq"), pa.list_(_ID)),
}  # fmt: skip


def _kuairand(source: Path) -> _Sources:
    """KuaiRand-Pure's standard logs (1K's have the same columns), each row with the features of its user and its video.

    Column by column what was published, and: `impression_id` of user, video and time, so that a row that is there twice
    has the same; `tags`, the list in `tag`; `video_age_days` since the upload date; `video_duration` of the log where
    the video's is missing. `video_features_statistic_*` is never read: it is aggregated over the whole month, the days
    to predict included. Random logs (`log_random_*`) are not read either: they have no positions to be weighed by.

    A cut of the standard log may lie there as `policy_*`, with what was watched before it as `user_history_*`
    (`user_id, last_time_ms, watch_seq, like_seq, long_watch_seq`, the last entry the latest): see `_watched`.
    """
    logs = find(source, "log_standard_*", "policy_*", what="impressions")
    users = find_one(source, "user_features_*", what="features of users")
    videos = find_one(source, "video_features_basic_*", what="features of videos")
    histories = []
    if logs[0].name.startswith("policy_"):
        histories = [path for suffix in SUFFIXES[2:] for path in sorted(source.glob(f"user_history_*{suffix}"))]

    def blocks() -> Iterator[_Block]:
        of_user, of_video = read_whole(users, _USER), read_whole(videos, _VIDEO)
        for path in histories:
            for block in read(path, _HISTORY):
                yield path, *_shown(_watched(block), of_user, of_video)
        for path in logs:
            for block in read(path, _SHOWN):
                yield path, *_shown(block, of_user, of_video)

    return _Sources((*histories, *logs, users, videos), blocks)


def _shown(log: pa.Table, of_user: pa.Table, of_video: pa.Table) -> tuple[_Days, pa.Table]:
    user, video = _of(log["user_id"], of_user, "user_id"), _of(log["video_id"], of_video, "video_id")
    uploaded = video.pop("upload_dt").cast(pa.date32()).cast(pa.int32()).cast(pa.float64())
    age_days = pc.subtract(pc.divide(pc.add(log["time_ms"], _CHINA_MS).cast(pa.float64()), float(_DAY_MS)), uploaded)
    columns = {
        "impression_id": _joined(log["user_id"], log["video_id"], log["time_ms"]),
        **{name: log[name] for name in ("time_ms", "user_id", "video_id", "tab", *_RESPONSES)},
        **user,
        **video,
        "video_duration": pc.coalesce(video["video_duration"], log["duration_ms"]),
        "video_age_days": age_days.cast(_NUMBER),
        "tags": pc.split_pattern(video.pop("tag"), ","),
    }
    columns.pop("tag", None)
    dates = log["date"].to_pylist()
    return np.array([f"{d[:4]}-{d[4:6]}-{d[6:]}" for d in dates], "U10"), pa.table(columns)


def _watched(histories: pa.Table) -> pa.Table:
    """Sequences of watched videos as rows of the log, for the days that are only looked back at.

    `watch_seq` ends a member's impressions, `like_seq` and `long_watch_seq` those with that response, which may reach
    further back. Of a row its video, `is_like` and `long_view` are known. `is_click` is taken to be `long_view`: of the
    slice's long views 99.6 % are clicks, of its clicks 70 % long views. `tab` is "unknown". The times are a millisecond
    apart and end at the member's last: the order is right, the moments are not.
    """
    rows: dict[str, list[object]] = {name: [] for name in _SHOWN}
    for member in histories.to_pylist():
        watched = list(member["watch_seq"])
        responses = {"is_like": member["like_seq"], "long_view": member["long_watch_seq"]}
        at = {name: _places(watched, those) for name, those in responses.items()}
        older = [(video, name) for name, those in responses.items() for video in those[: len(those) - len(at[name])]]
        events = [(video, {name}) for video, name in older]
        events += [(video, {name for name in at if i in at[name]}) for i, video in enumerate(watched)]
        end_ms = member["last_time_ms"]
        date = _dates(np.array([end_ms + _CHINA_MS]))[0].replace("-", "")
        for i, (video, given) in enumerate(events):
            values = {"user_id": member["user_id"], "video_id": video, "date": date, "tab": "unknown"}
            moment = end_ms - (len(events) - 1 - i)
            labels = {"is_click": "long_view" in given, **{name: name in given for name in responses}}
            for name in _SHOWN:
                rows[name].append({**values, "time_ms": moment, "duration_ms": None}.get(name, labels.get(name, False)))
    arrays = [pa.array(np.array(rows[n], np.int8)) if k == _LABEL else pa.array(rows[n], k) for n, k in _SHOWN.items()]
    return pa.table(arrays, names=list(_SHOWN))


def _places(watched: Sequence[str], those: Sequence[str]) -> set[int]:
    """Where the latest of `those` stand in what was watched, both in order of time."""
    left, places = len(those) - 1, set()
    for i in range(len(watched) - 1, -1, -1):
        if left >= 0 and watched[i] == those[left]:
            places.add(i)
            left -= 1
    return places


# Open Bandit --------------------------------------------------------------------------------------------------------

_POLICIES = {"random": "random", "bts": "production"}
_CAMPAIGNS = ("all", "men", "women")
_RECOMMENDED: Mapping[str, pa.DataType] = {
    "timestamp": _TIME, "item_id": _ID, "position": _INT, "click": _LABEL,
    **{f"user_feature_{i}": _ID for i in range(4)},
}  # fmt: skip
_ITEM: Mapping[str, pa.DataType] = {
    "item_id": _ID, "item_feature_0": _NUMBER, **{f"item_feature_{i}": _ID for i in (1, 2, 3)}
}  # fmt: skip


def _obd(source: Path) -> _Sources:
    """Open Bandit Dataset: the logs of both policies, of the campaigns that are there, with the items' features.

    `session` is `random` for the random policy and `production` for Thompson sampling; `campaign` is the surface. Items
    count from 0 in each campaign, so `item_id` becomes `men-3`. There is no impression id: `impression_id` names
    policy, campaign and row. `propensity_score` is not read, for the ETL estimates its weights from the random
    sessions, nor `user-item_affinity_*`, which belong to neither the member nor the item alone.
    """
    logs: dict[tuple[str, str], Path] = {}
    items: dict[str, Path] = {}
    for campaign in _CAMPAIGNS:
        for policy in _POLICIES:
            names = (f"{policy}/{campaign}/{campaign}", f"{policy}/{campaign}", f"{policy}_{campaign}")
            if any((source / f"{name}{suffix}").exists() for name in names for suffix in SUFFIXES):
                logs[policy, campaign] = find_one(source, *names, what=f"impressions of {policy}, {campaign}")
                context = (f"{policy}/{campaign}/item_context", f"items_{campaign}")
                items[campaign] = items.get(campaign) or find_one(source, *context, what=f"items of {campaign}")
    for policy in _POLICIES:
        if not any(found == policy for found, _ in logs):
            raise DataError(
                f"{source}: no {policy}/CAMPAIGN/CAMPAIGN.csv (CAMPAIGN: {', '.join(_CAMPAIGNS)}); give the folder "
                "that holds random/ and bts/"
            )

    def blocks() -> Iterator[_Block]:
        of_item = {campaign: read_whole(path, _ITEM) for campaign, path in items.items()}
        for (policy, campaign), path in logs.items():
            first = 0
            for block in read(path, _RECOMMENDED):
                yield path, *_recommended(block, policy, campaign, first, of_item[campaign])
                first += len(block)

    return _Sources((*logs.values(), *items.values()), blocks)


def _recommended(log: pa.Table, policy: str, campaign: str, first: int, items: pa.Table) -> tuple[_Days, pa.Table]:
    number = len(log)

    def same(text: str) -> pa.ChunkedArray:
        return pa.chunked_array([pa.DictionaryArray.from_arrays(np.zeros(number, np.int32), [text]).cast(_ID)])

    columns = {
        "impression_id": _joined(same(f"{policy}-{campaign}"), pa.array(np.arange(first, first + number))),
        "time": log["timestamp"],
        "session": same(_POLICIES[policy]),
        "campaign": same(campaign),
        "position": log["position"],
        "click": log["click"],
        **{name: log[name] for name in _RECOMMENDED if name.startswith("user_feature")},
        "item_id": _joined(same(campaign), log["item_id"]),
        **_of(log["item_id"], items, "item_id"),
    }
    return _dates(pc.divide(log["timestamp"].cast(_MS), 1000).to_numpy()), pa.table(columns)


# MovieLens ----------------------------------------------------------------------------------------------------------

_RATING: Mapping[str, pa.DataType] = {"userId": _ID, "movieId": _ID, "rating": _NUMBER, "timestamp": _MS}
_MOVIE: Mapping[str, pa.DataType] = {"movieId": _ID, "title": _ID, "genres": _ID}
_LIKED = 4.0


def _movielens(source: Path) -> _Sources:
    """MovieLens ratings, each with its movie's genres and year: `liked` is 1 where the rating is 4 stars or more.

    A row is a rating, not an impression: what was shown and not rated is in no file. `liked` is therefore a chance
    among movies that a member chose to rate, and there is nothing that weights could correct. Days would be ten
    thousand folders; a folder holds a month and is named by its first day.
    """
    ratings, movies = find_one(source, "ratings", what="ratings"), find_one(source, "movies", what="movies")

    def blocks() -> Iterator[_Block]:
        listed = read_whole(movies, _MOVIE)
        year = pc.struct_field(pc.extract_regex(listed["title"], r"\((?P<year>\d{4})\)\s*$"), "year").cast(_NUMBER)
        genres = pc.split_pattern(listed["genres"], "|")
        of_movie = pa.table({"movieId": listed["movieId"], "genres": genres, "released": year})
        for block in read(ratings, _RATING):
            time_ms = pc.multiply(block["timestamp"], 1000)
            columns = {
                "impression_id": _joined(block["userId"], block["movieId"], block["timestamp"]),
                "time": time_ms,
                "userId": block["userId"],
                "movieId": block["movieId"],
                **_of(block["movieId"], of_movie, "movieId"),
                "rating": block["rating"],
                "liked": pc.greater_equal(block["rating"], _LIKED),
            }
            yield ratings, _dates(time_ms.to_numpy(), "M"), pa.table(columns)

    return _Sources((ratings, movies), blocks)


_FIND: Mapping[DatasetName, Callable[[Path], _Sources]] = {"kuairand": _kuairand, "obd": _obd, "movielens": _movielens}
assert set(_FIND) == set(get_args(DatasetName))
