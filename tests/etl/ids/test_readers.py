"""Many read a map while one writes new versions of it: each reader sees one version, whole."""

from __future__ import annotations

import itertools
import pickle
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, Inverse, hash_strings
from tests.children import FORK

NUM_VERSIONS = 4
STRINGS = [f"id_{i}" for i in range(3000)]
KEYS = hash_strings(STRINGS, 0)[0]


def version(number: int) -> IdMap:
    """A map that bears its number as its table's name; no two versions agree on which ids they have."""
    own = np.arange(len(KEYS)) % (number + 2) == 0
    built = IdMap.build(
        KEYS[own], np.ones(own.sum(), np.int64), table=str(number), key_seed=0, tail_rows=5, fingerprint_bits=64
    )
    return built.add(KEYS[1 : number + 2])[0].remove(KEYS[:1])


def write(save: list[Callable[[Path], None]], folder: Path, pause_s: float, stop: Any, answer: Any) -> None:
    num_saves = 0
    for save_one in itertools.cycle(save):
        if stop.is_set():
            break
        save_one(folder)
        num_saves += 1
        time.sleep(pause_s)
    answer.send(num_saves)


def read(
    load: Callable[[Path], tuple[str, list[Any]]], truth: list[list[Any]], folder: Path, stop: Any
) -> Counter[str]:
    """Load and look up until told to stop: how often each version, anything else or an error was seen."""
    seen: Counter[str] = Counter()
    while not stop.is_set():
        try:
            table, content = load(folder)
            seen[table if content == truth[int(table)] else f"a mixture, by name {table}"] += 1
        except Exception as error:
            seen[repr(error)] += 1
    return seen


def read_and_answer(*args: Any, answer: Any) -> None:
    answer.send(read(*args))


def rows_of(folder: Path, mmap: bool) -> tuple[str, list[Any]]:
    id_map = IdMap.load(folder, mmap)
    return id_map.table, [*id_map.encode(STRINGS).tolist(), id_map.num_rows]


def strings_of(folder: Path) -> tuple[str, list[Any]]:
    inverse = Inverse.load(folder)
    return inverse.table, inverse.decode(np.arange(inverse.first_row + len(inverse.offsets) - 1)).to_pylist()


def read_during_refreshes(
    save: list[Callable[[Path], None]],
    load: Callable[..., tuple[str, list[Any]]],
    folder: Path,
    seconds: float,
    pause_s: float,
    kinds: list[dict[str, bool]],
) -> None:
    """One process writes; a process and a thread per kind of loading read."""
    truth = []
    for save_one in save:
        save_one(folder)
        truth.append(load(folder, **kinds[0])[1])
    assert all(a != b for a, b in itertools.combinations(truth, 2))
    stop, ends = FORK.Event(), []

    def start(target: Callable[..., None], *args: Any) -> Any:
        end, answer = FORK.Pipe(duplex=False)
        process = FORK.Process(target=target, args=args, kwargs={"answer": answer})
        process.start()
        ends.append(end)
        return process

    processes = [start(write, save, folder, pause_s, stop)]
    for kind in kinds:
        processes.append(start(read_and_answer, partial(load, **kind), truth, folder, stop))
    results: list[Counter[str]] = []
    threads = [
        threading.Thread(target=lambda k=kind: results.append(read(partial(load, **k), truth, folder, stop)))
        for kind in kinds
    ]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    stop.set()
    for thread in threads:
        thread.join(30)
    num_saves, *others = [end.recv() for end in ends]
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert num_saves > 2 * len(save)
    names = {str(number) for number in range(len(save))}
    for seen in (*results, *others):
        assert set(seen) == names, seen  # every version was read, and nothing else


MAP_KINDS = [{"mmap": True}, {"mmap": False}]


@pytest.mark.parametrize("num_versions", [2, NUM_VERSIONS])
def test_readers_during_refreshes_see_one_version_each(tmp_path: Path, num_versions: int) -> None:
    save = [version(number).save for number in range(num_versions)]
    read_during_refreshes(save, rows_of, tmp_path, seconds=3, pause_s=0.005, kinds=MAP_KINDS)


def test_readers_of_an_inverse_see_one_version_each(tmp_path: Path) -> None:
    save = [Inverse.build(version(number), pa.array(STRINGS)).save for number in range(NUM_VERSIONS)]
    read_during_refreshes(save, strings_of, tmp_path, seconds=2, pause_s=0.005, kinds=[{}])


@pytest.mark.slow
def test_readers_during_a_minute_of_refreshes_without_a_pause_see_one_version_each(tmp_path: Path) -> None:
    save = [version(number).save for number in range(2)]
    read_during_refreshes(save, rows_of, tmp_path, seconds=60, pause_s=0, kinds=MAP_KINDS)


def test_a_map_opened_before_a_refresh_answers_as_before(tmp_path: Path) -> None:
    version(0).save(tmp_path)
    held = [IdMap.load(tmp_path, mmap) for mmap in (True, False)]
    for number in (1, 2, 3):
        version(number).save(tmp_path)
        for id_map in held:
            assert (id_map.encode(STRINGS) == version(0).encode(STRINGS)).all()
            assert (id_map.own_rows(STRINGS) == version(0).own_rows(STRINGS)).all()


def test_a_pickle_of_a_map_gives_that_map_or_says_that_its_folder_moved_on(tmp_path: Path) -> None:
    version(0).save(tmp_path)
    pickled = pickle.dumps(IdMap.load(tmp_path))
    assert (pickle.loads(pickled).encode(STRINGS) == version(0).encode(STRINGS)).all()
    version(1).save(tmp_path)
    with pytest.raises(IdError, match=str(tmp_path)):
        pickle.loads(pickled)
