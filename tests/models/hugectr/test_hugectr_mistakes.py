"""The stub: mistakes that HugeCTR would refuse late, or would not notice, are each caught where they are made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.models.hugectr.stub import API, RELEASES, Mistake, Stub


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts write into the folder they run in."""
    monkeypatch.chdir(tmp_path)


class Made:
    """A small right script in pieces, each of which a test may spoil."""

    def __init__(self, release: str = "24.06") -> None:
        self.stub = Stub(release)
        self.hugectr: ModuleType = self.stub.module
        hugectr: Any = self.hugectr
        self.solver = {
            "vvgpu": [[0, 1]], "batchsize": 8, "batchsize_eval": 8, "i64_input_key": True,
            "use_embedding_collection": True, "repeat_dataset": True,
        }  # fmt: skip
        self.reader = {
            "data_reader_type": hugectr.DataReaderType_t.RawAsync, "source": ["train.bin"], "eval_source": "valid.bin",
            "check_type": hugectr.Check_t.Non, "async_param": self.raw(True),
        }  # fmt: skip
        self.optimizer = {"optimizer_type": hugectr.Optimizer_t.AdaGrad}
        self.inputs = {
            "label_dim": 3, "label_name": "label", "dense_dim": 3, "dense_name": "dense",
            "data_reader_sparse_param_array": [
                hugectr.DataReaderSparseParam("post", 1, True, 1),
                hugectr.DataReaderSparseParam("clicked", 4, True, 1),
            ],
        }  # fmt: skip
        self.table = {"name": "post", "max_vocabulary_size": 10, "ev_size": 4}
        self.lookups = [("post", "post_rows", "sum"), ("clicked", "clicked_rows", "sum")]
        self.shard = {"shard_matrix": [["post"], ["post"]], "shard_strategy": [("mp", ["post"])]}
        kind = hugectr.Layer_t
        self.layers: list[tuple[Any, list[str], list[str], dict[str, Any]]] = [
            (kind.Reshape, ["post_rows"], ["post_sum"], {"leading_dim": 4}),
            (kind.Reshape, ["clicked_rows"], ["clicked_sum"], {"leading_dim": 4}),
            (kind.Concat, ["dense", "post_sum", "clicked_sum"], ["x0"], {}),
            (kind.MultiCross, ["x0"], ["cross"], {"num_layers": 1, "projection_dim": 2}),
            (kind.InnerProduct, ["cross"], ["logits"], {"num_output": 2}),
            (kind.Slice, ["logits"], ["a", "b", "c"], {"ranges": [(0, 1), (0, 1), (1, 2)]}),
            (kind.Concat, ["a", "b", "c"], ["logit_columns"], {}),
            (kind.MultiCrossEntropyLoss, ["logit_columns", "label"], ["loss"], {"target_weight_vec": [1.0, 2.0, 1.0]}),
        ]
        self.fit = {"max_iter": 10}

    def raw(self, multi_hot: bool) -> Any:
        return self.hugectr.AsyncParam(
            num_threads=1, num_batches_per_thread=4, shuffle=False, multi_hot_reader=multi_hot, is_dense_float=True
        )

    def run(self) -> None:
        hugectr: Any = self.hugectr
        model = hugectr.Model(
            hugectr.CreateSolver(**self.solver),
            hugectr.DataReaderParams(**self.reader),
            hugectr.CreateOptimizer(**self.optimizer),
        )
        model.add(hugectr.Input(**self.inputs))
        table, collection = hugectr.EmbeddingTableConfig(**self.table), hugectr.EmbeddingCollectionConfig()
        for bottom, top, combiner in self.lookups:
            collection.embedding_lookup(table_config=table, bottom_name=bottom, top_name=top, combiner=combiner)
        collection.shard(**self.shard)
        model.add(collection)
        for kind, bottoms, tops, settings in self.layers:
            model.add(hugectr.DenseLayer(layer_type=kind, bottom_names=bottoms, top_names=tops, **settings))
        model.compile()
        model.fit(**self.fit)
        model.embedding_dump("embeddings")


@pytest.mark.parametrize("release", RELEASES)
def test_a_right_script_is_taken(release: str) -> None:
    made = Made(release)
    made.run()
    assert [layer.kind for layer in made.stub.graph.layers][-1] == "MultiCrossEntropyLoss"


def layer(made: Made, number: int, **changes: Any) -> None:
    kind, bottoms, tops, settings = made.layers[number]
    kind = changes.pop("kind", kind)
    made.layers[number] = (kind, changes.pop("bottoms", bottoms), changes.pop("tops", tops), settings | changes)


def spoiled_labels(made: Made, names: list[str]) -> None:
    del made.inputs["label_dim"], made.inputs["label_name"]
    made.inputs |= {"label_dims": [2, 1], "label_names": names}


def kinds(made: Made) -> Any:
    return made.hugectr.Layer_t


MISTAKES: dict[str, tuple[Callable[[Made], Any], str]] = {
    "a misspelt argument": (
        lambda m: m.solver.update(batch_size=8),
        "CreateSolver: has no argument batch_size, but batchsize",
    ),
    "an argument left out that has no default": (lambda m: m.reader.pop("check_type"), "needs check_type"),
    "a string for a number": (lambda m: m.table.update(ev_size="4"), "ev_size = '4' is no int"),
    "a member of another enumeration": (
        lambda m: m.optimizer.update(optimizer_type=kinds(m).ReLU),
        "optimizer_type = .* is no Optimizer_t",
    ),
    "a batch that GPUs cannot share": (lambda m: m.solver.update(batchsize=7), "batchsize 7 is no multiple of 2 GPUs"),
    "16 bits and TF32": (
        lambda m: m.solver.update(use_mixed_precision=True, enable_tf32_compute=True),
        "exclude each other",
    ),
    "a loss that has no 16-bit form": (
        lambda m: m.solver.update(use_mixed_precision=True),
        "MultiCrossEntropyLoss loss: has no form of 16 bits",
    ),
    "a reader that is gone": (
        lambda m: m.reader.update(data_reader_type=m.hugectr.DataReaderType_t.Raw),
        "Raw is deprecated",
    ),
    "the reader of parquet with a collection": (
        lambda m: m.reader.update(data_reader_type=m.hugectr.DataReaderType_t.Parquet),
        "throws at the first step with Parquet; needs the multi-hot RawAsync",
    ),
    "the one-hot reader with a collection": (
        lambda m: m.reader.update(async_param=m.raw(False)),
        "throws at the first step with RawAsync; needs the multi-hot",
    ),
    "offsets that a collection adds, too": (lambda m: m.reader.update(slot_size_array=[10]), "slot_size_array"),
    "labels out of the order of their names": (
        lambda m: spoiled_labels(m, ["label1", "label0"]),
        "cut in the order of their names",
    ),
    "no dense column": (lambda m: m.inputs.update(dense_dim=0), "wants a label and a dense column at least"),
    "a list of any length": (
        lambda m: m.inputs["data_reader_sparse_param_array"].__setitem__(
            1, m.hugectr.DataReaderSparseParam("clicked", 4, False, 1)
        ),
        "has lists of one length alone",
    ),
    "slots of the old embeddings": (
        lambda m: m.inputs["data_reader_sparse_param_array"].__setitem__(
            0, m.hugectr.DataReaderSparseParam("post", 1, True, 2)
        ),
        "slot_num must be 1",
    ),
    "an optimiser static tables have not": (
        lambda m: m.optimizer.update(optimizer_type=m.hugectr.Optimizer_t.Adam),
        "Adam is none of",
    ),
    "the documents' name of the mean": (
        lambda m: m.lookups.__setitem__(1, ("clicked", "clicked_rows", "mean")),
        "combiner 'mean'; allowed",
    ),
    "the mean of a list that is filled up": (
        lambda m: m.lookups.__setitem__(1, ("clicked", "clicked_rows", "average")),
        "the average counts padding, too",
    ),
    "a lookup of no input": (lambda m: m.lookups.__setitem__(0, ("posts", "post_rows", "sum")), "no input posts"),
    "rows too wide": (lambda m: m.table.update(ev_size=512), "ev_size 512 > 256"),
    "a shard matrix for other GPUs": (lambda m: m.shard.update(shard_matrix=[["post"]]), "1 rows for 2 GPUs"),
    "a replicated table that is not everywhere": (
        lambda m: m.shard.update(shard_matrix=[["post"], []], shard_strategy=[("dp", ["post"])]),
        r"post \(dp\) is on 1 of 2 GPUs",
    ),
    "columns that cannot be cut": (
        lambda m: m.shard.update(shard_strategy=[("mp", [("post", 3)])]),
        "cannot be cut in 3 columns",
    ),
    "columns cut of lookups one by one": (
        lambda m: m.shard.update(shard_strategy=[("mp", [("post", 2)])]),
        "columns are cut wrongly unless all lookups are made at once",
    ),
    "a table that is sharded nowhere": (lambda m: m.shard.update(shard_strategy=[("mp", [])]), r"shard: has \[\]"),
    "a tensor that is not there": (lambda m: layer(m, 2, bottoms=["dense", "post"]), "no tensor post"),
    "a tensor made twice": (lambda m: layer(m, 1, tops=["post_sum"]), "there is a tensor post_sum already"),
    "a tensor that nobody takes": (
        lambda m: layer(m, 2, bottoms=["dense", "post_sum"]),
        "nothing takes clicked_sum: its values would be taken for its gradient",
    ),
    "vectors joined before they are reshaped": (
        lambda m: layer(m, 2, bottoms=["dense", "post_sum", "clicked_rows"]),
        "reshape them to one dimension first",
    ),
    "a reshape that changes the batch": (lambda m: layer(m, 0, leading_dim=8), "changes the batch"),
    "ranges that go back": (lambda m: layer(m, 5, ranges=[(1, 2), (0, 1), (0, 1)]), "they must rise"),
    "a setting that does nothing": (lambda m: layer(m, 4, dropout_rate=0.5), "does nothing for InnerProduct"),
    "a weight too few": (lambda m: layer(m, 7, target_weight_vec=[1.0]), "1 weights for 3 columns"),
    "label before prediction": (lambda m: layer(m, 7, bottoms=["label", "logit_columns"]), "logit_columns is no label"),
    "a second loss": (
        lambda m: m.layers.append((kinds(m).BinaryCrossEntropyLoss, ["c", "label"], ["loss1"], {})),
        "the first loss alone is computed",
    ),
    "a binary loss of two columns": (
        lambda m: layer(m, 7, kind=kinds(m).BinaryCrossEntropyLoss) or m.layers[7][3].clear(),
        "takes one column",
    ),
    "a label without a loss": (lambda m: m.layers.__setitem__(7, (kinds(m).ReLU, ["a"], ["loss"], {})), "no loss"),
    "copies by Scale of what learns": (
        lambda m: layer(m, 6, kind=kinds(m).Scale, bottoms=["a"], axis=0, factor=2.0),
        "gradient of Scale is of its first copy alone",
    ),
    "epochs of a dataset that repeats": (lambda m: m.fit.update(num_epochs=1), "repeat_dataset takes max_iter"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_caught(name: str) -> None:
    spoil, message = MISTAKES[name]
    made = Made()
    spoil(made)
    with pytest.raises(Mistake, match=message):
        made.run()


def test_five_layers_may_take_a_tensor_and_a_sixth_may_not() -> None:
    for extra, allowed in ((3, True), (5, False)):  # beside the cross network: 4 and 6
        made = Made()
        kind = kinds(made)
        tops = [f"p{i}" for i in range(extra)]
        made.layers[4:5] = [
            *((kind.InnerProduct, ["x0"], [top], {"num_output": 1}) for top in tops),
            (kind.Concat, ["cross", *tops], ["both"], {}),
            (kind.InnerProduct, ["both"], ["logits"], {"num_output": 2}),
        ]
        if allowed:
            made.run()
        else:
            with pytest.raises(Mistake, match="6 layers take x0; at most 5"):
                made.run()


def test_a_dump_of_some_tables_is_refused() -> None:
    made = Made()
    made.run()
    hugectr: Any = made.hugectr
    solver, optimizer = hugectr.CreateSolver(**made.solver), hugectr.CreateOptimizer(**made.optimizer)
    model = hugectr.Model(solver, hugectr.DataReaderParams(**made.reader), optimizer)
    with pytest.raises(Mistake, match="table_names writes wrong ids"):
        model.embedding_dump("embeddings", ["post"])


def test_what_a_release_has_not_is_not_there() -> None:
    assert not hasattr(Stub("25.03").module, "DatabaseType_t")
    assert hasattr(Stub("24.06").module, "DatabaseType_t")
    assert len(MISTAKES) >= 20
    assert API["target"] == "24.06"
