"""A checkpoint -> HugeCTR's weights -> a checkpoint: the same model; and runs that are not this one's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparsefeed.errors import BadFileError, SpecError, TrainError
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.models.config import TrainConfig
from sparsefeed.models.hugectr.exchange import HugectrRun, from_hugectr, to_hugectr
from sparsefeed.models.hugectr.formats import read_dump
from sparsefeed.models.torchrec.checkpoint import Checkpoint, finished, load_model, load_tables
from sparsefeed.models.torchrec.score import Scorer
from sparsefeed.models.torchrec.train import train
from tests import logs
from tests.models.hugectr.conftest import Script
from tests.models.hugectr.scripts import MODEL, plan_of
from tests.models.hugectr.test_hugectr_twin import hugectr_batch
from tests.models.hugectr.twin import Twin

CONFIG = TrainConfig(processes=1, batch_size=64)
SPEC = logs.spec()


@pytest.fixture(scope="module")
def trained(views: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of our own trainer."""
    return train(SPEC, MODEL, CONFIG, views["torchrec"], tmp_path_factory.mktemp("trained") / "training").checkpoint


@pytest.fixture
def run_folder(views: dict[str, Path], trained: Path, tmp_path: Path) -> Path:
    """As train.py leaves it, with that checkpoint's weights, its tables cut in columns, on the view's data."""
    plan = plan_of(SPEC, views["hugectr"], 4, member="column_wise", post="column_wise")
    to_hugectr(trained, SPEC, plan, tmp_path / "run")
    return tmp_path / "run"


def taken(run_folder: Path, views: dict[str, Path], out: Path) -> Path:
    out.mkdir(exist_ok=True)
    return from_hugectr(run_folder, SPEC, views["hugectr"], out, MODEL, CONFIG)


def test_weights_come_back_as_they_went(
    views: dict[str, Path], trained: Path, run_folder: Path, tmp_path: Path
) -> None:
    assert [(table.name, table.parts) for table in HugectrRun.read(run_folder).tables][:2] == [
        ("member", 2),
        ("post", 2),
    ]
    back = taken(run_folder, views, tmp_path / "out")
    assert finished(tmp_path / "out") == back
    before, after = load_tables(trained), load_tables(back)
    assert list(after) == list(before) == [table.name for table in SPEC.tables]
    for name in before:
        np.testing.assert_array_equal(after[name], before[name])
    for one, other in zip(
        load_model(back, SPEC)[0].parameters(), load_model(trained, SPEC)[0].parameters(), strict=True
    ):
        assert torch.equal(one, other)
    assert Checkpoint.read(back).step == Checkpoint.read(trained).step
    dense = load_file(back / "dense.safetensors")
    assert all(not value.any() for name, value in dense.items() if name.startswith("adam.")), "begins anew"


def test_scores_of_a_taken_run_are_the_twins(
    views: dict[str, Path], run_folder: Path, script: Script, tmp_path: Path
) -> None:
    # The twin reads the files as HugeCTR's graph would: parameters in the order layers were added, rows by key.
    graph = script(views["hugectr"], plan_of(SPEC, views["hugectr"], 1))
    run = HugectrRun.read(run_folder)
    flat = np.fromfile(run_folder / f"model_dense_{run.step}.model", "<f4")
    dumped = iter(read_dump(run_folder / "embeddings"))
    tables = {t.name: np.concatenate([next(dumped).rows for _ in range(t.parts)], axis=1) for t in run.tables}
    twin = Twin(graph, flat, tables)
    given = hugectr_batch(views["hugectr"], "valid", None)
    scorer = Scorer(SPEC, taken(run_folder, views, tmp_path / "out"))
    np.testing.assert_allclose(scorer.score(views["hugectr"] / "eval"), twin.forward(given)["logits"], atol=1e-5)


def test_padding_is_zero_whatever_hugectr_had_there(views: dict[str, Path], run_folder: Path, tmp_path: Path) -> None:
    path = run_folder / "embeddings" / "embedding_collection_0" / "weight0"
    content = bytearray(path.read_bytes())
    content[128:132] = np.float32(7).tobytes()  # row 0
    path.write_bytes(content)
    assert not load_tables(taken(run_folder, views, tmp_path / "out"))["member"][0].any()


def rewritten(folder: Path, **changes: Any) -> None:
    said = json.loads((folder / "hugectr.json").read_text())
    (folder / "hugectr.json").write_text(json.dumps(said | changes))


def grown(folder: Path) -> None:
    tables = json.loads((folder / "hugectr.json").read_text())["tables"]
    rewritten(folder, tables=[{**tables[0], "rows": 99}, *tables[1:]])


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda run: (run / "hugectr.json").unlink(), BadFileError, "not a finished run of HugeCTR"),
        (lambda run: rewritten(run, format=2), BadFileError, "not a finished run of HugeCTR"),
        (lambda run: rewritten(run, spec_digest="other"), TrainError, "was trained with another spec"),
        (lambda run: rewritten(run, etl="other"), TrainError, "was trained on ETL run other"),
        (lambda run: rewritten(run, step=5), BadFileError, "model_dense_5.model: not readable"),
        (lambda run: rewritten(run, tables=[]), BadFileError, "has tables .*; the spec has"),
        (grown, BadFileError, 'table "member": 99 rows; the ETL result has'),
        (lambda run: shutil.rmtree(run / "embeddings"), BadFileError, "meta_data: not readable"),
        (
            lambda run: next(run.glob("*.model")).write_bytes(next(run.glob("*.model")).read_bytes()[4:]),
            BadFileError,
            "another shape's",
        ),
    ],
)
def test_a_run_that_is_not_this_ones_changes_nothing(
    views: dict[str, Path], run_folder: Path, tmp_path: Path, spoil: Callable[[Path], Any], error: Any, message: str
) -> None:
    out = tmp_path / "out"
    (out / "checkpoints" / "step-1").mkdir(parents=True)
    (out / "result.json").write_text("{}")
    spoil(run_folder)
    with pytest.raises(error, match=message):
        taken(run_folder, views, out)
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*")) == [
        "checkpoints",
        "checkpoints/step-1",
        "result.json",
    ]


def test_a_run_takes_the_place_of_what_was_trained_there(
    views: dict[str, Path], run_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "checkpoints" / "step-1").mkdir(parents=True)
    (out / "curve.jsonl").write_text("{}\n")
    checkpoint = taken(run_folder, views, out)
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "result.json"]
    assert list((out / "checkpoints").iterdir()) == [checkpoint]


def test_what_hugectr_cannot_say_is_neither_taken_nor_given(trained: Path, run_folder: Path, tmp_path: Path) -> None:
    features = [f.model_dump() | ({"pooling": "learned"} if f.kind == "history" else {}) for f in SPEC.features]
    learned = FeedSpec.parse(SPEC.model_dump() | {"features": features})
    words = r'features\[2\].pooling: "clicked_posts" is learned; .* allowed for it: mean, sum'
    with pytest.raises(SpecError, match=words):
        to_hugectr(trained, learned, None, tmp_path / "weights")
    with pytest.raises(SpecError, match=words):
        from_hugectr(run_folder, learned, tmp_path, tmp_path / "out", MODEL, TrainConfig())
    assert list(tmp_path.iterdir()) == [run_folder]


def test_weights_are_not_written_over_others(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    with pytest.raises(TrainError, match="exists; name a folder that does not"):
        to_hugectr(trained, SPEC, None, tmp_path / "weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plan: {"tables": plan.tables[:1]}, "plan: has tables .*; the spec has"),
        (
            lambda plan: {
                "tables": tuple(
                    t.model_copy(update={"sharding": "column_wise", "devices": (0, 1, 2)}) for t in plan.tables
                )
            },
            "cannot be cut in 3 parts; plan again",
        ),
    ],
)
def test_weights_for_another_plan_leave_nothing(
    views: dict[str, Path], trained: Path, tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    plan = plan_of(SPEC, views["hugectr"], 4)
    with pytest.raises(TrainError, match=message):
        to_hugectr(trained, SPEC, plan.model_copy(update=change(plan)), tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_a_folder_keeps_its_model_until_the_new_one_is_in_place(
    views: dict[str, Path], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before = taken(run_folder, views, out)
    held = load_tables(before)["post"].copy()

    def fails(*args: Any) -> None:
        raise OSError("the disk is gone")

    monkeypatch.setattr("sparsefeed.models.hugectr.exchange._replace", fails)
    with pytest.raises(OSError, match="the disk is gone"):
        taken(run_folder, views, out)
    assert finished(out) == before
    np.testing.assert_array_equal(load_tables(before)["post"], held)
    monkeypatch.undo()
    assert finished(out) == taken(run_folder, views, out)
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == [before.name]
