"""What a trainer meets on bad days: full disks, foreign checkpoints, tables of one row, batches of one."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import TrainError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import ModelConfig, TrainConfig
from sparsefeed.models.difference import difference
from sparsefeed.models.torchrec.checkpoint import latest, load_tables
from sparsefeed.models.torchrec.train import train
from tests.models.conftest import CAPACITY_ROWS, SPEC, Written

MODEL = ModelConfig(hidden=(4,), cross_layers=1, cross_rank=2)
CONFIG = TrainConfig(processes=2, batch_size=128, log_every=1, checkpoint_every_s=1e-9)


def test_a_full_disk_leaves_the_last_checkpoint_whole(etl: Written, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", small], capture_output=True, check=False
    ).returncode:
        pytest.skip("may not mount a small disk here")
    try:
        first = train(etl.spec, MODEL, CONFIG, etl.path, small / "run")
        before = {p.relative_to(first.checkpoint): p.read_bytes() for p in first.checkpoint.rglob("*") if p.is_file()}
        (small / "fill").write_bytes(b"x" * (shutil.disk_usage(small).free - 20_000))
        longer = CONFIG.model_copy(update={"epochs": 2})
        with pytest.raises(TrainError, match=r"No space left on device"):
            train(etl.spec, MODEL, longer, etl.path, small / "more", start_from=first.checkpoint)
        assert latest(small / "more") is None
        after = {p.relative_to(first.checkpoint): p.read_bytes() for p in first.checkpoint.rglob("*") if p.is_file()}
        assert after == before
        (small / "fill").unlink()
        assert (
            train(etl.spec, MODEL, longer, etl.path, small / "more", resume=True, start_from=first.checkpoint).step
            == 16
        )
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_checkpoint_of_another_spec_model_or_etl_is_refused_with_the_difference(etl: Written, tmp_path: Path) -> None:
    one = CONFIG.model_copy(update={"processes": 1})
    first = train(etl.spec, MODEL, one, etl.path, tmp_path / "first")
    wider = [{**table, "dim": 16 if table["name"] == "post" else table["dim"]} for table in SPEC["tables"]]
    spec = FeedSpec.parse(SPEC | {"tables": wider})
    with pytest.raises(TrainError, match=r"another spec \(tables\.post\.dim: 8 there, 16 asked for\)"):
        train(spec, MODEL, one, etl.path, tmp_path / "second", start_from=first.checkpoint)
    with pytest.raises(TrainError, match=r"another spec \(tables\.post\.dim: 8 there, 16 asked for\)"):
        train(spec, MODEL, one, etl.path, tmp_path / "first", resume=True)
    other = MODEL.model_copy(update={"cross_rank": 3})
    with pytest.raises(TrainError, match=r"another model \(cross_rank: 2 there, 3 asked for\)"):
        train(etl.spec, other, one, etl.path, tmp_path / "second", start_from=first.checkpoint)
    data = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    (data / "etl.json").write_text(json.dumps(json.loads((data / "etl.json").read_text()) | {"fingerprint": "f00"}))
    with pytest.raises(TrainError, match=r"holds run f00, whose ids have other rows"):
        train(etl.spec, MODEL, one, data, tmp_path / "second", start_from=first.checkpoint)
    assert not (tmp_path / "second").exists()


def test_differences_are_told_by_name_and_not_without_end() -> None:
    assert difference({"a": 1, "b": 2}, {"a": 1, "b": 3}) == "b: 2 there, 3 asked for"
    assert difference([{"name": "x", "n": 1}], [{"name": "x", "n": 2}]) == "x.n: 1 there, 2 asked for"
    assert difference(1, 2) == "1 there, 2 asked for"
    assert difference({str(i): i for i in range(9)}, {}).endswith("3: 3 there, nothing asked for, and 5 more")


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "data_parallel"])
def test_a_table_of_one_row_and_lists_that_are_empty_are_trained(etl: Written, tmp_path: Path, sharding: str) -> None:
    """Fewer rows than ranks: some hold none."""
    data = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    capacities = CAPACITY_ROWS | {"member": 2}
    (data / "etl.json").write_text(json.dumps({"capacity_rows": capacities, "num_rows": capacities}))
    for file in (data / "train").iterdir():
        table = pq.read_table(file)
        ones = pa.array(np.ones(len(table), np.int64))
        table = table.set_column(table.column_names.index("member_id"), "member_id", ones)
        nothing = pa.array([[]] * len(table), pa.list_(pa.int64()))
        for name in ("hashtags", "topics"):
            table = table.set_column(table.column_names.index(name), name, nothing)
        pq.write_table(table, file)
    asked = dict.fromkeys(("member", "hashtag"), sharding)
    config = CONFIG.model_copy(
        update={"processes": 3, "batch_size": 384, "sharding": asked, "checkpoint_every_s": 60.0}
    )
    result = train(etl.spec, MODEL, config, data, tmp_path / "run")
    tables = load_tables(result.checkpoint)
    assert tables["member"].shape == (2, 4)
    assert (tables["member"][0] == 0).all()
    assert np.isfinite(tables["member"]).all()


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 1), (2, 2), (2, 4096)])
def test_batches_of_one_row_a_rank_and_of_more_than_there_are(
    write_etl, tmp_path: Path, processes: int, batch_size: int
) -> None:
    written = write_etl(tmp_path / "etl", train_rows=9, eval_rows=4, num_files=1, group_rows=4)
    config = CONFIG.model_copy(update={"processes": processes, "batch_size": batch_size, "checkpoint_every_s": 60.0})
    result = train(written.spec, MODEL, config, written.path, tmp_path / "run")
    assert result.step == -(-(9 // processes) * processes // batch_size)
    assert all(np.isfinite(values).all() for values in load_tables(result.checkpoint).values())
