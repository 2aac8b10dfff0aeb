"""The suite `ids`: the id map against its targets and against what others offer, in one run on two cores.

Ours and the peers' figures come minutes apart on one machine; where a target is a ratio to a cost of the machine
itself (two random accesses, one thread against two), both are taken in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clock import in_turn, threads, times_in_turn
from growth import growth
from in_place import in_place
from keys import BATCH, alike_or_lost, in_batches, keys_of
from large_map import measure_large
from numba import njit
from numpy.typing import NDArray
from peers.environment import Peers
from results import Recorder, Row

from sparsefeed.etl.ids import IdMap, MinimalPerfectHash, hash_ints, hash_strings
from sparsefeed.etl.kernels.threads import over_slices
from sparsefeed.workflows.console import stage
from sparsefeed.workflows.recipe import Recipe
from sparsefeed.workflows.workspace import Workspace

__all__ = ["ids"]

NUM_KEYS, NUM_LARGE = 10_000_000, 100_000_000
KEYS, WORDS, LARGE, CALL = "10M keys", "6.6M words", "100M keys", "a call of 1,000"
TAIL_ROWS = 1024
PLOT = Path(__file__).parent.parent / "docs" / "img" / "ids_growth.svg"
Measure: TypeAlias = "Callable[[str, str], Mapping[str, Any]]"  # kind of ids, peer -> its JSON
NAMES = {
    "dict": "python dict",
    "pandas": "pandas Index",
    "pandas-objects": "pandas Index of objects",
    "polars": "polars join",
    "nvtabular": "NVTabular Categorify",
    "bbhash": "bbhash",
    "phobic": "phobic at load 0.5",
}


def ids(recipe: Recipe, workspace: Workspace, record: Recorder) -> list[Row]:
    """What the id map promises, and the same of its peers, whose environment and words are made once."""
    folder = workspace.root.parent / "ids"
    folder.mkdir(parents=True, exist_ok=True)
    with threads(2):
        with stage("peers") as progress:
            progress(0, 1, "making the peers' environment and the words, once")
            peers = Peers(workspace.root.parent / "peers-ids", folder)
            peers.write_words()
        with stage("keys"):
            rows, of_keys = measure_keys(record, folder, NUM_KEYS)
            rows += keys_beside_peers(record, of_keys, NUM_KEYS, peers.measure)
        with stage("words"):
            words, of_words, num_words = measure_words(record, folder)
            rows += words + words_beside_peers(record, of_words, num_words, peers.measure)
        with stage("accepts"):
            rows += false_accepts(record, NUM_KEYS)
        with stage("large map"):
            rows += measure_large(record, LARGE, folder / "large", NUM_LARGE)
        with stage("growth"):
            rows += growth(record, folder / "growth", PLOT)
        return rows + in_place(recipe, workspace, record)


@dataclass(frozen=True)
class Figures:
    """What one side measured over the same ids; None where it has no such thing."""

    bits: float | None
    build_ns: float | None
    lookup_ns: Mapping[str, float]  # by batch

    @classmethod
    def of(cls, measured: Mapping[str, Any], num: int) -> Figures:
        """A peer's answer, per id."""
        num_bytes, build_s = measured.get("bytes"), measured.get("build_s")
        bits = None if num_bytes is None else 8 * num_bytes / num
        return cls(bits, None if build_s is None else 1e9 * build_s / num, measured["lookup_ns"])


def _beside(record: Recorder, case: str, what: str, ours: Figures, peer: str, theirs: Figures) -> list[Row]:
    """A row for each figure that both have."""
    rows = []
    if ours.bits is not None and theirs.bits is not None:
        rows.append(record.row(case, f"{what} bits per id", ours.bits, "bits", NAMES[peer], theirs.bits))
    if ours.build_ns is not None and theirs.build_ns is not None:
        rows.append(record.row(case, f"{what} build", ours.build_ns, "ns/id", NAMES[peer], theirs.build_ns))
    for batch, time_ns in ours.lookup_ns.items():
        rows.append(record.row(case, f"{what} lookup, {batch}", time_ns, "ns/id", NAMES[peer], theirs.lookup_ns[batch]))
    return rows


# --- integers

# Beside whom our function or map stands, and on how many threads each.
KEY_PEERS = (
    ("bbhash", "function", 1),
    ("phobic", "function", 1),
    ("dict", "map", 1),
    ("pandas", "map", 1),
    ("polars", "map", 2),
)


def keys_beside_peers(
    record: Recorder, ours: Mapping[tuple[str, int], Figures], num: int, measure: Measure
) -> list[Row]:
    """Each peer over the keys and the batch that `measure_keys` left in the folder."""
    rows = []
    for peer, what, number in KEY_PEERS:
        theirs = Figures.of(measure("keys", peer), num)
        rows += _beside(record, f"{KEYS}, {_threads(number)} each", what, ours[what, number], peer, theirs)
    return rows


def measure_keys(record: Recorder, folder: Path, num: int) -> tuple[list[Row], dict[tuple[str, int], Figures]]:
    """Random 64-bit keys: function and map, on one thread and two; the figures by what and threads."""
    random = np.random.default_rng(0)
    keys, batch = keys_of(0, num), random.integers(0, num, BATCH)
    np.save(folder / "keys.npy", keys)
    np.save(folder / "keys_uniform.npy", batch)
    chosen, out = keys[batch], np.empty(BATCH, np.int64)
    counts = np.ones(num, np.int64)
    made: dict[str, Any] = {}

    def build(what: str, number: int, some: NDArray[np.uint64]) -> None:
        with threads(number):
            if what == "function":
                made[what] = MinimalPerfectHash.build(some)
            else:
                made[what] = _map_of(some, counts[: len(some)])

    def look_up(what: str, number: int) -> None:
        with threads(number):
            if what == "function":
                made[what].query(chosen, out=out)
            else:
                made[what].lookup(chosen, out=out)

    both = [(what, number) for what in ("function", "map") for number in (1, 2)]
    for what, number in both:
        build(what, number, keys[: BATCH // 4])  # compiled here, not there
        look_up(what, number)
    builds = {f"{w} {n}": lambda w=w, n=n: build(w, n, keys) for w, n in both}  # type: ignore[misc]
    built_s = times_in_turn({**builds, **{f"arithmetic {n}": lambda n=n: count_up(n) for n in (1, 2)}}, 7)  # type: ignore[misc]
    lookup_s = in_turn({f"{w} {n}": lambda w=w, n=n: look_up(w, n) for w, n in both}, 9)  # type: ignore[misc]
    bits = {"function": made["function"].bits_per_key, "map": 8 * made["map"].lookup_bytes / num}
    rows = [record.row(KEYS, "function bits per id", bits["function"], "bits")]
    ours = {}
    for what, number in both:
        build_ns, lookup_ns = (
            1e9 * median(built_s[f"{what} {number}"]) / num,
            1e9 * lookup_s[f"{what} {number}"] / BATCH,
        )
        ours[what, number] = Figures(bits[what], build_ns, {"uniform": lookup_ns})
        rows.append(record.row(KEYS, f"{what} build, {_threads(number)}", build_ns, "ns/id"))
        rows.append(record.row(KEYS, f"{what} lookup, {_threads(number)}", lookup_ns, "ns/id"))
    for what, metric in (("function", "function build"), ("arithmetic", "arithmetic alone")):
        # Of the quickest: a neighbour on the machine slows one side of a median and not the other.
        speed_up = min(built_s[f"{what} 1"]) / min(built_s[f"{what} 2"])
        rows.append(record.row(KEYS, f"{metric}, speed-up of two threads", speed_up, "x"))
    rows += _against_the_floor(record, num)
    rows += _short_call(record, "lookup of keys", made["map"].lookup, chosen[:1000])
    rows.append(record.row("wrong answers", KEYS, alike_or_lost(made["map"], num), "ids"))
    return rows, ours


def _against_the_floor(record: Recorder, num: int) -> list[Row]:
    """XXH64, function and fingerprint of integer ids on one thread, over two independent random accesses."""
    random = np.random.default_rng(1)
    values = random.permutation(num).astype(np.int64) << 20
    id_map = _map_of(hash_ints(values, 0), np.ones(num, np.int64))
    batches = [values[random.integers(0, num, BATCH)] for _ in range(4)]
    function_bytes = int(id_map.base.function.bits_per_key * num / 8)
    # As large as what a lookup reads; written, for pages never written are all one page.
    bytes_, words = np.ones(function_bytes, np.uint8), np.ones(num, np.uint16)
    places = [
        (random.integers(0, len(bytes_), BATCH).astype(np.uint64), random.integers(0, num, BATCH).astype(np.uint64))
        for _ in batches
    ]
    out = np.empty(BATCH, np.int64)
    calls = {}
    for i, (batch, (first, second)) in enumerate(zip(batches, places, strict=True)):
        calls[f"ours {i}"] = lambda batch=batch: id_map.encode(batch, out=out)
        calls[f"floor {i}"] = lambda first=first, second=second: two_accesses(bytes_, first, words, second, out)
    with threads(1):
        in_turn(calls, 1)
        times = in_turn(calls, 15)
    ours, floor = (
        float(np.median([1e9 * s / BATCH for name, s in times.items() if name.startswith(side)]))
        for side in ("ours", "floor")
    )
    return [record.row(KEYS, "hash, query and fingerprint", ours, "ns/id", "two random accesses", floor)]


def count_up(number: int) -> None:
    """Half a second of arithmetic that touches no memory: what a second thread is worth on this machine."""
    with threads(number):
        over_slices(_multiply, 1 << 30, 1)


@njit(nogil=True, cache=True)
def _multiply(start: int, stop: int) -> np.uint64:
    product = np.uint64(1)
    for i in range(start, stop):
        product = product * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(i)
    return product


@njit(nogil=True, cache=True)
def two_accesses(
    bytes_: NDArray[np.uint8],
    first: NDArray[np.uint64],
    words: NDArray[np.uint16],
    second: NDArray[np.uint64],
    out: NDArray[np.int64],
) -> None:
    """Read a byte and a 16-bit word at places known beforehand: nothing waits for anything."""
    for i in range(len(out)):
        out[i] = np.int64(bytes_[first[i]]) + np.int64(words[second[i]])


# --- words


WORD_PEERS = ("dict", "pandas", "pandas-objects", "polars", "nvtabular")


def words_beside_peers(record: Recorder, ours: Figures, num: int, measure: Measure) -> list[Row]:
    """Each peer over the words and the batches that `measure_words` left in the folder."""
    rows = []
    for peer in WORD_PEERS:
        measured = measure("words", peer)
        case = f"{WORDS}, 2 threads against {measured['threads']}"
        rows += _beside(record, case, "map", ours, peer, Figures.of(measured, num))
    return rows


def measure_words(record: Recorder, folder: Path) -> tuple[list[Row], Figures, int]:
    """The words of words.parquet, looked up as often as people use them, and each as often as another.

    The figures are those of two threads; the number is that of the words.
    """
    table = pq.read_table(folder / "words.parquet")
    words, frequency = table["word"].combine_chunks(), table["frequency"].to_numpy()
    random = np.random.default_rng(2)
    batches = {
        "frequent": random.choice(len(words), BATCH, p=frequency / frequency.sum()),
        "uniform": random.integers(0, len(words), BATCH),
    }
    for name, batch in batches.items():
        np.save(folder / f"words_{name}.npy", batch)
    counts = np.maximum(np.rint(1e9 * frequency), 1).astype(np.int64)
    made: list[IdMap] = []

    def build() -> None:
        keys, _ = hash_strings(words, 0)
        made[:] = [_map_of(keys, counts, words)]

    build()
    build_s = in_turn({"build": build}, 3)["build"]
    out = np.empty(BATCH, np.int64)
    strings = {name: words.take(pa.array(batch)) for name, batch in batches.items()}
    calls = {name: lambda some=some: made[0].encode(some, out=out) for name, some in strings.items()}
    rows, lookup_ns = [], {}
    for number in (1, 2):
        with threads(number):
            in_turn(calls, 1)
            lookup_ns = {name: 1e9 * s / BATCH for name, s in in_turn(calls, 15).items()}
        for name, time_ns in lookup_ns.items():
            rows.append(record.row(WORDS, f"map lookup, {name}, {_threads(number)}", time_ns, "ns/id"))
    id_map = made[0]
    own = np.unique(id_map.encode(words))
    rows.append(record.row("wrong answers", WORDS, len(words) - int(id_map.known(own).sum()), "ids"))
    rows += _short_call(record, "encode of strings", id_map.encode, strings["frequent"].slice(0, 1000))
    ours = Figures(8 * id_map.lookup_bytes / len(words), 1e9 * build_s / len(words), lookup_ns)
    return rows, ours, len(words)


# --- both


def false_accepts(record: Recorder, num: int) -> list[Row]:
    """Unseen keys taken for admitted ones: how many, against 2^-bits, in standard deviations of the binomial."""
    keys, rows = keys_of(0, num), []
    for bits, num_unseen in ((8, 2 * num), (16, 20 * num), (32, 20 * num)):
        id_map = IdMap.build(
            keys,
            np.ones(num, np.int64),
            table="accepts",
            key_seed=0,
            tail_rows=TAIL_ROWS,
            fingerprint_bits=bits,
        )
        accepted = sum(
            int(np.count_nonzero(id_map.known(id_map.lookup(unseen)))) for unseen in in_batches(num, num + num_unseen)
        )
        share = 2.0**-bits
        sigmas = abs(accepted - num_unseen * share) / np.sqrt(num_unseen * share * (1 - share))
        rows += [
            record.row("false accepts", f"{bits} bits", accepted / num_unseen, "", f"2^-{bits}", share),
            record.row("false accepts", f"{bits} bits, distance from 2^-{bits}", sigmas, "sigma"),
            record.row("wrong answers", f"{KEYS}, {bits} bits", alike_or_lost(id_map, num), "ids"),
        ]
    return rows


def _map_of(keys: NDArray[np.uint64], counts: NDArray[np.int64], strings: pa.Array | None = None) -> IdMap:
    return IdMap.build(keys, counts, table="bench", key_seed=0, tail_rows=TAIL_ROWS, strings=strings)


def _short_call(record: Recorder, what: str, call: Any, given: Any) -> list[Row]:
    in_turn({"warm up": lambda: call(given)}, 200)
    return [record.row(CALL, what, 1e6 * in_turn({"call": lambda: call(given)}, 2000)["call"], "us")]


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"
