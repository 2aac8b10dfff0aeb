"""What others offer for ids -> rows, each in a process of its own; imports nothing of sparsefeed.

    python ids.py words FOLDER           write FOLDER/words.parquet: wordfreq's distinct words and their frequencies
    python ids.py keys PEER FOLDER       measure over FOLDER/keys.npy, looking up keys[batch]; prints JSON
    python ids.py words PEER FOLDER      measure over FOLDER/words.parquet, looking up words[batch]; prints JSON

Every peer gets the input it is made for (lists of str and int, Arrow strings, arrays, frames), and making that input
is not timed. The strings of a batch are new ones each time, as they are when logs are read: Python keeps a string's
hash inside it, and the second look-up of one object would measure a cache. A time is the median of up to
nine calls, fewer once four seconds have gone.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

BATCHES = ("frequent", "uniform")
MAX_REPEATS, ENOUGH_S = 9, 4.0


def resident_bytes() -> int:
    """Memory of this process that is in RAM, freed pages given back first."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def seconds(call: Callable[[Any], Any], fresh: Callable[[], Any]) -> float:
    """Median time of `call(fresh())`, the making of its argument not counted."""
    times: list[float] = []
    while sum(times) < ENOUGH_S and len(times) < MAX_REPEATS:
        argument = fresh()
        started = time.perf_counter()
        call(argument)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return call(), time.perf_counter() - started


class Input:
    """The ids of a folder and the batches to look up: positions in the ids."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, folder
        names = BATCHES if kind == "words" else ("uniform",)
        self.batches = {name: np.load(folder / f"{kind}_{name}.npy") for name in names}

    def ids(self) -> Any:
        """uint64 array, or an Arrow string array."""
        if self.kind == "keys":
            return np.load(self.folder / "keys.npy")
        return pq.read_table(self.folder / "words.parquet", columns=["word"])["word"].combine_chunks()

    def look_up(self, call: Callable[[Any], Any], form: Callable[[Any], Any]) -> dict[str, float]:
        """Nanoseconds per id of `call(form(ids of a batch))`, by batch."""
        ids = self.ids()
        taken = {name: ids[batch] if self.kind == "keys" else ids.take(batch) for name, batch in self.batches.items()}
        del ids
        return {
            name: 1e9 * seconds(call, lambda some=some: form(some)) / len(some)  # type: ignore[misc]
            for name, some in taken.items()
        }


def python_dict(given: Input) -> dict[str, Any]:
    """dict and map: memory is the dict's, its strings' or integers', and its rows', as sys.getsizeof gives them."""
    ids = given.ids()
    listed = ids.tolist() if given.kind == "keys" else ids.to_pylist()
    rows = list(range(len(listed)))
    table, build_s = timed(lambda: dict(zip(listed, rows, strict=True)))
    num_bytes = sys.getsizeof(table) + sum(map(sys.getsizeof, table)) + sum(map(sys.getsizeof, table.values()))
    as_list = (lambda keys: keys.tolist()) if given.kind == "keys" else (lambda words: words.to_pylist())
    times = given.look_up(lambda batch: list(map(table.get, batch)), as_list)
    return {"threads": 1, "bytes": num_bytes, "build_s": build_s, "lookup_ns": times}


def pandas_index(given: Input, dtype: str | None = None) -> dict[str, Any]:
    """pandas.Index and get_indexer: memory is the process's growth, the table of the first look-up included."""
    import pandas as pd

    def form(some: Any) -> Any:
        if given.kind == "keys":
            return some
        return pd.Index(some.to_pandas() if dtype is None else np.array(some.to_pylist(), object), dtype=dtype)

    small = form(given.ids()[:10])
    pd.Index(small).get_indexer(small)  # what the first call of all imports
    before = resident_bytes()
    ids = form(given.ids())
    started = time.perf_counter()
    index = pd.Index(ids)
    index.get_indexer(ids[:1])
    build_s = time.perf_counter() - started
    del ids
    num_bytes = resident_bytes() - before
    times = given.look_up(index.get_indexer, form)
    return {"threads": 1, "bytes": num_bytes, "build_s": build_s, "lookup_ns": times}


def pandas_objects(given: Input) -> dict[str, Any]:
    """The same over Python strings rather than Arrow's."""
    return pandas_index(given, "object")


def polars_join(given: Input) -> dict[str, Any]:
    """A left join that keeps the order: there is no table to keep, it is made at each call."""
    import polars as pl

    ids = given.ids()
    vocabulary = pl.DataFrame({"id": pl.Series(ids), "row": np.arange(len(ids), dtype=np.int64)})

    def join(batch: Any) -> Any:
        return batch.join(vocabulary, on="id", how="left", maintain_order="left")["row"]

    times = given.look_up(join, lambda some: pl.DataFrame({"id": pl.Series(some)}))
    return {"threads": pl.thread_pool_size(), "lookup_ns": times}


def bbhash(given: Input) -> dict[str, Any]:
    """PyMPHF over integers, gamma 1; it answers one key at a time."""
    from bbhash import PyMPHF

    keys = given.ids().tolist()
    function, build_s = timed(lambda: PyMPHF(keys, len(keys), 1, 1.0))
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "function"
        function.save(str(saved))
        num_bytes = saved.stat().st_size
    times = given.look_up(lambda batch: list(map(function.lookup, batch)), lambda keys: keys.tolist())
    return {"threads": 1, "bytes": num_bytes, "build_s": build_s, "lookup_ns": times}


def phobic(given: Input) -> dict[str, Any]:
    """At its default load factor of 0.5, so two rows per key: above 0.6 a build takes minutes, at 1 it never ends."""
    import phobic as library

    ids = given.ids()
    raw = [key.tobytes() for key in ids]
    function, build_s = timed(lambda: library.build(raw, seed=1, num_threads=1, assume_unique=True))
    times = given.look_up(
        lambda batch: function.lookup_fixed(batch, num_threads=1), lambda keys: keys.view(np.uint8).reshape(-1, 8)
    )
    num_bytes = function.bits_per_key * len(ids) / 8
    return {"threads": 1, "bytes": num_bytes, "build_s": build_s, "lookup_ns": times}


def categorify(given: Input) -> dict[str, Any]:
    """NVTabular's Categorify.transform of a frame, vocabulary given and held in memory."""
    import pandas as pd
    from merlin.dag import ColumnSelector
    from nvtabular.ops import Categorify

    ids = given.ids()
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = pd.Series(np.array(ids.to_pylist(), object))
        operator = Categorify(vocabs={"id": vocabulary}, out_path=folder)
        chosen = ColumnSelector(["id"])
        operator.transform(chosen, pd.DataFrame({"id": vocabulary[:1]}))  # reads the vocabulary into its cache
        times = given.look_up(
            lambda frame: operator.transform(chosen, frame),
            lambda some: pd.DataFrame({"id": np.array(some.to_pylist(), object)}),
        )
    return {"threads": 1, "lookup_ns": times}


PEERS: dict[str, Callable[[Input], dict[str, Any]]] = {
    "dict": python_dict,
    "pandas": pandas_index,
    "pandas-objects": pandas_objects,
    "polars": polars_join,
    "bbhash": bbhash,
    "phobic": phobic,
    "nvtabular": categorify,
}


def write_words(folder: Path) -> None:
    """All words of the large lists of all languages; a word's frequencies are summed over the languages."""
    import gzip

    import msgpack
    import pyarrow as pa
    import wordfreq

    frequencies: dict[str, float] = {}
    for path in sorted((Path(wordfreq.__file__).parent / "data").glob("large_*.msgpack.gz")):
        with gzip.open(path) as file:
            by_centibel = msgpack.load(file, raw=False)[1:]  # list i has the words of frequency 10^(-i / 100)
        for i, words in enumerate(by_centibel):
            for word in words:
                frequencies[word] = frequencies.get(word, 0.0) + 10 ** (-i / 100)
    table = pa.table({"word": list(frequencies), "frequency": list(frequencies.values())})
    partial = folder / "words.parquet.partial"
    pq.write_table(table, partial)
    partial.rename(folder / "words.parquet")


def main() -> None:
    """Write the words, or measure one peer."""
    kind, *peer, folder = sys.argv[1:]
    if peer:
        print(json.dumps(PEERS[peer[0]](Input(kind, Path(folder)))))
    else:
        write_words(Path(folder))


if __name__ == "__main__":
    main()
