"""Files that were cut, altered, mixed up or lost: a clear error or the right rows, and never a crash."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, Inverse, array_folder, id_map
from sparsefeed.etl.ids.array_folder import read_array_folder, write_array_folder
from tests.children import ask_child

KEYS = np.random.default_rng(0).integers(0, 2**64, 40, np.uint64)
PROBES = np.concatenate([KEYS, np.random.default_rng(1).integers(0, 2**64, 300, np.uint64)])


def build(table: str = "post", key_seed: int = 0, tail_rows: int = 5, shift: int = 0) -> IdMap:
    """A map of 28 keys in the base, two of them one key's, and three in the overlay."""
    keys = KEYS + np.uint64(shift)
    base = np.append(keys[:28], keys[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_map, "check_strings", lambda *_: None)  # these keys are not those of the strings
        built = IdMap.build(
            base,
            np.arange(29, 0, -1),
            table=table,
            key_seed=key_seed,
            tail_rows=tail_rows,
            strings=pa.array([f"id_{i}" for i in range(29)]),
        )
    return built.add(keys[28:30])[0].remove(keys[1:2])


def answers(id_map: IdMap) -> list[Any]:
    """All that can be asked of a map."""
    fields = ("table", "key_seed", "tail_rows", "fingerprint_bits", "num_rows", "num_admitted", "capacity_rows")
    exceptions = {key: dict(rows) for key, rows in id_map.exceptions.by_key.items()}
    grown, rows = id_map.add(PROBES)
    return [
        *(getattr(id_map, field) for field in fields),
        exceptions,
        id_map.lookup(PROBES).tolist(),
        rows.tolist(),
        grown.fold()[1].tolist(),
    ]


@cache
def files_of(**options: Any) -> dict[str, bytes]:
    """The files of a saved map; saving waits for the disk, so once is enough."""
    with tempfile.TemporaryDirectory() as folder:
        build(**options).save(Path(folder))
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


def saved(folder: Path, **options: Any) -> Path:
    folder.mkdir()
    for name, content in files_of(**options).items():
        (folder / name).write_bytes(content)
    return folder


ARRAYS = sorted(json.loads(files_of()["id_map.json"])["arrays"])


def asked_in(folder: Path, truth: list[Any], mmap: bool = True) -> str:
    """How a folder was read: "right", "refused", or what went wrong."""
    try:
        found = answers(IdMap.load(folder, mmap))
    except IdError as error:
        return "refused" if str(folder) in str(error) else f"an error that does not say where: {error}"
    except Exception as error:
        return repr(error)
    return "right" if found == truth else "wrong answers"


def changes(content: bytes) -> Iterator[tuple[str, bytes]]:
    """The content with every byte altered in turn (two of its bits, in turn too), and cut at every third length."""
    for position, bit in itertools.product(range(len(content)), (0, 6)):
        altered = bytearray(content)
        altered[position] ^= 1 << bit
        yield f"bit {bit} of byte {position} flipped", bytes(altered)
    for length in range(0, len(content), 3):
        yield f"cut at {length} bytes", content[:length]
    yield "longer", content + b"\n "


@pytest.mark.parametrize("name", ["id_map", *ARRAYS])
def test_any_byte_altered_and_any_end_cut_off_is_refused_or_does_not_matter(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "post")
    truth = answers(IdMap.load(folder))
    (file,) = folder.glob(f"{name}[.-]*")
    content = file.read_bytes()
    found = {}
    for what, changed in changes(content):
        file.write_bytes(changed)
        found[what] = asked_in(folder, truth)
    assert {what: how for what, how in found.items() if how not in ("right", "refused")} == {}
    assert list(found.values()).count("refused") > 0.9 * len(content)
    file.write_bytes(content)
    assert asked_in(folder, truth) == "right"


@pytest.mark.parametrize("mmap", [True, False])
@pytest.mark.parametrize("loss", ["missing", "a folder", "empty"])
@pytest.mark.parametrize("name", ["id_map", *ARRAYS])
def test_a_file_that_is_lost_is_told(tmp_path: Path, name: str, loss: str, mmap: bool) -> None:
    folder = saved(tmp_path / "post")
    (file,) = folder.glob(f"{name}[.-]*")
    file.unlink()
    if loss == "a folder":
        file.mkdir()
    elif loss == "empty":
        file.touch()
    with pytest.raises(IdError, match=f"{file}: .*(give|restore)"):
        IdMap.load(folder, mmap)


def test_a_path_that_is_no_folder_of_a_map_is_told(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    (tmp_path / "empty").mkdir()
    for path in (file, tmp_path / "empty", tmp_path / "nowhere"):
        for load, header in ((IdMap.load, "id_map.json"), (Inverse.load, "inverse.json")):
            with pytest.raises(IdError, match=f"{path / header}: cannot be read .* give the folder"):
                load(path)


# What one map's header and files may be mixed with: the same shapes, but another base, overlay or numbers.
OTHERS: dict[str, dict[str, Any]] = {
    "another table": {"table": "user"},
    "another seed": {"key_seed": 1},
    "another tail": {"tail_rows": 6},
    "other keys": {"shift": 1},
    "all of it": {"table": "user", "key_seed": 1, "tail_rows": 6, "shift": 1},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_field_of_another_maps_header_never_gives_a_wrong_row(tmp_path: Path, other: str) -> None:
    folder, stranger = saved(tmp_path / "post"), saved(tmp_path / "other", **OTHERS[other])
    truth = answers(IdMap.load(folder))
    assert answers(IdMap.load(stranger)) != truth
    for file in stranger.glob("*.npy"):
        shutil.copy(file, folder)  # so that only the header can tell
    header = json.loads((folder / "id_map.json").read_text())
    foreign = json.loads((stranger / "id_map.json").read_text())
    mixed = {field: {**header, field: foreign[field]} for field in header}
    for array in ARRAYS:
        mixed[array] = {**header, "arrays": {**header["arrays"], array: foreign["arrays"][array]}}
    found = {}
    for field, mixture in mixed.items():
        (folder / "id_map.json").write_text(json.dumps(mixture))
        found[field] = asked_in(folder, truth)
    assert {field: how for field, how in found.items() if how not in ("right", "refused")} == {}
    assert "refused" in found.values()


MISFITS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "signed": lambda a: a.astype(f"i{a.itemsize}") if a.dtype.kind == "u" else a.astype("u8"),
    "wider": lambda a: a.astype("c16" if a.itemsize == 8 else "u8"),
    "narrower": lambda a: a.astype("u1" if a.itemsize > 1 else "?"),
    "fractions": lambda a: a.astype("f8"),
    "big endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "times": lambda a: a.astype("i8").view("M8[s]"),
    "text": lambda a: a.astype("U20"),
    "one short": lambda a: a[:-1],
    "one more": lambda a: np.concatenate([a, a[-1:]]),
    "twice": lambda a: np.concatenate([a, a]),
    "none": lambda a: a[:0],
    "one dimension more": lambda a: a[..., None],
    "no dimension": lambda a: a.reshape(-1)[0],
    "columns first": lambda a: np.asfortranarray(np.stack([a, a])),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_arrays_of_another_type_or_shape_are_refused(tmp_path: Path, misfit: str) -> None:
    folder = saved(tmp_path / "post")
    format = json.loads((folder / "id_map.json").read_text())["format"]
    header, arrays = read_array_folder(folder, "id_map.json", format, mmap=False)
    truth = answers(IdMap.load(folder))
    for name in ARRAYS:
        folder = tmp_path / name
        changed = MISFITS[misfit](arrays[name])
        write_array_folder(folder, "id_map.json", header, {**arrays, name: changed})
        same = changed.dtype == arrays[name].dtype and changed.shape == arrays[name].shape
        # In a child: an array that slips through may crash or hang the kernels.
        code, found = ask_child(lambda folder=folder: asked_in(folder, truth), seconds=10)
        assert (code, found) == (0, "right" if same else "refused"), name


# ------------------------------------------------- files too large to be digested at every opening (contract 10)

DAMAGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,  # as a power cut leaves them
    "ones": lambda data: np.full_like(data, 255),
    "noise": lambda data: np.random.default_rng(0).integers(0, 256, len(data), np.uint8),
    "shifted by a byte": lambda data: np.roll(data, 1),
    "backwards": lambda data: data[::-1].copy(),
}


def damage(file: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change the data of an array file, in place; its own header stays."""
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    start = 10 + int.from_bytes(content[8:10].tobytes(), "little")
    content[start:] = change(content[start:])
    file.write_bytes(content.tobytes())


def rows_or_refusal(folder: Path, probes: np.ndarray) -> str:
    """Look up by memory map, as a server does: "in range", "refused", or what went wrong."""
    try:
        id_map = IdMap.load(folder)
        rows = id_map.lookup(probes)
    except IdError:
        return "refused"
    wrong = rows[(rows < 1) | (rows >= id_map.num_rows)]
    return f"{len(wrong)} rows out of range, as {wrong[0]}" if len(wrong) else "in range"


@pytest.fixture
def nothing_digested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small files are read as large ones."""
    monkeypatch.setattr(array_folder, "_CHECKED_BYTES", 0)


@pytest.fixture(scope="module")
def some_keys() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 2**64, 60_000, np.uint64)


@pytest.fixture(scope="module")
def some_map(some_keys: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("map")
    base, later = some_keys[:55_000], some_keys[55_000:]
    built = IdMap.build(base, np.ones(len(base), np.int64), table="post", key_seed=0, tail_rows=5)
    built.add(later)[0].remove(base[:500]).save(folder)
    return folder


@pytest.mark.usefixtures("nothing_digested")
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_large_array_neither_crashes_nor_hangs_a_reader_and_its_rows_stay_in_range(
    some_map: Path, some_keys: np.ndarray, tmp_path: Path, name: str, kind: str
) -> None:
    folder = shutil.copytree(some_map, tmp_path / "post")
    (file,) = folder.glob(f"{name}-*")
    damage(file, DAMAGES[kind])
    strangers = np.random.default_rng(3).integers(0, 2**64, 100_000, np.uint64)
    probes = np.concatenate([some_keys, strangers])
    code, found = ask_child(lambda: rows_or_refusal(folder, probes), seconds=10)
    assert code == 0, f"exit code {code}; None: it hung"
    assert found in ("in range", "refused")


@pytest.mark.usefixtures("nothing_digested")
@pytest.mark.parametrize("name", ARRAYS)
def test_no_single_altered_byte_of_a_large_array_crashes_or_hangs_a_reader(tmp_path: Path, name: str) -> None:
    folder = saved(tmp_path / "post")
    (file,) = folder.glob(f"{name}-*")
    content = file.read_bytes()

    def read_all() -> dict[str, str]:
        found = {}
        for what, changed in changes(content):
            file.write_bytes(changed)
            found[what] = rows_or_refusal(folder, PROBES)
        return {what: how for what, how in found.items() if how not in ("in range", "refused")}

    assert ask_child(read_all) == (0, {})


def test_a_large_overlay_of_zeros_does_not_hang_a_reader(tmp_path: Path) -> None:
    keys = np.random.default_rng(4).integers(0, 2**64, 80_000, np.uint64)
    IdMap.build(keys[:9], np.ones(9, np.int64), table="t", key_seed=0, tail_rows=5).add(keys)[0].save(tmp_path)
    large = [file for file in tmp_path.glob("overlay*.npy") if file.stat().st_size > 1 << 20]
    assert large
    for file in large:
        damage(file, np.zeros_like)
    code, found = ask_child(lambda: rows_or_refusal(tmp_path, keys[::-1] + np.uint64(1)), seconds=10)
    assert code == 0, f"exit code {code}; None: it hung"
    assert found in ("in range", "refused")


# -------------------------------------------------------------------------------------------------- inverse


def inverse_in(folder: Path) -> Inverse:
    keys = np.arange(50, dtype=np.uint64)
    built = IdMap.build(keys, np.ones(50, np.int64), table="post", key_seed=0, tail_rows=5)
    lengths = np.arange(50) % 7
    inverse = Inverse("post", built.first_row, np.append(0, np.cumsum(lengths)), np.full(lengths.sum(), 97, np.uint8))
    inverse.save(folder)
    return inverse


def decode_all(folder: Path) -> str:
    try:
        inverse = Inverse.load(folder)
        return repr((inverse.table, inverse.decode(np.arange(57)).to_pylist()))
    except IdError:
        return "refused"


@pytest.mark.parametrize("name", ["inverse", "offsets", "data"])
def test_an_altered_or_cut_inverse_is_refused_or_does_not_matter(tmp_path: Path, name: str) -> None:
    inverse_in(tmp_path)
    truth = decode_all(tmp_path)
    assert truth != "refused"
    (file,) = tmp_path.glob(f"{name}[.-]*")

    def read_all(content: bytes = file.read_bytes()) -> dict[str, str]:
        found = {}
        for what, changed in changes(content):
            file.write_bytes(changed)
            try:
                found[what] = decode_all(tmp_path)
            except Exception as error:
                found[what] = repr(error)
        return {what: how for what, how in found.items() if how not in (truth, "refused")}

    assert ask_child(read_all) == (0, {})


@pytest.mark.usefixtures("nothing_digested")
@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("name", ["offsets", "data"])
def test_a_damaged_large_inverse_does_not_crash_its_reader(tmp_path: Path, name: str, kind: str) -> None:
    inverse_in(tmp_path)
    (file,) = tmp_path.glob(f"{name}-*")
    damage(file, DAMAGES[kind])
    code, found = ask_child(lambda: decode_all(tmp_path), seconds=10)
    assert code == 0
    assert found == "refused" or found.startswith("('post', ["), found
