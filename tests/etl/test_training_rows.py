"""Which rows the ETL writes, what they weigh and in which files they stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import SpecError
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.spec import FeedSpec
from tests import logs

CONFIG = EtlConfig(
    cluster=ClusterConfig(workers=0), row_group_rows=100
)  # in this process: a cluster takes 6 s to start


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return logs.write(tmp_path / "logs", days=2, sessions=40)


def test_a_position_without_random_sessions_weighs_one_and_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("impressions/*/*.parquet"):
        frame = pq.read_table(path).to_pandas()
        frame.loc[frame.position == 4, "session"] = "production"
        logs.change(path, session=pa.array(frame.session))
    summary = run(logs.spec(), folder, tmp_path / "etl", CONFIG)
    assert "ips: click, surface home, position 4: no random session; weight 1" in summary["warnings"]
    ips = pq.read_table(tmp_path / "etl" / "ips.parquet").to_pandas()
    at_four = ips[(ips.position == 4) & (ips.surface == "home")]
    assert (at_four.weight == 1).all()
    assert (at_four.reason == "no random session").all()
    train = pq.read_table(sorted((tmp_path / "etl" / "train").glob("*.parquet"))[0]).to_pandas()
    assert (train[train.position == 4].w_click == 1).all()


def test_as_many_files_as_asked_for_where_row_groups_allow_and_a_warning_where_not(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=3, sessions=60)
    wanted = CONFIG.model_copy(update={"min_files": 6})
    summary = run(logs.spec(), root, tmp_path / "few", wanted)
    assert "2 training files, etl.min_files is 6: row groups are not cut" in summary["warnings"][-1]
    for path in root.glob("impressions/*/*.parquet"):
        pq.write_table(pq.read_table(path), path, row_group_size=40)
    run(logs.spec(), root, tmp_path / "many", wanted)
    files = sorted((tmp_path / "many" / "train").glob("*.parquet"))
    assert len(files) >= 6
    pd.testing.assert_frame_equal(
        logs.training_rows(tmp_path / "few" / "train"), logs.training_rows(tmp_path / "many" / "train")
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_partition_whose_rows_all_repeat_others_makes_no_file(folder: Path, tmp_path: Path, workers: int) -> None:
    run(logs.spec(), folder, tmp_path / "once", CONFIG)
    path = folder / "impressions" / "day=2026-11-02" / "part-000.parquet"
    pq.write_table(pq.read_table(path), path, row_group_size=100)
    pq.write_table(pq.read_table(path).slice(0, 90), path.with_name("part-001.parquet"))
    cluster = ClusterConfig(workers=workers)
    config = CONFIG.model_copy(update={"partition_rows": 100, "cluster": cluster})
    summary = run(logs.spec(), folder, tmp_path / "again", config)
    assert summary["num_train_rows"] == 160
    assert [path.name for path in sorted((tmp_path / "again" / "train").glob("*.parquet"))] == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert (tmp_path / "again" / "train" / "_file_list.txt").read_text().split()[0] == "2"
    for name in ("train", "eval"):
        pd.testing.assert_frame_equal(
            logs.training_rows(tmp_path / "once" / name), logs.training_rows(tmp_path / "again" / name)
        )


def test_shuffled_files_hold_the_same_rows_in_another_order_that_the_seed_decides(folder: Path, tmp_path: Path) -> None:
    shuffled = CONFIG.model_copy(update={"shuffle": True})
    run(logs.spec(), folder, tmp_path / "logged", CONFIG)
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        run(logs.spec(), folder, tmp_path / name, shuffled.model_copy(update={"shuffle_seed": seed}))
    logged, one, same, other = (
        logs.training_rows(tmp_path / name / "train") for name in ("logged", "one", "same", "other")
    )
    assert one["impression_id"].tolist() == same["impression_id"].tolist()
    assert len({tuple(frame["impression_id"]) for frame in (logged, one, other)}) == 3
    for frame in (one, other):
        ordered = frame.sort_values("impression_id").reset_index(drop=True)
        pd.testing.assert_frame_equal(ordered, logged.sort_values("impression_id").reset_index(drop=True))


def test_without_ips_no_weight_is_written(folder: Path, tmp_path: Path) -> None:
    run(logs.spec(ips="none"), folder, tmp_path / "etl", CONFIG)
    schema = pq.read_schema(sorted((tmp_path / "etl" / "train").glob("*.parquet"))[0])
    assert not [name for name in schema.names if name.startswith(("w_", "cell_"))]
    assert not (tmp_path / "etl" / "ips.parquet").exists()


@pytest.mark.parametrize("ips", ["none", {"position_edges": [1, 2, 3, 4]}])
def test_sampled_rows_weigh_one_over_their_rate_and_no_random_row_is_left_out(tmp_path: Path, ips: object) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=400)
    sampling = {"rates": {"click": 0.8}, "others": 0.25}
    run(logs.spec(ips=ips), root, tmp_path / "all", CONFIG)
    summary = run(logs.spec(ips=ips, sampling=sampling), root, tmp_path / "some", CONFIG)
    everything, some = (
        logs.training_rows(tmp_path / name / "train").set_index("impression_id") for name in ("all", "some")
    )
    assert summary["num_train_rows"] == len(some) < 0.75 * len(everything)
    assert set(some.index) < set(everything.index)
    assert some["random"].sum() == everything["random"].sum()
    same = everything.loc[some.index]
    rate = np.where(same["y_like"] > 0, 1.0, np.where(same["y_click"] > 0, 0.8, 0.25))
    rate[same["random"] == 1] = 1.0
    for response in ("click", "like"):
        before = same[f"w_{response}"] if ips != "none" else 1.0
        np.testing.assert_allclose(some[f"w_{response}"], before / rate, rtol=1e-5)
        weights = pq.read_table(tmp_path / "some" / "ips.parquet").to_pandas()
        of_cell = weights[weights["response"] == response].groupby("cell")["weight"].agg(["min", "max"])
        of_cell.loc[0] = 1.0
        cells = some[f"cell_{response}"]
        np.testing.assert_allclose(some[f"w_{response}"], of_cell["max"].reindex(cells).to_numpy(), rtol=1e-5)
        assert (of_cell["max"] - of_cell["min"]).max() < 1e-12
    production = everything["random"] == 0
    total = (some["w_click"] * (some["random"] == 0)).sum() if ips == "none" else production.sum()
    assert abs(total - production.sum()) < 0.1 * production.sum()
    for name in ("ids", "snapshot", "transform"):  # what is fitted is fitted on all rows
        for path in (tmp_path / "all" / name).rglob("*.npy"):
            assert path.read_bytes() == (tmp_path / "some" / path.relative_to(tmp_path / "all")).read_bytes()
    pd.testing.assert_frame_equal(
        logs.training_rows(tmp_path / "all" / "eval").filter(regex="^(y_|post_|member_)"),
        logs.training_rows(tmp_path / "some" / "eval").filter(regex="^(y_|post_|member_)"),
    )


def test_only_sessions_with_a_response_are_trained_on_if_so_declared(tmp_path: Path) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=200)
    for path in root.glob("impressions/*/*.parquet"):
        table = pq.read_table(path)
        session = pa.array([f"s{i // 4}" for i in table["impression_id"].to_pylist()])
        pq.write_table(table.append_column("visit", session), path, row_group_size=50)  # some are cut in two
    spec = logs.spec(logs={"surface": "surface", "actions": {}, "session": "visit"})
    run(spec, root, tmp_path / "all", CONFIG)
    config = CONFIG.model_copy(update={"partition_rows": 50})
    changed = spec.model_dump() | {"sampling": {"sessions": "engaged"}}
    run(FeedSpec.parse(changed), root, tmp_path / "engaged", config)
    everything, engaged = (logs.training_rows(tmp_path / name / "train") for name in ("all", "engaged"))
    visit = everything["impression_id"] // 4
    responded = (everything[["y_click", "y_like"]].max(axis=1) > 0).groupby(visit).transform("max")
    assert 0 < responded.sum() < len(everything)
    assert engaged["impression_id"].tolist() == everything["impression_id"][responded].tolist()
    assert len(logs.training_rows(tmp_path / "engaged" / "eval")) == len(logs.training_rows(tmp_path / "all" / "eval"))
    with pytest.raises(SpecError, match=r'sampling.sessions: "engaged" needs logs.session'):
        logs.spec(sampling={"sessions": "engaged"})


def test_what_the_weights_do_is_told(folder: Path, tmp_path: Path) -> None:
    summary = run(logs.spec(ips={"position_edges": [1, 2, 3, 4], "clip": 1.2}), folder, tmp_path / "etl", CONFIG)
    train = logs.training_rows(tmp_path / "etl" / "train")
    for response in ("click", "like"):
        weights = train[train[f"cell_{response}"] > 0][f"w_{response}"].to_numpy(np.float64)
        told = summary["ips"][response]
        assert told["num_weighted_rows"] == len(weights)
        assert told["effective_sample_size"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum(), rel=1e-3)
        assert 0 < told["num_clipped_rows"] <= len(weights)


def test_histories_of_windows_and_frequencies_are_written_and_snapshot(folder: Path, tmp_path: Path) -> None:
    spec = logs.spec()
    features = [f.model_dump() for f in spec.features]
    history = next(f for f in features if f["name"] == "clicked_posts")
    features += [
        {**history, "name": "often", "order": "frequent", "max_length": 5},
        {**history, "name": "lately", "window_days": 0.1},
    ]
    root = logs.write(tmp_path / "more", days=3, sessions=200)
    run(logs.spec(features=features), root, tmp_path / "etl", CONFIG)
    train = logs.training_rows(tmp_path / "etl" / "train")
    assert train["lately"].map(len).sum() < train["clicked_posts"].map(len).sum()
    assert (train["often"].map(len) == train["often"].map(lambda ids: len(set(ids)))).all()
    assert (tmp_path / "etl" / "snapshot" / "member" / "often.npy").exists()
