"""What everything that maps ids to rows must do, however it was made."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, Inverse, MinimalPerfectHash, hash_ints, hash_strings
from sparsefeed.etl.ids.base import Base
from tests.children import ask_child

SEED = 7
TAIL = 5
FIRST = 2 + TAIL
MAX_KEY = 2**64 - 1
BITS = [8, 16, 32, 64]
# So many that there are several parts, and slices for several threads.
KEYS = np.unique(
    np.append(np.random.default_rng(0).integers(1, MAX_KEY, 99_998, np.uint64), np.array([0, MAX_KEY], "u8"))
)
STRANGERS = np.setdiff1d(np.random.default_rng(1).integers(0, 2**64, 20_000, np.uint64), KEYS)
ASKED = np.concatenate([KEYS[::5], STRANGERS])


def build(keys: np.ndarray, bits: int = 16, strings: pa.Array | None = None) -> IdMap:
    given_: dict = {"table": "post", "key_seed": SEED, "tail_rows": TAIL, "fingerprint_bits": bits, "strings": strings}
    return IdMap.build(keys, np.ones(len(keys), np.int64), **given_)


def changed(keys: np.ndarray, bits: int) -> IdMap:
    """Half of the keys come from the base, half from the overlay; strangers came and went."""
    later = keys % np.uint64(2) == 1
    return build(keys[~later], bits).add(np.sort(keys[later]))[0].add(STRANGERS[:99])[0].remove(STRANGERS[:99])


def saved(id_map: IdMap, mmap: bool) -> IdMap:
    # The arrays of an open map outlive their files.
    with tempfile.TemporaryDirectory() as folder:
        id_map.save(Path(folder))
        return IdMap.load(Path(folder), mmap)


def pickled_folder(id_map: IdMap) -> IdMap:
    with tempfile.TemporaryDirectory() as folder:
        id_map.save(Path(folder))
        return pickle.loads(pickle.dumps(IdMap.load(Path(folder))))


MAPS: dict[str, Callable[[np.ndarray, int], IdMap]] = {
    "built": build,
    "changed": changed,
    "folded": lambda keys, bits: changed(keys, bits).fold()[0],
    "merged": lambda keys, bits: changed(keys, bits).merged(),
    "merged and mapped": lambda keys, bits: saved(changed(keys, bits).merged(), mmap=True),
    "changed after it was merged": lambda keys, bits: (
        changed(keys, bits).merged().add(STRANGERS[99:150])[0].remove(STRANGERS[99:150])
    ),
    "mapped": lambda keys, bits: saved(build(keys, bits), mmap=True),
    "read": lambda keys, bits: saved(build(keys, bits), mmap=False),
    "changed and mapped": lambda keys, bits: saved(changed(keys, bits), mmap=True),
    "pickled": lambda keys, bits: pickle.loads(pickle.dumps(changed(keys, bits))),
    "pickled by its folder": lambda keys, bits: pickled_folder(build(keys, bits)),
}


@dataclass(frozen=True)
class Mapper:
    """Keys to rows: the admitted ones to [first, first + num), others to [lowest, stop)."""

    rows: Callable[..., np.ndarray]
    first: int
    lowest: int
    stop: int


def function_mapper(keys: np.ndarray) -> Mapper:
    return Mapper(MinimalPerfectHash.build(keys, SEED).query, 0, 0 if len(keys) else -1, len(keys))


def base_mapper(keys: np.ndarray, bits: int) -> Mapper:
    return Mapper(Base.build(keys, bits).positions, 0, -1, len(keys))


def map_mapper(kind: str, keys: np.ndarray, bits: int) -> Mapper:
    id_map = MAPS[kind](keys, bits)
    return Mapper(id_map.lookup, FIRST, 2, id_map.num_rows)


MAKERS: dict[str, Callable[[np.ndarray], Mapper]] = {
    "function": function_mapper,
    **{f"base of {bits} bits": partial(base_mapper, bits=bits) for bits in BITS},
    **{f"{kind} map of {bits} bits": partial(map_mapper, kind, bits=bits) for kind in MAPS for bits in BITS},
}


WITH_OUT = ["function", "built map of 16 bits", "changed and mapped map of 64 bits"]


@pytest.fixture(scope="module", params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[np.ndarray], Mapper]:
    return MAKERS[request.param]


@pytest.fixture(scope="module")
def mapper(make: Callable[[np.ndarray], Mapper]) -> Mapper:
    return make(KEYS)


class TestEveryMapper:
    def test_no_two_admitted_keys_are_alike_and_their_rows_are_dense(self, mapper: Mapper) -> None:
        rows = mapper.rows(KEYS)
        assert (np.sort(rows) == np.arange(mapper.first, mapper.first + len(KEYS))).all()

    def test_a_stranger_gets_a_row_in_range(self, mapper: Mapper) -> None:
        rows = mapper.rows(STRANGERS)
        assert rows.min() >= mapper.lowest
        assert rows.max() < mapper.stop

    def test_the_row_of_a_key_depends_on_the_key_alone(self, mapper: Mapper) -> None:
        asked, rows = ASKED, mapper.rows(ASKED)
        assert (mapper.rows(asked) == rows).all()
        order = np.random.default_rng(2).permutation(len(asked))
        assert (mapper.rows(asked[order]) == rows[order]).all()
        for length in (1, 2, 63, 64, 65, 129):  # about the blocks of a kernel
            assert (mapper.rows(asked[1000 : 1000 + length]) == rows[1000 : 1000 + length]).all()
        assert (mapper.rows(np.repeat(asked[:5], 40)) == np.repeat(rows[:5], 40)).all()

    @pytest.mark.parametrize("num", [2, 300, 5000])
    def test_the_order_of_the_keys_does_not_show(self, make: Callable[[np.ndarray], Mapper], num: int) -> None:
        keys = KEYS[:: len(KEYS) // num][:num]
        expected = make(keys).rows(ASKED)
        for seed in range(2):
            assert (make(np.random.default_rng(seed).permutation(keys)).rows(ASKED) == expected).all()

    @pytest.mark.parametrize("num", [0, 1, 3])
    def test_a_few_keys_or_none_are_no_special_case(self, make: Callable[[np.ndarray], Mapper], num: int) -> None:
        few = make(KEYS[:num])
        rows, others = few.rows(KEYS[:num]), few.rows(STRANGERS)
        assert sorted(rows.tolist()) == list(range(few.first, few.first + num))
        assert others.min() >= few.lowest
        assert others.max() < max(few.stop, few.lowest + 1)

    def test_rows_are_new_arrays_of_int64(self, mapper: Mapper) -> None:
        for num in (0, 1, 70, len(KEYS)):
            rows, again = mapper.rows(KEYS[:num]), mapper.rows(KEYS[:num])
            assert (rows.dtype, rows.shape) == (np.int64, (num,))
            assert rows.flags.writeable
            assert not np.shares_memory(rows, again)

    def test_every_layout_of_keys_is_read_alike_and_left_as_it_was(self, mapper: Mapper, tmp_path: Path) -> None:
        keys = np.concatenate([KEYS[:300], STRANGERS[:301]])
        expected = mapper.rows(keys)
        spaced = np.zeros(3 * len(keys), np.uint64)
        spaced[::3] = keys
        table = np.zeros((len(keys), 2), np.uint64)
        table[:, 1] = keys
        odd = np.frombuffer(b"." + keys.tobytes(), np.uint8)[1:].view(np.uint64)
        fixed = keys.copy()
        fixed.setflags(write=False)
        np.save(tmp_path / "keys.npy", keys)
        layouts = {
            "every third": spaced[::3],
            "backwards": keys[::-1].copy()[::-1],
            "a column": table[:, 1],
            "unaligned": odd,
            "read-only": fixed,
            "mapped": np.load(tmp_path / "keys.npy", mmap_mode="r"),
            "big endian": keys.astype(">u8"),
        }
        for name, layout in layouts.items():
            assert (mapper.rows(layout) == expected).all(), name
            assert (layout == keys).all(), name


@pytest.fixture(scope="module", params=WITH_OUT)
def into(request: pytest.FixtureRequest) -> Callable[..., np.ndarray]:
    return MAKERS[request.param](KEYS).rows


PLACES: dict[str, Callable[[], np.ndarray]] = {
    "short": lambda: np.zeros(9, np.int64),
    "none": lambda: np.zeros(0, np.int64),
    "long": lambda: np.zeros(11, np.int64),
    "narrow": lambda: np.zeros(10, np.int32),
    "unsigned": lambda: np.zeros(10, np.uint64),
    "fractions": lambda: np.zeros(10),
    "big endian": lambda: np.zeros(10, ">i8"),
    "two dimensions": lambda: np.zeros((10, 1), np.int64),
    "read-only": lambda: np.frombuffer(bytes(80), np.int64),
}


class TestEveryMapperThatWritesWhereItIsTold:
    def test_rows_go_where_the_caller_wants_them_and_nowhere_else(self, into: Callable[..., np.ndarray]) -> None:
        out = np.full(len(ASKED), -7, np.int64)
        assert into(ASKED, out=out) is out
        assert (out == into(ASKED)).all()
        around = np.full(102, -7, np.int64)
        into(ASKED[:100], out=around[1:101])
        assert around[[0, -1]].tolist() == [-7, -7]
        assert (around[1:101] == out[:100]).all()
        assert into(ASKED[:0], out=out[:0]).tolist() == []

    @pytest.mark.parametrize("place", PLACES)
    def test_a_place_that_does_not_fit_the_rows_is_refused_before_it_is_written(
        self, into: Callable[..., np.ndarray], place: str
    ) -> None:
        def refusal() -> tuple[str, list[Any]]:
            out = PLACES[place]()
            with pytest.raises(IdError, match=r"out.*allowed") as caught:
                into(KEYS[:10], out=out)
            return caught.typename, out.ravel().tolist()

        # In a child: a kernel that writes beyond the array may end the process.
        assert ask_child(refusal) == (0, ("IdError", PLACES[place]().ravel().tolist()))

    def test_a_place_with_gaps_or_over_the_keys_is_filled_rightly_or_refused(
        self, into: Callable[..., np.ndarray]
    ) -> None:
        expected = into(ASKED)
        gaps, over = np.full(2 * len(ASKED), -7, np.int64), ASKED.copy()
        for out, keys in ((gaps[::2], ASKED), (over.view(np.int64), over)):
            try:
                assert (into(keys, out=out) == expected).all()
            except IdError as error:
                assert "out" in str(error)
        assert (gaps[1::2] == -7).all()


# --------------------------------------------------------------------------------------- any number of keys


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_any_number_of_keys_to_5000_is_mapped_one_to_one(seed: int) -> None:
    keys = np.random.default_rng(seed).integers(0, 2**64, 5000, np.uint64)
    for num in range(1, 5001):
        positions = MinimalPerfectHash.build(keys[:num], seed).query(keys[:num])
        assert np.bincount(positions, minlength=num).tolist() == [1] * num


def test_a_map_of_any_number_of_keys_to_5000_gives_each_its_own_row() -> None:
    keys = np.random.default_rng(3).integers(0, 2**64, 5000, np.uint64)
    for num in range(1, 5001):
        id_map = build(keys[:num], BITS[num % 4])
        rows = id_map.lookup(keys[:num])
        assert np.bincount(rows - FIRST, minlength=num).tolist() == [1] * num
        assert id_map.num_rows == FIRST + num


@pytest.mark.parametrize("num", [500, 5000, 20_000])
def test_the_order_of_the_keys_does_not_show_in_a_function(num: int) -> None:
    # Many sets, for it shows in few only: where one bucket evicts several at once.
    rng = np.random.default_rng(num)
    for seed in range(25):
        keys = rng.integers(0, 2**64, num, np.uint64)
        positions = MinimalPerfectHash.build(keys, seed).query(keys)
        assert (MinimalPerfectHash.build(rng.permutation(keys), seed).query(keys) == positions).all(), seed


# --------------------------------------------------------------------------------------------------- strings

# Every code point but lone surrogates, NUL and four-byte ones among them.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12) | st.sampled_from(
    ["\0", "\0\0", "a\0", "a", "\U0001f600", "\U0010ffff", "é", "e\u0301", "\ufeff", " ", "a" * 33, "\u202e"]
)


def build_strings(strings: list[str]) -> IdMap:
    return build(hash_strings(strings, SEED)[0], 16, pa.array(strings, pa.string()))


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, unique=True, max_size=30))
def test_any_strings_keep_their_rows_on_the_disk_and_decode_to_themselves(strings: list[str]) -> None:
    id_map = build_strings(strings)
    rows = id_map.encode(strings)
    assert sorted(rows.tolist()) == list(range(FIRST, FIRST + len(strings)))
    inverse = Inverse.build(id_map, pa.array([*strings, None, ""], pa.string()))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        id_map.save(folder / "ids")
        inverse.save(folder / "inverse")
        for mmap in (True, False):
            loaded = IdMap.load(folder / "ids", mmap)
            read = Inverse.load(folder / "inverse", mmap)
            assert loaded.encode(strings).tolist() == rows.tolist()
            assert loaded.encode([None, "", *strings, ""]).tolist() == [1, 1, *rows.tolist(), 1]
            assert inverse.decode(rows).to_pylist() == read.decode(rows).to_pylist() == strings


@pytest.mark.parametrize("kind", MAPS)
def test_null_and_empty_strings_are_row_one_in_every_layout_of_every_map(kind: str) -> None:
    id_map = MAPS[kind](hash_strings(["a", "b"], SEED)[0], 16)
    strings = ["a", None, "", "b", ""]
    boxed = np.array(strings, object)
    array = pa.array(strings, pa.string())
    layouts = [
        strings,
        boxed,
        array,
        array.cast(pa.large_binary()),
        array.dictionary_encode(),
        pa.chunked_array([array]),
    ]
    for layout in layouts:
        rows = id_map.encode(layout)
        assert rows[[1, 2, 4]].tolist() == [1, 1, 1]
        assert sorted(rows[[0, 3]].tolist()) == [FIRST, FIRST + 1]
    assert id_map.encode([None]).tolist() == id_map.encode([""]).tolist() == [1]
    assert id_map.encode([]).tolist() == []


@pytest.mark.parametrize("wrong", ["\ud800", "a\udfff", "\udc80b"])
def test_a_lone_surrogate_is_no_string_and_says_so(wrong: str) -> None:
    id_map = build_strings(["a"])
    for layout in ([wrong], ["a", wrong], np.array(["a", wrong], object), np.array([wrong])):
        with pytest.raises(IdError, match=r"surrogates not allowed.*allowed: str"):
            id_map.encode(layout)


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, unique=True, min_size=1, max_size=12), st.data())
def test_a_string_given_twice_is_named(strings: list[str], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(strings))
    with pytest.raises(IdError) as caught:
        build_strings([*strings, twice])
    assert f'ids/post: "{twice}" is given 2 times; give every id once' in str(caught.value)
    with pytest.raises(IdError) as caught:
        build_strings(["other"]).add(hash_strings([*strings, twice], SEED)[0], [*strings, twice])
    assert f'"{twice}" is given 2 times' in str(caught.value)


def test_bytes_that_are_no_text_are_named_when_given_twice() -> None:
    strings = [b"\xff\xfe", b"a", b"\xff\xfe"]
    with pytest.raises(IdError, match="is given 2 times; give every id once"):
        build(hash_strings(strings, SEED)[0], 16, pa.array(strings, pa.binary()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, MAX_KEY), unique=True, min_size=1, max_size=60), st.data())
def test_a_key_given_twice_is_named_by_function_base_and_map(keys: list[int], data: st.DataObject) -> None:
    twice = data.draw(st.sampled_from(keys))
    array = np.array(data.draw(st.permutations([*keys, twice])), np.uint64)
    for make in (MinimalPerfectHash.build, lambda k: Base.build(k, 16), build, lambda k: build(k[:0]).add(k)):
        with pytest.raises(IdError, match=f"key {twice:#018x} is given"):
            make(array)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("values", [np.arange(-50, 50), np.array([2**64 - 1, 0, 5], "u8"), np.arange(9, dtype="i1")])
def test_integers_are_mapped_by_their_hash(kind: str, values: np.ndarray) -> None:
    id_map = MAPS[kind](hash_ints(values, SEED), 16)
    rows = id_map.encode(values)
    assert sorted(rows.tolist()) == list(range(FIRST, FIRST + len(values)))
    assert (rows == id_map.lookup(hash_ints(values, SEED))).all()
