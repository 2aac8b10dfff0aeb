"""A save that is killed, or runs out of room, leaves the old set or the new one, whole."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, Inverse, hash_strings
from tests.children import FORK, ask_child

STRINGS = [f"id_{i}" for i in range(600)]
KEYS = hash_strings(STRINGS, 0)[0]
NOTHING = "nothing"


def build(num: int) -> IdMap:
    return IdMap.build(KEYS[:num], np.ones(num, np.int64), table="post", key_seed=0, tail_rows=5)


def inverse_of(id_map: IdMap) -> Inverse:
    return Inverse.build(id_map, pa.array(STRINGS))


def rows_in(folder: Path) -> object:
    """What a reader finds: rows of a map, strings of an inverse, or nothing where none was ever saved whole."""
    try:
        if (folder / "inverse.json").exists():
            inverse = Inverse.load(folder, mmap=False)
            return inverse.decode(np.arange(inverse.first_row + len(inverse.offsets) - 1)).to_pylist()
        id_map = IdMap.load(folder, mmap=False)
        return [*id_map.own_rows(STRINGS).tolist(), id_map.num_rows]
    except IdError as error:
        assert "cannot be read" in str(error)
        return NOTHING


def files_named_by_the_header(folder: Path) -> set[str]:
    (header,) = folder.glob("*.json")
    return {header.name, *(entry["file"] for entry in json.loads(header.read_text())["arrays"].values())}


def kill_before(step: int) -> None:
    """Have this process killed before its call number `step` into the operating system, as by `kill -9`."""
    calls = itertools.count()

    def watch(_frame: FrameType, event: str, function: Any) -> None:
        if event != "c_call":
            return
        if (function.__module__ == "posix" or function.__name__ in ("write", "tofile")) and next(calls) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(watch)


SAVES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "another map": lambda: (build(400), build(500).remove(KEYS[:9])),
    "a map with the same base": lambda: (build(400), build(400).add(KEYS[400:450])[0]),
    "the first map": lambda: (None, build(400)),
    "an inverse": lambda: (inverse_of(build(400)), inverse_of(build(500))),
}


@pytest.mark.parametrize(
    "kind",
    [
        "another map",
        "an inverse",
        pytest.param("a map with the same base", marks=pytest.mark.slow),
        pytest.param("the first map", marks=pytest.mark.slow),
    ],
)
def test_a_save_killed_before_any_of_its_steps_leaves_the_old_set_or_the_new(tmp_path: Path, kind: str) -> None:
    old, new = SAVES[kind]()
    (tmp_path / "old").mkdir()
    if old is not None:
        old.save(tmp_path / "old")
    new.save(tmp_path / "new")
    before, after = rows_in(tmp_path / "old"), rows_in(tmp_path / "new")
    found = []
    for step in itertools.count():
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(step))
        code, _ = ask_child(lambda folder=folder, step=step: (kill_before(step), new.save(folder)))
        found.append(rows_in(folder))
        assert found[-1] in (before, after), f"step {step}"
        new.save(folder)
        assert rows_in(folder) == after, f"step {step}"
        assert {file.name for file in folder.iterdir()} == files_named_by_the_header(folder), f"step {step}"
        shutil.rmtree(folder)
        if code == 0:
            break
        assert code == -signal.SIGKILL
    changed = found.index(after)
    assert before != after
    assert changed > 20  # the steps were really many, and
    assert found == [before] * changed + [after] * (len(found) - changed)  # one of them made the change


def save_for_ever(folder: Path, *maps: IdMap) -> None:
    for id_map in itertools.cycle(maps):
        id_map.save(folder)


def killed_at_random(folder: Path, num_kills: int) -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 150_000, np.uint64)
    maps = [
        IdMap.build(k, np.ones(len(k), np.int64), table="post", key_seed=0, tail_rows=5) for k in (keys, keys[:90_000])
    ]
    delays = random.Random(1)
    maps[0].save(folder)
    for _ in range(num_kills):
        writer = FORK.Process(target=save_for_ever, args=(folder, *maps))
        writer.start()
        time.sleep(delays.uniform(0.005, 0.06))
        writer.kill()
        writer.join()
        assert writer.exitcode == -signal.SIGKILL
        loaded = IdMap.load(folder, mmap=False)
        (same,) = [m for m in maps if m.num_rows == loaded.num_rows]
        assert (loaded.lookup(keys) == same.lookup(keys)).all()
    maps[0].save(folder)
    assert {file.name for file in folder.iterdir()} == files_named_by_the_header(folder)


def test_a_writer_killed_at_any_moment_leaves_a_whole_map(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 15)


@pytest.mark.slow
def test_a_writer_killed_three_hundred_times_leaves_a_whole_map(tmp_path: Path) -> None:
    killed_at_random(tmp_path, 300)


def save_with_files_of_at_most(limit: int, new: IdMap | Inverse, folder: Path) -> tuple[bool, int | None, str] | None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write beyond fails, as on a full disk
    try:
        new.save(folder)
    except Exception as error:
        return isinstance(error, IdError), getattr(error, "errno", None), str(error)
    return None


@pytest.mark.parametrize("kind", ["another map", "a map with the same base", "an inverse"])
def test_a_full_disk_is_told_and_leaves_the_old_set(tmp_path: Path, kind: str) -> None:
    old, new = SAVES[kind]()
    old.save(tmp_path / "old")
    new.save(tmp_path / "new")
    before, after = rows_in(tmp_path / "old"), rows_in(tmp_path / "new")
    largest = max(file.stat().st_size for file in (tmp_path / "new").iterdir())
    for limit in [*range(0, largest, 97), largest - 1, largest]:
        folder = shutil.copytree(tmp_path / "old", tmp_path / str(limit))
        code, refusal = ask_child(lambda folder=folder, n=limit: save_with_files_of_at_most(n, new, folder))
        assert code == 0
        if limit == largest:
            assert refusal is None
        if refusal is None:
            assert rows_in(folder) == after, f"files of at most {limit} bytes"
        else:
            is_id_error, number, message = refusal
            assert is_id_error or number == errno.EFBIG, message
            assert str(folder) in message
            assert os.strerror(errno.EFBIG) in message
            assert rows_in(folder) == before
            assert {file.name for file in folder.iterdir()} >= files_named_by_the_header(folder)
            assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
