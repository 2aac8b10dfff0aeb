"""The ETL on Spark, in local mode: the rows of the Dask path from the same logs, and errors as good."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from sparsefeed.errors import DataError, SpecError, ToolError
from sparsefeed.etl import pipeline, spark
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.spark_tables import Tables
from sparsefeed.etl.spec import FeedSpec
from tests import logs

# py4j leaves its sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
ALONE = EtlConfig(cluster=ClusterConfig(workers=0), row_group_rows=100)
CONFIG = EtlConfig(row_group_rows=100)
SETTINGS = {
    "spark.ui.enabled": "false",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.memory": "512m",
    # Small data: compiling well takes longer than running badly.
    "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss4m",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
    "spark.executorEnv.PYTHONWARNINGS": "ignore",
    "spark.log.level": "ERROR",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.session.timeZone": "America/New_York",  # no time may shift by it
    "spark.sql.shuffle.partitions": "2",
    "spark.ui.showConsoleProgress": "false",
}


@pytest.fixture(scope="module")
def session() -> Iterator[Any]:
    """Two cores of this machine; it has the settings of a stranger."""
    from pyspark.sql import SparkSession

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSPARK_PYTHON", sys.executable)
        builder = SparkSession.builder.master("local[2]")
        for name, value in SETTINGS.items():
            builder = builder.config(name, value)
        session = builder.getOrCreate()
        yield session
        session.stop()


def run(session: Any, spec: FeedSpec, root: Path, out: Path, config: EtlConfig = CONFIG) -> dict[str, Any]:
    impressions, actions, order = spark.read_logs(session, spec, str(root))
    return spark.run(session, spec, impressions, actions, out, config, order)


def files(out: Path) -> dict[str, bytes]:
    """What a result holds beside its rows: no path, moment or cut of rows is in it."""
    whole = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    apart = ("etl.json", "_metadata.json", "_file_list.txt")
    return {
        name: path.read_bytes()
        for name, path in whole.items()
        if path.name not in apart and not re.fullmatch(r"(train|eval)/part-.*\.parquet", name)
    }


def assert_same(one: Path, other: Path, sort: bool = False) -> None:
    """Rows, in their order, and every other file alike, to the bit; etl.json but for what names the run."""
    for name in ("train", "eval"):
        rows = [logs.training_rows(out / name) for out in (one, other)]
        if sort:
            rows = [frame.sort_values("impression_id", ignore_index=True) for frame in rows]
        assert len(rows[0]) > 0
        pd.testing.assert_frame_equal(*rows, check_exact=True)
    assert files(one) == files(other)
    summaries = [json.loads((out / "etl.json").read_text("utf-8")) for out in (one, other)]
    for summary in summaries:
        for key in ("fingerprint", "logs", "seconds"):
            assert summary.pop(key)
    assert summaries[0] == summaries[1]


def test_dask_cluster_single_process_and_spark_give_the_same_rows(
    session: Any, logs_folder: Path, etl_folder: Path, tmp_path: Path
) -> None:
    pipeline.run(logs.spec(), logs_folder, tmp_path / "alone", ALONE)
    run(session, logs.spec(), logs_folder, tmp_path / "spark")
    assert_same(tmp_path / "spark", etl_folder)
    assert_same(tmp_path / "spark", tmp_path / "alone")
    for name in ("train", "eval"):
        folder = tmp_path / "spark" / name
        told = json.loads((folder / "_metadata.json").read_text("utf-8"))["file_stats"]
        written = {path.name: pq.read_metadata(path).num_rows for path in folder.glob("*.parquet")}
        assert {file["file_name"]: file["num_rows"] for file in told} == written
    assert not list((tmp_path / "spark").glob("scratch*"))


def odd_logs(root: Path) -> Path:
    """Text ids, times without a zone, repeated rows that differ; actions late, too late, too early and nobody's."""
    logs.write(root, days=3, sessions=50)
    first, later, third = (f"day={(logs.START + timedelta(days=day)).date()}" for day in range(3))
    for path in sorted(root.glob("*/*/*.parquet")):
        ids = pq.read_table(path)["impression_id"]
        logs.change(path, impression_id=ids.cast(pa.string()))
    for path in sorted(root.glob("impressions/*/*.parquet")):
        logs.change(path, time=pq.read_table(path)["time"].cast(pa.timestamp("us")))
    for path in sorted(root.glob("impressions/*/*.parquet")):
        table = pq.read_table(path)
        visit = pa.array([f"v{int(i) // 4}" for i in table["impression_id"].to_pylist()])
        pq.write_table(table.append_column("visit", visit), path, row_group_size=30)
    path = root / "impressions" / first / "part-000.parquet"
    table = pq.read_table(path)
    again = table.take(pa.array(range(0, len(table), 5)))
    again = again.set_column(again.schema.get_field_index("post_id"), "post_id", pa.array(["p0"] * len(again)))
    pq.write_table(pa.concat_tables([table, again.slice(0, 10)]), path, row_group_size=50)
    pq.write_table(again, path.with_name("part-001.parquet"), row_group_size=7)
    ids, moments = table["impression_id"].to_pylist(), table["time"].to_pylist()
    for day, after in ((later, timedelta(days=1)), (third, timedelta(days=2)), (first, timedelta(days=-3))):
        some = ids[:60:2] if day != first else ids[100:120]
        times = [moments[ids.index(i)] + after for i in some]
        columns = {
            "impression_id": pa.array([*some, None, "nobody"]),
            "action": [*(["like", "hide"] * 30)[: len(some)], "like", "like"],
        }
        columns["time"] = pa.array([*times, times[0], times[0]], pa.timestamp("ms", "UTC"))
        pq.write_table(pa.table(columns), root / "actions" / day / "more.parquet")
    return root


def test_repeats_late_actions_wrong_clocks_text_ids_and_sampling_come_out_alike(session: Any, tmp_path: Path) -> None:
    root = odd_logs(tmp_path / "logs with spaces")
    sampling = {"rates": {"click": 0.8}, "others": 0.4, "sessions": "engaged"}
    spec = logs.spec(logs={"surface": "surface", "actions": {}, "session": "visit"}, sampling=sampling)
    cut = {"partition_rows": 110, "min_files": 2}
    alone = pipeline.run(spec, root, tmp_path / "alone", ALONE.model_copy(update=cut))
    summary = run(session, spec, root, tmp_path / "out of spark", CONFIG.model_copy(update=cut))
    assert_same(tmp_path / "out of spark", tmp_path / "alone")
    assert alone["num_train_rows"] < 300
    assert 'column "impression_id": 50 of 650 rows repeat an id; dropped' in summary["warnings"]
    parts = sorted((tmp_path / "out of spark" / "eval").glob("*.parquet"))
    assert len(parts) >= 2
    assert all(pq.read_metadata(part).num_rows <= 110 for part in parts)


def test_tables_without_files_days_of_text_and_other_types_give_the_same_rows(session: Any, tmp_path: Path) -> None:
    from pyspark.sql import functions as F

    root = logs.write(tmp_path / "logs", days=3, sessions=20)
    window = {"since": "2026-11-03", "eval_days": 1, "shuffle": True}
    spec = logs.spec(responses=[{"name": "click", "column": "click"}, {"name": "like"}, {"name": "comment"}])
    pipeline.run(spec, root, tmp_path / "alone", EtlConfig.model_validate({**window, "cluster": {"workers": 0}}))
    impressions, actions, _ = spark.read_logs(session, spec, str(root))
    text = F.date_format("day", "yyyy-MM-dd")
    impressions = impressions.select("*", F.unix_millis("time").alias("ms")).drop("time", "_file", "_row")
    impressions = impressions.withColumnRenamed("ms", "time").withColumn("day", text)
    impressions = impressions.withColumn("click", F.col("click").cast("int")).repartition(3, "post_id")
    actions = actions.withColumn("day", text).withColumn("impression_id", F.col("impression_id").cast("int"))
    config = EtlConfig.model_validate({**window, "cluster": {"workers": 7}})
    summary = spark.run(session, spec, impressions, actions, tmp_path / "spark", config)
    assert summary["warnings"].pop().startswith("etl.cluster: means nothing on Spark")
    (tmp_path / "spark" / "etl.json").write_text(json.dumps(summary))
    assert_same(tmp_path / "spark", tmp_path / "alone", sort=True)


def test_an_error_in_a_row_is_ours_names_the_day_and_leaves_the_old_result_and_the_settings(
    session: Any, tmp_path: Path
) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=20)
    (tmp_path / "etl").mkdir()
    (tmp_path / "etl" / "etl.json").write_text('{"old": true}')
    logs.change(root / "impressions" / "day=2026-11-02" / "part-000.parquet", click=pa.array([0] * 5 + [2] + [1] * 74))
    logs.change(root / "impressions" / "day=2026-11-03" / "part-000.parquet", click=pa.array([1] * 80))
    before = session.conf.get("spark.sql.files.maxPartitionBytes")
    with pytest.raises(
        DataError, match=r'^impressions, day 2026-11-02: label "click" is 2.0 in row 5; it must be 0 or 1'
    ):
        run(session, logs.spec(), root, tmp_path / "etl")
    assert json.loads((tmp_path / "etl" / "etl.json").read_text()) == {"old": True}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["etl", "logs"]
    assert session.conf.get("spark.sql.files.maxPartitionBytes") == before
    assert session.conf.get("spark.sql.files.openCostInBytes") == "4194304b"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "post_id"}, r'impressions: column "post_id" is missing; allowed: .*; mend'),
        ({"drop": "day"}, r'impressions: column "day" is missing'),
        ({"cast": ("click", "string")}, r'impressions: column "click" is string; it must be bool, or 0 and 1; cast it'),
        (
            {"cast": ("post_length", "decimal(9,2)")},
            r'"post_length" is decimal\(9,2\); it must be a number type; cast it',
        ),
        (
            {"cast": ("impression_id", "string")},
            r"ids of impressions are string in the impressions, bigint in the actions",
        ),
        ({"no actions": True}, r"actions: the spec declares logs.actions, but got None; give a DataFrame"),
        ({"spec": {"logs": {}, "responses": [{"name": "click", "column": "click"}]}}, r"actions: got a DataFrame, but"),
        ({"order": ("_place_in_file",)}, r'impressions: column "_place_in_file" is missing'),
    ],
)
def test_tables_that_break_the_contract_are_refused_before_any_job(
    session: Any, logs_folder: Path, change: dict[str, Any], message: str
) -> None:
    impressions, actions, _ = spark.read_logs(session, logs.spec(), str(logs_folder))
    impressions = impressions.drop(change.get("drop", ""))
    if "cast" in change:
        name, kind = change["cast"]
        impressions = impressions.withColumn(name, impressions[name].cast(kind))
    spec = logs.spec(**change.get("spec", {})) if "spec" not in change else without_likes(change["spec"])
    with pytest.raises(DataError, match=message):
        Tables(spec, impressions, None if "no actions" in change else actions, change.get("order", ()))


def without_likes(changes: dict[str, Any]) -> FeedSpec:
    features = [feature.model_dump() for feature in logs.spec().features if feature.name != "liked_creators"]
    return logs.spec(features=features, **changes)


@pytest.mark.parametrize(
    ("config", "columns", "message"),
    [
        ({"since": "2027-01-01"}, {}, r"none from 2027-01-01 to the last; there are days 2026-11-02 to 2026-11-04"),
        ({"eval_days": 3}, {}, r"impressions: 3 days of impressions, eval_days = 3: none is left to train on"),
        ({"on_bad_file": "skip"}, {}, r'on_bad_file: got "skip", but .* say spark.sql.files.ignoreCorruptFiles'),
        (
            {},
            {"impression_id": "nullif(impression_id, 5)"},
            r'day 2026-11-02: column "impression_id" has 1 nulls of 480 rows',
        ),
        (
            {},
            {"day": "'monday'"},
            r'impressions: column "day" is null, or no date, in 1440 rows; write it as YYYY-MM-DD',
        ),
    ],
)
def test_days_nulls_and_settings_that_cannot_be_are_told(
    session: Any, logs_folder: Path, tmp_path: Path, config: dict[str, Any], columns: dict[str, str], message: str
) -> None:
    from pyspark.sql import functions as F

    impressions, actions, _ = spark.read_logs(session, logs.spec(), str(logs_folder))
    changed = impressions.withColumns({name: F.expr(value) for name, value in columns.items()})
    with pytest.raises(DataError, match=message):
        spark.run(session, logs.spec(), changed, actions, tmp_path / "etl", EtlConfig.model_validate(config))
    assert not (tmp_path / "etl").exists()


def test_a_feed_without_actions_and_weights_runs_from_the_command_line(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = logs.write(tmp_path / "logs", days=2, sessions=20)
    spec = without_likes({"logs": {}, "responses": [{"name": "click", "column": "click"}], "ips": "none"})
    pipeline.run(spec, root, tmp_path / "alone", ALONE)
    recipe = tmp_path / "feed.yaml"
    recipe.write_text(yaml.safe_dump({"feed": json.loads(spec.dump()), "etl": {"row_group_rows": 100}}))
    arguments = ["--spec", str(recipe), "--logs", str(root), "--out", str(tmp_path / "new" / "etl")]
    monkeypatch.setattr(sys, "argv", ["spark", *arguments])
    with pytest.raises(SystemExit) as ended:
        spark.main()
    assert not ended.value.code
    assert "80 rows to train on, 80 to evaluate" in capsys.readouterr().out
    assert_same(tmp_path / "new" / "etl", tmp_path / "alone")
    monkeypatch.setattr(sys, "argv", ["spark", *arguments[:2], "--logs", str(tmp_path), *arguments[4:]])
    with pytest.raises(SystemExit, match="1"):
        spark.main()
    assert re.search(r"DataError: .*impressions: Spark cannot read it \(PATH_NOT_FOUND\)", capsys.readouterr().err)


def test_a_spec_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "feed.yaml"
    path.write_text("tables: []")
    with pytest.raises(SpecError, match=r"feed.yaml: has no `feed`; give a recipe, or the spec.json of an earlier"):
        spark._declared(path)
    path.write_text("feed: {}")
    with pytest.raises(SpecError, match=r"feed.yaml: feed: name: missing; it must be given"):
        spark._declared(path)
    saved = tmp_path / "spec.json"
    saved.write_text(logs.spec().dump())
    assert spark._declared(saved) == (logs.spec(), EtlConfig())


def test_what_is_missing_is_named_with_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(
        ToolError, match=r"Spark needs Java, and there is no .*/bin/java; install .*Java 17 .*JAVA_HOME"
    ):
        spark.open_session()
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(ToolError, match=r"pyspark cannot be imported .*sparsefeed\[merlin,spark\]"):
        spark.open_session()


def test_nothing_imports_pyspark_before_it_is_used() -> None:
    source = Path(spark.__file__).parents[1]
    using = {
        path.name: path.read_text("utf-8") for path in source.rglob("*.py") if "pyspark" in path.read_text("utf-8")
    }
    assert set(using) == {"spark.py", "spark_tables.py"}
    assert not [name for name, text in using.items() if re.search(r"^(import|from) pyspark", text, re.MULTILINE)]
