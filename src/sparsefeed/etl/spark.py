"""The ETL on Spark, for logs that live there: the result of `pipeline.run` from two DataFrames.

Spark drops repeats and joins labels (spark_tables); the operators of ops/ then count, weigh and transform on its
executors, a partition as Arrow batches at a time. What is written is the contract's (docs/contracts/training.md), the
same rows that Dask writes from the same logs. Nothing else imports this module, and it imports pyspark when it is used.

    spark-submit --master ... spark.py --spec spec.json --logs hdfs:///feed/logs --out /shared/feed/etl

Executors need this package with its extra `merlin`, and `--out` under the same path on a disk that all of them reach.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import typer
import yaml

from sparsefeed.errors import DataError, SparsefeedError, SpecError, ToolError
from sparsefeed.etl.cluster import computes_with
from sparsefeed.etl.config import ClusterConfig, EtlConfig
from sparsefeed.etl.hugectr_view import HugectrView, check_sayable
from sparsefeed.etl.impressions import Frames, ReadImpressions, columns_of
from sparsefeed.etl.logs import Partition, Piece
from sparsefeed.etl.parquet import milliseconds
from sparsefeed.etl.pipeline import fit_and_write, repeats_note
from sparsefeed.etl.result import FORMAT, finished, publish
from sparsefeed.etl.spark_tables import PLACE, Laid, Tables, acted_columns, settings
from sparsefeed.etl.spec import FeedSpec, validate
from sparsefeed.etl.stored_file import StoredFile
from sparsefeed.etl.training_data import WriteFile, describe, file_writer
from sparsefeed.etl.workflow import FeedWorkflow
from sparsefeed.progress import Progress, silent

__all__ = ["SparkImpressions", "main", "open_session", "read_logs", "run"]

Result = TypeVar("Result")
_HOW = "install the extra `spark` (pip install 'sparsefeed[merlin,spark]') and Java 17 (openjdk-17-jre-headless)"
# A file is never cut, nor read by a task together with another: 2^40 bytes is more than any has.
_WHOLE_FILES = {f"spark.sql.files.{name}": str(1 << 40) for name in ("maxPartitionBytes", "openCostInBytes")}


def run(
    spark: Any,
    spec: FeedSpec,
    impressions: Any,
    actions: Any | None,
    out: Path,
    config: EtlConfig | None = None,
    order: Sequence[str] = (),
    progress: Progress = silent,
) -> dict[str, Any]:
    """DataFrames -> `out` (docs/contracts/training.md); returns the content of etl.json.

    Whatever fails, `out` is the old result or none. It is made anew at each call. The caller's session keeps its
    settings.

    Args:
        spark: a SparkSession.
        spec: the declaration.
        impressions: a DataFrame with the columns of docs/contracts/logs.md and `day`.
        actions: likewise; None if the spec declares none.
        out: a path on a disk that all executors reach under the same name.
        config: of it `cluster` means nothing here.
        order: columns that say which of repeated rows is the first, and how rows are ordered in a day; by default time.
        progress: is told the steps.

    Raises:
        SpecError: HugeCTR's view of what HugeCTR cannot say.
        DataError: tables or rows that break the contract, or a setting that Spark has in its own way.
    """
    config, out = config or EtlConfig(), out.absolute()
    notes = []
    if config.on_bad_file == "skip":
        raise DataError(
            'etl.on_bad_file: got "skip", but files are read by Spark; say spark.sql.files.ignoreCorruptFiles'
        )
    if config.view == "hugectr":
        check_sayable(spec)
    if config.cluster != ClusterConfig():
        notes.append("etl.cluster: means nothing on Spark; say to spark-submit how many executors there are")
    finished(out)
    tables = Tables(spec, impressions, actions, order)

    def make(folder: Path) -> dict[str, Any]:
        started = time.perf_counter()
        progress(0, 4, "dropping repeated impressions, joining actions")
        laid = tables.lay_down(config, folder / "scratch" / "impressions")
        read = SparkImpressions(spec, columns_of(spec), spark=spark, laid=laid)
        notes.extend(repeats_note(spec, laid.num_logged - sum(p.num_rows for p in laid.partitions), laid.num_logged))
        write = partial(_write, config)
        with computes_with(partial(_compute, spark)):
            made = fit_and_write(spec, read, laid.partitions, laid.text_impressions, write, folder, config, progress)
        made["warnings"] += notes
        head = {"format": FORMAT, "fingerprint": _fingerprint(spec, config, laid), "previous": None, "logs": "Spark"}
        return {**head, **made, "seconds": round(time.perf_counter() - started, 2), "skipped": []}

    out.parent.mkdir(parents=True, exist_ok=True)
    summary = publish(out, make)
    progress(4, 4, f"{summary['num_train_rows']:,} rows to train on, {summary['num_eval_rows']:,} to evaluate")
    return summary


def read_logs(spark: Any, spec: FeedSpec, logs: str) -> tuple[Any, Any | None, tuple[str, ...]]:
    """Impressions, actions and their order, from a folder that is laid out as docs/contracts/logs.md says.

    Args:
        spark: a SparkSession.
        spec: the declaration.
        logs: a path or address that Spark reads.

    Raises:
        DataError: there is no such folder.
    """
    from pyspark.errors import AnalysisException
    from pyspark.sql import functions as F

    def table(kind: str) -> Any:
        try:
            return spark.read.parquet(f"{logs}/{kind}")
        except AnalysisException as error:
            raise DataError(
                f"{logs}/{kind}: Spark cannot read it ({error.getErrorClass() or error}); "
                "it must hold day=YYYY-MM-DD/*.parquet"
            ) from error

    place = {"_file": "_metadata.file_name", "_row": "_metadata.row_index"}
    impressions = table("impressions").select("*", *[F.col(column).alias(name) for name, column in place.items()])
    return impressions, table("actions") if spec.logs.actions else None, tuple(place)


@dataclass(frozen=True)
class SparkImpressions(ReadImpressions):
    """Reads impressions that Spark laid down, with Spark, and works on them where it reads them.

    Attributes:
        spark: the session.
        laid: what it reads.
    """

    spark: Any = None
    laid: Laid | None = None

    def over(
        self, partitions: Sequence[Partition], work: Callable[[Frames], Result], most_per_task: int = 1
    ) -> list[Result]:
        """Give the numbered frame of each partition to `work`, on the executors; results in order.

        Spark has a task for each, whatever `most_per_task` allows.
        """
        assert self.laid is not None
        acted = acted_columns(self.spec) if self.joins else {}
        plain = ReadImpressions(self.spec, self.columns, sample=self.sample, engaged=self.engaged)
        task = _Task(plain, acted, tuple(partitions), work)
        folders = sorted({f"file://{Path(partition.pieces[0].path).parent}" for partition in partitions})
        laid = self.spark.read.schema(self.laid.schema).parquet(*folders)
        with settings(self.spark, _WHOLE_FILES):
            rows = laid.select(*[f"`{name}`" for name in (*self.raw_columns(), *acted.values(), PLACE)])
            return _results(rows, task, len(partitions))


@dataclass(frozen=True)
class _Task:
    """What an executor does with the rows of one or more files, each whole.

    Attributes:
        read: makes frames of rows.
        acted: by response, the column with the time of its first action.
        partitions: of all files that are read.
        work: on each frame.
    """

    read: ReadImpressions
    acted: dict[str, str]
    partitions: tuple[Partition, ...]
    work: Callable[[Frames], Any]

    def __call__(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Outcomes by number, pickled."""
        filled = [batch for batch in batches if batch.num_rows]
        if not filled:
            return
        _one_thread()
        rows = pa.Table.from_batches(filled)
        starts = np.array([partition.pieces[0].first_row for partition in self.partitions])
        numbers = np.searchsorted(starts, rows[PLACE].to_numpy(), side="right") - 1
        for number in np.unique(numbers).tolist():
            at = np.flatnonzero(numbers == number)
            yield _outcome(number, partial(self._worked, rows.slice(at[0], len(at)), number))

    def _worked(self, rows: pa.Table, number: int) -> Any:
        partition = self.partitions[number]
        place = rows[PLACE].to_numpy()
        first = partition.pieces[0].first_row
        if len(place) != partition.num_rows or place[0] != first or not (np.diff(place) == 1).all():
            raise DataError(
                f"{partition.pieces[0].path}: a task read {len(place)} of {partition.num_rows} rows, or in another "
                f"order; leave {', '.join(_WHOLE_FILES)} as this job sets them"
            )
        rows = rows.combine_chunks()
        acted = {response: _milliseconds(rows[name]) for response, name in self.acted.items()}
        before = sum(p.num_rows for p in self.partitions[:number] if p.day == partition.day)
        # No file: rows count as they lie, without repeats.
        where = Piece(StoredFile(f"impressions, day {partition.day}", None, None), (), before)
        return self.work([(number, self.read.of_table(rows, where, acted))])


def _milliseconds(moments: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Times in ms, 0 for null."""
    return milliseconds(pc.fill_null(moments, pa.scalar(0, moments.type)))


def _one_thread() -> None:
    """Spark has a task per core already."""
    import numba

    numba.set_num_threads(1)


def _compute(spark: Any, calls: Sequence[Callable[[], Any]]) -> list[Any]:
    """Make calls on the executors; results in order."""

    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch.column("id").to_pylist():
                yield _outcome(number, calls[number])

    # Not an RDD, whose tasks have Python processes of their own that would import everything once more.
    return _results(spark.range(0, len(calls), 1, len(calls)), task, len(calls)) if calls else []


def _outcome(number: int, call: Callable[[], Any]) -> pa.RecordBatch:
    """Whether a call went well, and the result; else the error of ours, which Spark would make a text of."""
    outcome: tuple[bool, Any]
    try:
        outcome = True, call()
    except SparsefeedError as error:
        outcome = False, error
    return pa.record_batch({"number": [number], "outcome": [pickle.dumps(outcome)]})


def _results(
    rows: Any, task: Callable[[Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]], num_results: int
) -> list[Any]:
    """Do a task on rows; what it gave by number, or the first error."""

    def work(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:  # Spark takes nothing but functions
        return task(batches)

    done = rows.mapInArrow(work, "number long, outcome binary").collect()
    outcomes = {row["number"]: pickle.loads(row["outcome"]) for row in done}
    if sorted(outcomes) != list(range(num_results)):
        raise DataError(
            f"{len(outcomes)} of {num_results} partitions were read; the result must be on a disk that all executors "
            "reach"
        )
    found = [outcomes[number] for number in range(num_results)]
    for well, value in found:
        if not well:
            raise value
    return [value for _, value in found]


def _write(
    config: EtlConfig,
    feed: FeedWorkflow,
    read: ReadImpressions,
    partitions: Sequence[Partition],
    folder: Path,
    view: HugectrView | None,
) -> int:
    """Transform and write partitions, where they are read."""
    seed = config.shuffle_seed if config.shuffles else None
    write = file_writer(feed.schema, feed.spec, folder, config.row_group_rows, seed, view)
    files = read.over(partitions, partial(_transform_and_write, feed, write))
    return describe(files, feed.schema, feed.spec, folder, view)


def _transform_and_write(feed: FeedWorkflow, write: WriteFile, frames: Frames) -> tuple[str, int]:
    ((number, part),) = frames
    return write(feed.transform_frame(part), number)


def _fingerprint(spec: FeedSpec, config: EtlConfig, laid: Laid) -> str:
    """Digest of everything the result depends on: the spec, the split and the rows."""
    written = config.model_dump(mode="json", exclude={"cluster", "view"})
    text = json.dumps([spec.dump(), written, laid.digest, laid.num_logged])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_session() -> Any:
    """The SparkSession that spark-submit made, or a new one.

    Raises:
        ToolError: pyspark or Java is not there, with what to install.
    """
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ToolError(f"pyspark cannot be imported ({error}); {_HOW}") from error
    submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    if not submitted:  # workers are this machine's; spark-submit says for itself
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    java = Path(os.environ["JAVA_HOME"]) / "bin" / "java" if "JAVA_HOME" in os.environ else Path("java")
    if not submitted and shutil.which(java) is None:
        raise ToolError(f"Spark needs Java, and there is no {java}; {_HOW}, or set JAVA_HOME")
    try:
        # Merlin's imports warn of what is not used.
        named = SparkSession.builder.appName("sparsefeed etl").config("spark.executorEnv.PYTHONWARNINGS", "ignore")
        return named.getOrCreate()
    except PySparkRuntimeError as error:
        raise ToolError(f"Spark does not start ({error}); {_HOW}") from error


def _declared(path: Path) -> tuple[FeedSpec, EtlConfig]:
    """The spec and the settings of a spec.json, or of a recipe's `feed` and `etl`."""
    if path.suffix not in (".yaml", ".yml"):
        return FeedSpec.load(path), EtlConfig()
    try:
        value = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(value, dict) or "feed" not in value:
        raise SpecError(f"{path}: has no `feed`; give a recipe, or the spec.json of an earlier result")
    spec = validate(FeedSpec, value["feed"], where=f"{path}: feed")
    return spec, validate(EtlConfig, value.get("etl") or {}, where=f"{path}: etl")


def _etl(
    spec: Annotated[Path, typer.Option(help="A recipe (.yaml: `feed` and `etl` are read), or a spec.json.")],
    logs: Annotated[str, typer.Option(help="Folder with impressions/ and actions/, as Spark reaches it.")],
    out: Annotated[Path, typer.Option(help="Folder of the result, on a disk that all executors reach.")],
) -> None:
    """Turn logs that live in Spark into training parquet."""
    declared, config = _declared(spec)
    spark = open_session()
    impressions, actions, order = read_logs(spark, declared, logs)
    summary = run(spark, declared, impressions, actions, out, config, order)
    for warning in summary["warnings"]:
        print(f"warning: {warning}")
    print(f"{summary['num_train_rows']:,} rows to train on, {summary['num_eval_rows']:,} to evaluate: {out}")


def main() -> None:
    """The command line; an error of ours is one message and status 1."""
    try:
        typer.run(_etl)
    except SparsefeedError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    # Under its own name: what __main__ defines would travel to the executors by value.
    from sparsefeed.etl.spark import main as run_main

    run_main()
