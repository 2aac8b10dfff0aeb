from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.array_folder import read_array_folder, sha256_of_header, write_array_folder

LARGE = np.arange(200_000)  # 1.6 MB: beyond what is digested on every opening


def write(folder: Path, **arrays: np.ndarray) -> None:
    write_array_folder(folder, "x.json", {"format": "x/1", "note": "Zürich"}, arrays)


def read(folder: Path, mmap: bool = True) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    return read_array_folder(folder, "x.json", "x/1", mmap)


@pytest.mark.parametrize("mmap", [True, False])
def test_what_was_written_is_read_back_and_cannot_be_changed(tmp_path: Path, mmap: bool) -> None:
    write(tmp_path, a=np.array([1.5, 2.5]), empty=np.empty(0, np.uint64))
    header, arrays = read(tmp_path, mmap)
    assert header["note"] == "Zürich"
    assert arrays["a"].tolist() == [1.5, 2.5]
    assert arrays["empty"].dtype == np.uint64
    with pytest.raises(ValueError, match="read-only"):
        arrays["a"][0] = 0


def test_writing_again_replaces_the_set_and_keeps_the_files_that_did_not_change(tmp_path: Path) -> None:
    write(tmp_path, same=np.arange(5), other=np.arange(3))
    same = next(tmp_path.glob("same-*.npy"))
    inode = same.stat().st_ino
    held = read(tmp_path)[1]["other"]
    write(tmp_path, same=np.arange(5), other=np.arange(4))
    assert held.tolist() == [0, 1, 2]  # an open map outlives its file
    assert read(tmp_path)[1]["other"].tolist() == [0, 1, 2, 3]
    assert same.stat().st_ino == inode
    assert len(list(tmp_path.iterdir())) == 3


def test_writing_again_mends_an_altered_array(tmp_path: Path) -> None:
    write(tmp_path, a=np.arange(3))
    flip_last_bit(next(tmp_path.glob("a-*.npy")))
    write(tmp_path, a=np.arange(3))
    assert read(tmp_path)[1]["a"].tolist() == [0, 1, 2]


def test_a_writer_that_dies_before_the_header_leaves_the_old_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a=np.arange(3))
    monkeypatch.setattr("json.dumps", lambda *_, **__: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write(tmp_path, a=np.arange(4))
    monkeypatch.undo()
    assert read(tmp_path)[1]["a"].tolist() == [0, 1, 2]
    assert not list(tmp_path.glob(".*.partial"))


def test_a_reader_whose_files_are_replaced_under_it_reads_the_new_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, a=np.arange(3))
    load, replaced = np.load, []

    def load_late(path: Path, **options: object) -> object:
        if not replaced:
            replaced.append(True)
            write(tmp_path, a=np.arange(4))
        return load(path, **options)

    monkeypatch.setattr(np, "load", load_late)
    assert read(tmp_path)[1]["a"].tolist() == [0, 1, 2, 3]


def test_a_folder_that_is_not_there_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(IdError, match=r"nowhere/x.json: cannot be read .* give the folder"):
        read(tmp_path / "nowhere")


def test_a_missing_array_is_named(tmp_path: Path) -> None:
    write(tmp_path, a=np.arange(3))
    next(tmp_path.glob("a-*.npy")).unlink()
    with pytest.raises(IdError, match=r"a-[0-9a-f]{16}.npy: missing, though x.json names it"):
        read(tmp_path)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_truncated_array_is_refused(tmp_path: Path, mmap: bool) -> None:
    write(tmp_path, a=LARGE)
    file = next(tmp_path.glob("a-*.npy"))
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(IdError, match="truncated or extended"):
        read(tmp_path, mmap)


def flip_last_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_an_altered_small_array_is_refused_at_once(tmp_path: Path) -> None:
    write(tmp_path, a=np.arange(3))
    flip_last_bit(next(tmp_path.glob("a-*.npy")))
    with pytest.raises(IdError, match="altered"):
        read(tmp_path)


def test_an_altered_large_array_is_refused_when_all_is_read(tmp_path: Path) -> None:
    write(tmp_path, a=LARGE)
    flip_last_bit(next(tmp_path.glob("a-*.npy")))
    with pytest.raises(IdError, match="altered"):
        read(tmp_path, mmap=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a header"),
        ("[]", "not a header"),
        ('{"format": "x/1"}', "not a header"),
        ('{"format": "x/2", "arrays": {}}', 'format is "x/2"; this version reads "x/1"'),
        ('{"format": "x/1", "arrays": {"a": {"file": "../a.npy", "bytes": 1, "sha256": ""}}}', "outside the folder"),
    ],
)
def test_a_header_that_cannot_be_meant_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(IdError, match=message):
        read(tmp_path)


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    write(tmp_path, a=np.arange(3))
    file = next(tmp_path.glob("a-*.npy"))
    np.save(file, np.array([{}], object), allow_pickle=True)
    header = json.loads((tmp_path / "x.json").read_text())
    header["arrays"]["a"].update(bytes=file.stat().st_size, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    (tmp_path / "x.json").write_text(json.dumps({**header, "sha256": sha256_of_header(header)}))
    with pytest.raises(IdError, match="not a npy array"):
        read(tmp_path, mmap=False)


def test_files_of_others_in_the_folder_stay(tmp_path: Path) -> None:
    np.save(tmp_path / "embeddings.npy", np.arange(3))
    write_array_folder(tmp_path, "y.json", {"format": "y/1"}, {"a": np.arange(4)})
    for version in range(3):
        write(tmp_path, a=np.arange(version))
    assert read_array_folder(tmp_path, "y.json", "y/1", True)[1]["a"].tolist() == [0, 1, 2, 3]
    assert read(tmp_path)[1]["a"].tolist() == [0, 1]
    assert sorted(p.name[:1] for p in tmp_path.iterdir()) == ["a", "a", "e", "x", "y"]


def test_arrays_that_the_new_set_has_no_name_for_are_removed_too(tmp_path: Path) -> None:
    write(tmp_path, a=np.arange(3), b=np.arange(4))
    write(tmp_path, a=np.arange(3))
    assert sorted(path.name.split("-")[0] for path in tmp_path.iterdir()) == ["a", "x.json"]


@pytest.mark.parametrize("file", ["5", "null", '["a"]', '"../a.npy"', '""'])
def test_a_header_whose_file_is_no_name_is_refused(tmp_path: Path, file: str) -> None:
    text = f'{{"format": "x/1", "arrays": {{"a": {{"file": {file}, "bytes": 1, "sha256": ""}}}}}}'
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(IdError, match=r"x\.json: (not a header|array file .* lies outside|altered)"):
        read(tmp_path)


def test_a_header_nested_beyond_reason_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 200_000)
    with pytest.raises(IdError, match=r"not a header"):
        read(tmp_path)


def test_another_kind_in_the_folder_is_named(tmp_path: Path) -> None:
    write_array_folder(tmp_path, "y.json", {"format": "y/1"}, {})
    with pytest.raises(IdError, match=r"x.json: cannot be read .* the folder holds y.json; give the folder"):
        read(tmp_path)


def test_a_folder_may_be_given_as_text(tmp_path: Path) -> None:
    write_array_folder(str(tmp_path), "x.json", {"format": "x/1"}, {"a": np.arange(2)})
    assert read_array_folder(str(tmp_path), "x.json", "x/1", True)[1]["a"].tolist() == [0, 1]
