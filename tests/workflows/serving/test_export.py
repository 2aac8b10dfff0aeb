from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from sparsefeed.errors import BundleError, ServeError
from sparsefeed.workflows.serving.config import ServingConfig
from sparsefeed.workflows.serving.export import export
from sparsefeed.workflows.serving.template import TEMPLATE


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_it_writes_the_four_models_of_the_current_bundle(bundle_root: Path, tmp_path: Path) -> None:
    before = contents(TEMPLATE)
    names = export(bundle_root, None, ServingConfig(), tmp_path / "repository")
    assert names == ["feed_transform_b2", "feed_hps_b2", "feed_dense_b2", "feed_ranker_b2"]
    assert sorted(path.name for path in (tmp_path / "repository").iterdir()) == sorted(names)
    assert (tmp_path / "repository" / "feed_ranker_b2" / "1").is_dir()
    assert contents(TEMPLATE) == before


def test_the_models_carry_the_absolute_path_of_the_bundle(bundle_root: Path, tmp_path: Path) -> None:
    export(bundle_root, "b1", ServingConfig(), tmp_path)
    text = (tmp_path / "feed_hps_b1" / "config.pbtxt").read_text()
    folder = text_format.Parse(text, pb.ModelConfig()).parameters["folder"].string_value
    assert folder == str((bundle_root / "versions" / "b1").resolve())


def test_the_glue_is_a_copy_of_the_template(bundle_root: Path, tmp_path: Path) -> None:
    export(bundle_root, "b1", ServingConfig(), tmp_path)
    for step in ("feed_transform", "feed_hps", "feed_dense"):
        copied = tmp_path / f"{step}_b1" / "1" / "model.py"
        assert copied.read_bytes() == (TEMPLATE / step / "1" / "model.py").read_bytes()


def test_twice_changes_nothing(bundle_root: Path, tmp_path: Path) -> None:
    export(bundle_root, "b1", ServingConfig(), tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    export(bundle_root, "b1", ServingConfig(), tmp_path)
    assert {path: path.stat().st_ino for path in tmp_path.rglob("*")} == before


def test_other_settings_replace_only_the_models_they_change(bundle_root: Path, tmp_path: Path) -> None:
    export(bundle_root, "b1", ServingConfig(), tmp_path)
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    export(bundle_root, "b1", ServingConfig(max_candidates=7), tmp_path)
    after = {path.name: path.stat().st_ino for path in tmp_path.iterdir()}
    assert {name for name in before if before[name] != after[name]} == {"feed_transform_b1"}
    assert '"7"' in (tmp_path / "feed_transform_b1" / "config.pbtxt").read_text()


def test_a_setting_that_drops_a_file_drops_it(bundle_root: Path, tmp_path: Path) -> None:
    export(bundle_root, "b1", ServingConfig(), tmp_path)
    export(bundle_root, "b1", ServingConfig(warm_up=False), tmp_path)
    assert not (tmp_path / "feed_hps_b1" / "warmup").exists()


def test_a_failing_export_leaves_the_repository_as_it_was(
    bundle_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(bundle_root, "b1", ServingConfig(), tmp_path)
    before = contents(tmp_path)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="no space"):
        export(bundle_root, "b1", ServingConfig(max_candidates=7), tmp_path)
    assert contents(tmp_path) == before


def test_a_dense_format_that_the_bundle_has_not_is_refused(bundle_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r'dense_format: got "int8", but .* holds the dense model as fp32; set'):
        export(bundle_root, "b1", ServingConfig(dense_format="int8"), tmp_path)


def test_another_row_format_than_the_bundles_is_refused(bundle_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"set serving\.row_format: fp32"):
        export(bundle_root, "b1", ServingConfig(row_format="int8"), tmp_path)


def test_a_bundle_beyond_the_memory_budget_is_refused_with_its_size(bundle_root: Path, tmp_path: Path) -> None:
    with pytest.raises(ServeError, match=r"memory_budget_bytes: .* maps [\d,]+ bytes"):
        export(bundle_root, "b1", ServingConfig(memory_budget_bytes=1000), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bundle_that_is_not_there_is_refused(bundle_root: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="b9"):
        export(bundle_root, "b9", ServingConfig(), tmp_path)
