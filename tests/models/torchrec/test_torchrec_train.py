"""Whole trainings in processes of their own; the fixtures are shared, since each start takes seconds."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparsefeed.errors import BadFileError, DataError, SpecError, TrainError
from sparsefeed.etl.spec import validate
from sparsefeed.models import metrics
from sparsefeed.models.config import ModelConfig, TrainConfig, Validation
from sparsefeed.models.torchrec.checkpoint import Checkpoint, latest, load_tables
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.models.torchrec.train import TrainResult, train

MODEL = ModelConfig(hidden=(8,), cross_layers=1, cross_rank=4)
# A batch of all 1024 rows: every number of ranks then trains on the same global batches.
WHOLE = TrainConfig(processes=1, batch_size=1024, epochs=6, log_every=1, table_learning_rate=0.2)
# 4 batches and a smaller fifth per epoch, and a checkpoint at every log.
MANY = TrainConfig(
    processes=2,
    batch_size=240,
    epochs=6,
    log_every=2,
    table_learning_rate=0.2,
    checkpoint_every_s=1e-9,
    shuffle_rows=240,
)


def curve(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("samples_per_s", None)
    return lines


@pytest.fixture(scope="module")
def many(etl, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    out = tmp_path_factory.mktemp("many") / "run"
    return out, train(etl.spec, MODEL, MANY, etl.path, out)


@pytest.fixture(scope="module")
def one(etl, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    out = tmp_path_factory.mktemp("one") / "run"
    return out, train(etl.spec, MODEL, WHOLE, etl.path, out)


def test_two_ranks_train_as_one_does(etl, one: tuple[Path, TrainResult], tmp_path: Path) -> None:
    two = train(etl.spec, MODEL, WHOLE.model_copy(update={"processes": 2}), etl.path, tmp_path)
    assert [len(list((out / "logs").iterdir())) for out in (one[0], tmp_path)] == [1, 2]
    expected, got = ([list(line["loss"].values()) for line in curve(out)] for out in (one[0], tmp_path))
    assert len(expected) == 6
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert expected[-1] < expected[0]
    logits = [Scorer(etl.spec, result.checkpoint).score(etl.path / "eval") for result in (one[1], two)]
    np.testing.assert_allclose(logits[1], logits[0], atol=1e-3)


def test_the_result_and_the_curve_tell_what_was_trained(etl, many: tuple[Path, TrainResult]) -> None:
    out, result = many
    assert (result.step, result.num_samples) == (30, 6 * 1024)
    assert result.checkpoint == latest(out) == out / "checkpoints" / "step-30"
    assert result.samples_per_s > 0
    lines = curve(out)
    assert [line["step"] for line in lines] == list(range(2, 31, 2))
    assert lines[0]["samples"] == 480
    assert lines[-1] == {"step": 30, "samples": 6144, "loss": result.loss}
    assert list(result.loss) == ["click", "like"]
    assert Checkpoint.read(result.checkpoint).config == MANY.model_dump(mode="json")


def test_training_finds_the_planted_signal_of_the_posts(etl, tmp_path: Path) -> None:
    """It is the posts' alone: of 8 rows each, products of members and posts would learn the noise."""
    alone = MODEL.model_copy(update={"interactions": False})
    logits = Scorer(etl.spec, train(etl.spec, alone, MANY, etl.path, tmp_path).checkpoint).score(etl.path / "eval")
    for r in range(2):
        # 8 rows per post: far from the ceiling, farther from chance.
        assert metrics.auc(etl.truth["eval"][:, r], logits[:, r]) > 0.65


def test_row_zero_of_every_table_stays_zero(many: tuple[Path, TrainResult]) -> None:
    for values in load_tables(many[1].checkpoint).values():
        assert (values[0] == 0).all()
        assert (values[1:] != 0).any(axis=1).all()


def test_a_run_broken_off_and_resumed_is_the_run_never_broken_off(
    etl, many: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        assert total == 30
        assert re.fullmatch(r"training, loss 0\.\d{4}, [\d,]+ samples/s", what)
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(etl.spec, MODEL, MANY, etl.path, tmp_path, interrupt)
    last = latest(tmp_path)
    assert last is not None
    assert Checkpoint.read(last).step < 30
    with pytest.raises(TrainError, match="already holds a training run"):
        train(etl.spec, MODEL, MANY, etl.path, tmp_path)
    with pytest.raises(TrainError, match="another configuration"):
        train(etl.spec, MODEL, MANY.model_copy(update={"seed": 1}), etl.path, tmp_path, resume=True)
    result = train(etl.spec, MODEL, MANY, etl.path, tmp_path, resume=True)
    assert curve(tmp_path) == curve(many[0])
    expected = load_tables(many[1].checkpoint)
    for name, values in load_tables(result.checkpoint).items():
        np.testing.assert_array_equal(values, expected[name])


def test_resuming_a_finished_run_trains_nothing(etl, one: tuple[Path, TrainResult], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(one[0], tmp_path / "copy"))
    again = train(etl.spec, MODEL, WHOLE, etl.path, copy, resume=True)
    assert (again.step, again.loss, again.samples_per_s) == (6, one[1].loss, 0)
    assert curve(copy) == curve(one[0])


def test_a_refresh_begins_where_the_earlier_run_ended(etl, many: tuple[Path, TrainResult], tmp_path: Path) -> None:
    one_epoch = MANY.model_copy(update={"epochs": 1, "processes": 1})
    refreshed = train(etl.spec, MODEL, one_epoch, etl.path, tmp_path, start_from=many[1].checkpoint)
    assert refreshed.step == 5
    assert curve(tmp_path)[0]["loss"]["click"] < curve(many[0])[0]["loss"]["click"] - 0.02


def test_tables_that_begin_anew_leave_nothing_of_the_epochs_before(etl, tmp_path: Path) -> None:
    """The dense model stands still here, so that an epoch of one batch is the one before it over again."""
    sharding = {"member": "data_parallel", "post": "column_wise", "hashtag": "row_wise"}
    still = {"dense_learning_rate": 1e-30, "processes": 2, "sharding": sharding, "warmup": 0.0}
    once = WHOLE.model_copy(update=still | {"epochs": 1})
    anew = WHOLE.model_copy(update=still | {"epochs": 3, "reset_tables": True})
    results = [train(etl.spec, MODEL, c, etl.path, tmp_path / str(c.epochs)) for c in (once, anew)]
    first, second = (load_tables(result.checkpoint) for result in results)
    for name, rows in first.items():
        np.testing.assert_allclose(second[name], rows, atol=1e-5)
    losses = [line["loss"]["click"] for line in curve(tmp_path / "3")]
    np.testing.assert_allclose(losses, losses[0], atol=1e-6)


def test_a_run_that_was_cut_between_epochs_has_its_tables_begin_anew_all_the_same(etl, tmp_path: Path) -> None:
    config = MANY.model_copy(update={"epochs": 2, "reset_tables": True, "processes": 1, "log_every": 5})
    whole = train(etl.spec, MODEL, config, etl.path, tmp_path / "whole")
    cut = Path(shutil.copytree(tmp_path / "whole", tmp_path / "cut"))
    shutil.rmtree(cut / "checkpoints" / "step-10")
    last = latest(cut)
    assert last is not None
    assert last.name == "step-5", "of the end of the first epoch"
    resumed = train(etl.spec, MODEL, config, etl.path, cut, resume=True)
    assert curve(cut) == curve(tmp_path / "whole")
    wanted, got = load_tables(whole.checkpoint), load_tables(resumed.checkpoint)
    for name, rows in wanted.items():
        np.testing.assert_array_equal(got[name], rows)


def test_an_earlier_model_is_not_forgotten_after_the_first_epoch(
    etl, many: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    anew = MANY.model_copy(update={"reset_tables": True})
    with pytest.raises(TrainError, match=r"train\.epochs: got 6 with reset_tables, which forgets .*step-30"):
        train(etl.spec, MODEL, anew, etl.path, tmp_path, start_from=many[1].checkpoint)
    assert (anew.of_a_day.epochs, MANY.of_a_day.epochs) == (1, 6)
    watched = {"validation": {"rows": 100}}  # as the gate of a refresh has it
    assert validate(TrainConfig, anew.of_a_day.model_dump() | watched, where="train").validation
    with pytest.raises(SpecError, match=r"reset_tables: cannot go with validation"):
        validate(TrainConfig, anew.model_dump() | watched, where="train")


def children() -> list[int]:
    found = []
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            if b"sparsefeed.models.torchrec.rank" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return sorted(found)


def test_a_killed_rank_is_one_error_and_leaves_no_process(etl, tmp_path: Path) -> None:
    def kill(done: int, total: int, what: str) -> None:
        if done == 2:
            os.kill(children()[1], signal.SIGKILL)

    with pytest.raises(TrainError, match=r"rank 1 was killed by signal 9"):
        train(etl.spec, MODEL, MANY.model_copy(update={"epochs": 200}), etl.path, tmp_path, kill)
    assert not children()


def change_column(path: Path, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    table = pq.read_table(path)
    index = table.column_names.index(name)
    pq.write_table(table.set_column(index, name, pa.array(change(table[name].to_numpy().copy()))), path)


def test_a_number_that_is_none_names_file_and_row(etl, tmp_path: Path) -> None:
    data = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    change_column(
        data / "train" / "part-1.parquet", "age", lambda age: np.where(np.arange(len(age)) == 300, np.nan, age)
    )
    with pytest.raises(TrainError, match=r'part-1\.parquet: column "age" is nan in row 300; it must be a number'):
        train(etl.spec, MODEL, WHOLE, data, tmp_path / "out")
    assert latest(tmp_path / "out") is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_loss_that_is_no_number_names_the_row_and_changes_nothing(etl, tmp_path: Path, processes: int) -> None:
    data = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    change_column(data / "train" / "part-0.parquet", "age", lambda age: np.where(np.arange(len(age)) == 411, 3e38, age))
    config = MANY.model_copy(update={"processes": processes, "micro_batches": 3, "checkpoint_every_s": 300.0})
    with pytest.raises(TrainError, match=r"step \d: .*part-0\.parquet, row 411: the loss of the row is \[.*(nan|inf)"):
        train(etl.spec, MODEL, config, data, tmp_path / "out")


def test_an_interrupt_saves_the_step_it_finds(etl, tmp_path: Path) -> None:
    """However long ago the last checkpoint was."""
    config = MANY.model_copy(update={"checkpoint_every_s": 3600.0, "epochs": 400})

    def interrupt(done: int, total: int, what: str) -> None:
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(etl.spec, MODEL, config, etl.path, tmp_path, interrupt)
    last = latest(tmp_path)
    assert last is not None
    step = Checkpoint.read(last).step
    assert 10 <= step < 2000
    assert curve(tmp_path)[-1]["step"] == step
    assert not children()


def test_validation_keeps_the_best_checkpoint_and_stops(etl, tmp_path: Path) -> None:
    """Rates so high that the held-out rows soon get worse; resumed, it is as if it had not been broken off."""
    watched = Validation(rows=200, every=2, patience=3)
    config = MANY.model_copy(
        update={"validation": watched, "table_learning_rate": 3.0, "epochs": 60, "tensorboard": True}
    )
    result = train(etl.spec, MODEL, config, etl.path, tmp_path / "run")
    lines = curve(tmp_path / "run")
    losses = {line["step"]: sum(line["validation"].values()) for line in lines if "validation" in line}
    best = min(losses, key=losses.__getitem__)
    assert result.step == best == max(int(p.name[5:]) for p in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert max(losses) == best + 6 < 240
    assert list((tmp_path / "run" / "tensorboard").glob("events.out.tfevents.*"))

    def interrupt(done: int, total: int, what: str) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(etl.spec, MODEL, config, etl.path, tmp_path / "again", interrupt)
    again = train(etl.spec, MODEL, config, etl.path, tmp_path / "again", resume=True)
    assert again.step == result.step
    assert curve(tmp_path / "again") == lines
    expected = load_tables(result.checkpoint)
    for name, values in load_tables(again.checkpoint).items():
        np.testing.assert_array_equal(values, expected[name])


def test_sigterm_to_the_launcher_saves_too(etl, tmp_path: Path) -> None:
    config = MANY.model_copy(update={"checkpoint_every_s": 3600.0, "epochs": 400})

    def end(done: int, total: int, what: str) -> None:
        if done == 10:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(etl.spec, MODEL, config, etl.path, tmp_path, end)
    assert latest(tmp_path) is not None
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_run_of_another_etl_is_not_gone_on_with(etl, tmp_path: Path) -> None:
    """Files of the same names and rows, other ids."""
    train(etl.spec, MODEL, WHOLE, etl.path, tmp_path / "run")
    data = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    (data / "etl.json").write_text(json.dumps(json.loads((data / "etl.json").read_text()) | {"fingerprint": "f00"}))
    with pytest.raises(TrainError, match=r"holds a run of another ETL run \(nothing there, f00 asked for\)"):
        train(etl.spec, MODEL, WHOLE, data, tmp_path / "run", resume=True)


def test_validation_needs_rows_to_train_on(etl, tmp_path: Path) -> None:
    config = MANY.model_copy(update={"validation": Validation(rows=1024)})
    with pytest.raises(TrainError, match=r"validation.rows: got 1024; of 1024 rows in 6 row groups none is left"):
        train(etl.spec, MODEL, config, etl.path, tmp_path)


def test_bad_data_is_refused_before_any_rank_starts(etl, tmp_path: Path) -> None:
    data = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    file = data / "train" / "part-1.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFileError, match=r"part-1\.parquet"):
        train(etl.spec, MODEL, WHOLE, data, tmp_path / "out")
    pq.write_table(pq.read_table(etl.path / "train" / "part-1.parquet").drop_columns(["w_like"]), file)
    with pytest.raises(DataError, match='no column "w_like"'):
        train(etl.spec, MODEL, WHOLE, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(SpecError, match=r"batch_size: got 8191; must be a multiple of processes \(2\)"):
        validate(TrainConfig, {"batch_size": 8191, "processes": 2})


def test_scores_are_in_file_order_and_random_sessions_alone_on_request(
    etl, many: tuple[Path, TrainResult], tmp_path: Path
) -> None:
    data = Path(shutil.copytree(etl.path, tmp_path / "etl"))
    for file in (data / "eval").iterdir():
        change_column(file, "random", lambda random: (np.arange(len(random)) % 3 == 0).astype(np.int8))
    scorer = Scorer(etl.spec, many[1].checkpoint)
    everything, chosen = scorer.score(data / "eval"), scorer.score(data / "eval", random_only=True)
    assert everything.shape == (256, 2)
    mask = np.concatenate([np.arange(128) % 3 == 0] * 2)
    np.testing.assert_allclose(chosen, everything[mask], atol=1e-6)
