"""A bundle for NVIDIA's container, and `hps check` of anyone's file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb
from typer.testing import CliRunner, Result

from sparsefeed.errors import BundleError
from sparsefeed.models.bundle import Manifest, open_version, publish_version
from sparsefeed.models.delta import apply_delta
from sparsefeed.models.hps.ps_json import problems_in
from sparsefeed.models.store.hps import read_hps
from sparsefeed.models.store.rows import RowFormat
from sparsefeed.models.store.store import ParameterStore, write_tables
from sparsefeed.workflows import hps, stages
from sparsefeed.workflows.cli import app
from sparsefeed.workflows.hps import check_ps_json, export_hps_serving, look_at, problems_of
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.export import export
from tests import bundles
from tests.workflows.serving.feed import SPEC, Feed

FEED = Feed.make(3)
ROW_FORMATS: tuple[RowFormat, ...] = ("fp32", "fp16", "int8")


def publish_as(root: Path, row_format: RowFormat) -> None:
    """Publish b1's content once more, its rows in another format, as a version of that name."""
    source = root / "versions" / "b1"

    def build(folder: Path) -> None:
        for name in ("ids", "transform", "snapshot"):
            shutil.copytree(source / name, folder / name)
        for name in ("spec.json", "dense.onnx"):
            shutil.copyfile(source / name, folder / name)
        write_tables(folder / "tables", FEED.tables, row_format, list(FEED.tables))
        changes = {"id": row_format, "row_format": row_format}
        Manifest(**{**Manifest.load(source).model_dump(), **changes}).save(folder)

    publish_version(root, row_format, build)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions fp32, fp16 and int8 of one feed, and `delta`, made of int8 with rows changed and added."""
    folder = tmp_path_factory.mktemp("bundles")
    FEED.publish(folder, "b1")
    for row_format in ROW_FORMATS:
        publish_as(folder, row_format)
    rows = {
        "post": bundles.rows_of([5, 200], bundles.values(8, 3, seed=1)[1:]),
        "member": bundles.rows_of([9], bundles.values(4, 2, seed=1)[1:]),
    }
    bundles.delta(open_version(folder, "int8"), "delta", folder / "change", rows, build=lambda _: None)
    apply_delta(folder, folder / "change")
    return folder


@pytest.fixture
def exported(root: Path, tmp_path: Path) -> Path:
    """An int8 bundle written for HPS."""
    export_hps_serving(root, "int8", ServingConfig(), tmp_path / "out")
    return tmp_path / "out"


def config_of(repository: Path, model: str) -> Any:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), pb.ModelConfig())


def edit_config(repository: Path, change: Callable[[Any], object]) -> Path:
    path = repository / "feed_hps_int8" / "config.pbtxt"
    config = text_format.Parse(path.read_text(), pb.ModelConfig())
    change(config)
    path.write_text(text_format.MessageToString(config))
    return path


def edit_ps(repository: Path, change: Callable[[Any], object]) -> Path:
    path = repository / "ps.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("version", [*ROW_FORMATS, "delta"])
def test_every_vector_that_hps_answers_is_the_one_that_the_bundle_answers(
    root: Path, tmp_path: Path, version: str
) -> None:
    export_hps_serving(root, version, ServingConfig(), tmp_path / "out")
    store = ParameterStore.open(open_version(root, version).tables)
    model = json.loads((tmp_path / "out" / "ps.json").read_text())["models"][0]
    assert model["embedding_table_names"] == [table.name for table in SPEC.tables]
    assert model["embedding_vecsize_per_table"] == [table.dim for table in store.tables]
    for table, default in zip(store.tables, model["default_value_for_each_table"], strict=True):
        folder = tmp_path / "out" / f"feed_hps_{version}" / "1" / f"{table.name}.model"
        keys, vectors = read_hps(folder, table.dim)
        answered = np.full((table.rows, table.dim), default, np.float32)
        answered[keys] = vectors
        asked = np.arange(table.rows)
        np.testing.assert_array_equal(answered, table.lookup(asked))
        num_keys = np.array([table.rows if other is table else 0 for other in store.tables], np.int32)
        np.testing.assert_array_equal(answered.ravel(), store.lookup(asked, num_keys))
        assert keys[0] == 0
        assert not vectors[0].any()


def test_a_changed_row_and_a_row_beyond_the_base_are_there(root: Path, tmp_path: Path) -> None:
    export_hps_serving(root, "delta", ServingConfig(), tmp_path / "out")
    post = ParameterStore.open(open_version(root, "delta").tables).table_by_name["post"]
    assert post.overlay_rows.tolist() == [5, 200]
    keys, _ = read_hps(tmp_path / "out" / "feed_hps_delta" / "1" / "post.model", 8)
    assert {5, 200} <= set(keys.tolist())
    assert len(keys) == len(post.base) + 1 < post.rows


def test_the_file_is_one_that_hps_reads(exported: Path) -> None:
    value = json.loads((exported / "ps.json").read_text())
    assert problems_in(value) == []
    (model,) = value["models"]
    assert value["supportlonglong"] is True
    assert model["model"] == "feed_hps_int8"
    assert model["sparse_files"][0] == "/models/feed_hps_int8/1/member.model"
    # member_id; interests and hashtags; post_id and liked; creator_id
    assert model["maxnum_catfeature_query_per_table_per_sample"] == [1, 2 + 3, 1 + 4, 1]
    assert model["max_batch_size"] == ServingConfig().max_candidates


def test_only_the_lookup_differs_from_the_normal_export(root: Path, exported: Path, tmp_path: Path) -> None:
    names = export(root, "int8", ServingConfig(row_format="int8"), tmp_path / "normal")
    assert sorted(path.name for path in exported.iterdir()) == sorted([*names, "ps.json"])
    for name in names:
        if name != "feed_hps_int8":
            assert bundles.tree(exported / name) == bundles.tree(tmp_path / "normal" / name)
    normal, nvidia = config_of(tmp_path / "normal", "feed_hps_int8"), config_of(exported, "feed_hps_int8")
    assert nvidia.backend == "hps"
    assert [(group.kind, list(group.gpus), group.count) for group in nvidia.instance_group] == [(1, [0], 2)]
    assert dict(nvidia.parameters).keys() == {"bundle"}
    for config in (normal, nvidia):
        for field in ("backend", "instance_group", "parameters"):
            config.ClearField(field)
    assert normal == nvidia
    assert not (exported / "feed_hps_int8" / "1" / "model.py").exists()


def test_gpus_instances_and_the_place_in_the_container_are_those_asked_for(root: Path, tmp_path: Path) -> None:
    settings = ServingConfig.model_validate({"instances": {"hps": 6}, "max_candidates": 7})
    export_hps_serving(root, "fp32", settings, tmp_path / "out", gpus=2, path_in_container="/srv/repo")
    (model,) = json.loads((tmp_path / "out" / "ps.json").read_text())["models"]
    assert (model["deployed_device_list"], model["num_of_worker_buffer_in_pool"]) == ([0, 1], 6)
    assert (model["max_batch_size"], model["sparse_files"][3]) == (7, "/srv/repo/feed_hps_fp32/1/creator.model")
    (group,) = config_of(tmp_path / "out", "feed_hps_fp32").instance_group
    assert (list(group.gpus), group.count) == ([0, 1], 6)


def test_an_export_replaces_an_earlier_one_and_nothing_else(root: Path, exported: Path, tmp_path: Path) -> None:
    export_hps_serving(root, None, ServingConfig(), exported)
    assert (exported / "feed_hps_b1").is_dir()
    assert not (exported / "feed_hps_int8").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (exported / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"no earlier export for HPS: it holds notes\.txt"):
        export_hps_serving(root, None, ServingConfig(), exported)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="is a file; name a folder"):
        export_hps_serving(root, None, ServingConfig(), tmp_path / "file")
    with pytest.raises(BundleError, match=r"holds no ps\.json"):
        export_hps_serving(root, None, ServingConfig(), made(tmp_path / "other" / "feed_hps_x").parent)
    assert (exported / "notes.txt").read_text() == "mine"


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("before", [False, True])
def test_a_failure_leaves_what_was_there(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    if before:
        export_hps_serving(root, "fp32", ServingConfig(), tmp_path / "out")
    tree = bundles.tree(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for module, name in ((shutil, "copyfile"), (hps, "write_sparse"), (hps, "check_ps_json")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(OSError, match="No space"):
                export_hps_serving(root, "int8", ServingConfig(), tmp_path / "out")
        assert bundles.tree(tmp_path) == tree
        assert len(list(tmp_path.iterdir())) == int(before)


def test_what_cannot_be_meant_is_refused_before_anything_is_written(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(BundleError, match="gpus: got 0"):
        export_hps_serving(root, None, ServingConfig(), out, gpus=0)
    with pytest.raises(BundleError, match='path_in_container: got "models"; must begin with /'):
        export_hps_serving(root, None, ServingConfig(), out, path_in_container="models")
    with pytest.raises(BundleError, match='"b9" is no READY version'):
        export_hps_serving(root, "b9", ServingConfig(), out)
    assert not out.exists()


def test_an_export_is_checked_with_its_folders_and_its_configuration(exported: Path) -> None:
    checked = check_ps_json(exported / "ps.json")
    assert (checked.models, checked.num_tables, checked.notes) == (("feed_hps_int8",), 4, ())
    sizes = sum(path.stat().st_size for path in exported.rglob("*.model/*"))
    assert checked.num_bytes == sizes > 0


def drop_int64(config: Any) -> None:
    config.input[0].data_type = pb.TYPE_INT32


def rename_output(config: Any) -> None:
    config.output[0].name = "VECTORS"


def flatten(config: Any) -> None:
    del config.input[1].dims[:]
    config.input[1].dims.append(-1)


def on_cpu(config: Any) -> None:
    config.instance_group[0].kind = pb.ModelInstanceGroup.KIND_CPU


def on_any_gpu(config: Any) -> None:
    del config.instance_group[0].gpus[:]


def on_another_gpu(config: Any) -> None:
    config.instance_group[0].gpus.append(3)


def two_groups(config: Any) -> None:
    config.instance_group.add(kind=pb.ModelInstanceGroup.KIND_GPU, gpus=[0], count=4)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda config: setattr(config, "backend", "python"), 'backend: got "python"; NVIDIA\'s lookup is "hps"'),
        (lambda config: setattr(config, "max_batch_size", 64), "max_batch_size: got 64; KEYS has no batch dimension"),
        (lambda config: setattr(config, "name", "feed_hps"), "Triton refuses that; make them alike"),
        (drop_int64, "input KEYS: data_type: got TYPE_INT32; HPS takes TYPE_INT64"),
        (flatten, "input NUMKEYS: dims: got [-1]; must be [-1, -1]"),
        (rename_output, "output: OUTPUT0 is missing; HPS takes exactly OUTPUT0 TYPE_FP32"),
        (rename_output, 'output: "VECTORS" is none of HPS'),
        (
            lambda config: config.input.add(name="DES"),
            'input: "DES" is none of HPS, which has exactly KEYS TYPE_INT64 a',
        ),
        (on_cpu, "instance_group[0]: kind: got KIND_CPU; with gpucache it must be KIND_GPU"),
        (on_any_gpu, "instance_group[0]: gpus: none given, so Triton takes all of the host; name those of [0]"),
        (on_another_gpu, "instance_group[0]: gpus: 3 is not in deployed_device_list, [0]"),
        (two_groups, "6 instances on GPU 0, num_of_worker_buffer_in_pool is 4; an instance without a buffer is refuse"),
        (lambda config: config.ClearField("instance_group"), "instance_group: missing, so Triton takes all GPUs"),
    ],
)
def test_a_configuration_that_does_not_fit_is_told_of(
    exported: Path, change: Callable[[Any], object], problem: str
) -> None:
    edit_config(exported, change)
    problems = problems_of(exported / "ps.json")
    assert any(problem in line for line in problems), problems
    assert all(line.startswith("feed_hps_int8/config.pbtxt: ") for line in problems)
    with pytest.raises(BundleError, match=r"ps\.json: feed_hps_int8/config\.pbtxt: "):
        check_ps_json(exported / "ps.json")


def test_without_a_gpu_cache_instances_may_be_on_the_cpu(exported: Path) -> None:
    edit_ps(exported, lambda value: value["models"][0].update(gpucache=False))
    edit_config(exported, on_cpu)
    assert problems_of(exported / "ps.json") == []


def test_a_given_configuration_is_the_one_that_is_compared(exported: Path, tmp_path: Path) -> None:
    other = tmp_path / "config.pbtxt"
    shutil.copyfile(exported / "feed_hps_int8" / "config.pbtxt", other)
    assert problems_of(exported / "ps.json", config=other) == []
    other.write_text(other.read_text().replace("feed_hps_int8", "feed_hps_int9"))
    (problem,) = problems_of(exported / "ps.json", config=other)
    assert problem == f'{other}: name: "feed_hps_int9" is no model of ps.json; did you mean "feed_hps_int8"?'
    other.write_text("bakend: 'hps'")
    assert 'has no field named "bakend"' in problems_of(exported / "ps.json", config=other)[0]
    assert "not readable" in problems_of(exported / "ps.json", config=tmp_path / "none.pbtxt")[0]


def test_the_folders_beside_are_compared_as_triton_reads_them(exported: Path) -> None:
    shutil.rmtree(exported / "feed_hps_int8" / "1")
    assert any("its folder has no version" in line for line in problems_of(exported / "ps.json"))
    shutil.copytree(exported / "feed_hps_int8", exported / "feed_hps_old")
    assert any(
        line.startswith('feed_hps_old/config.pbtxt: name: got "feed_hps_int8", but its folder is feed_hps_old')
        for line in problems_of(exported / "ps.json")
    )
    shutil.rmtree(exported / "feed_hps_int8")
    assert 'models: "feed_hps_int8" has no folder feed_hps_int8/ beside ps.json' in look_at(exported / "ps.json").notes


def test_a_bad_sparse_folder_of_a_repository_is_told_of(exported: Path) -> None:
    post = exported / "feed_hps_int8" / "1" / "post.model"
    (post / "emb_vector").write_bytes(b"cut off")
    with pytest.raises(BundleError, match=r"models\[0\]\.sparse_files\[2\]: .*post\.model: key has"):
        check_ps_json(exported / "ps.json")


# The command line


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_check_counts_what_is_right(exported: Path) -> None:
    result = run("hps", "check", exported / "ps.json")
    assert result.exit_code == 0, result.output
    assert "1 model, 4 tables, " in result.output
    assert result.output.rstrip().endswith(": no problem")


def test_check_names_every_problem_and_note(exported: Path) -> None:
    def spoil(value: Any) -> None:
        value["volatile_db"].update(type="hashmap", num_partitons=4)
        value["models"][0].update(gpucacheper=2)

    edit_ps(exported, spoil)
    result = run("hps", "check", exported / "ps.json", "--config", exported / "feed_ranker_int8" / "config.pbtxt")
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0] == 'note volatile_db.type: "hashmap" is another name of "hash_map"'
    problems = [line for line in lines if line.startswith("problem ")]
    assert any('"num_partitons" is not a key; did you mean "num_partitions"?' in line for line in problems)
    assert any("models[0].gpucacheper: got 2" in line for line in problems)
    assert any('backend: got ""' in line for line in problems)
    assert "no problem" not in result.output


def test_check_of_no_file_is_one_problem(tmp_path: Path) -> None:
    result = run("hps", "check", tmp_path / "ps.json")
    assert (result.exit_code, result.output) == (
        1, "problem not readable: No such file or directory; name a ps.json\n",
    )  # fmt: skip


def test_export_also_writes_for_hps(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "bundles").symlink_to(root)
    monkeypatch.setattr(stages, "export_serving", lambda *_: ("int8", ["feed_ranker_int8"]))
    result = run("export", "-w", tmp_path / "artifacts", "--hps", tmp_path / "hps")
    assert result.exit_code == 0, result.output
    assert f"for HPS in {tmp_path / 'hps'}: 4 tables, " in " ".join(result.output.split())
    assert problems_of(tmp_path / "hps" / "ps.json") == []
    run("export", "-w", tmp_path / "artifacts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifacts", "hps"]
