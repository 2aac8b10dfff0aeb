from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import IdMap, hash_strings
from sparsefeed.etl.ids.array_folder import sha256_of_header
from tests.etl.ids.narrow import narrow_hash, use_narrow_keys

TAIL = 5
FIRST = 2 + TAIL


def keys_of(*strings: str) -> np.ndarray:
    return hash_strings(list(strings), 0)[0]


def build(strings: list[str], counts: list[int] | None = None, /, **options: object) -> IdMap:
    settings_: dict = {"table": "post", "key_seed": 0, "tail_rows": TAIL, "strings": pa.array(strings, pa.string())}
    return IdMap.build(keys_of(*strings), np.array(counts or [1] * len(strings)), **{**settings_, **options})


def tail_of(string: str) -> int:
    return 2 + int(keys_of(string)[0]) % TAIL


def words(num: int) -> list[str]:
    return [f"id_{i}" for i in range(num)]


@pytest.fixture
def narrow_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    use_narrow_keys(monkeypatch)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), st.integers(1, 4), max_size=40
    ),
    st.integers(1, 4),
    st.none() | st.integers(1, 20),
    st.sampled_from([8, 16, 32, 64]),
)
def test_the_most_frequent_ids_get_rows_of_their_own_and_the_rest_the_tail(
    counts: dict[str, int], min_count: int, max_ids: int | None, bits: int
) -> None:
    built = build(list(counts), list(counts.values()), min_count=min_count, max_ids=max_ids, fingerprint_bits=bits)
    keys = dict(zip(counts, keys_of(*counts).tolist(), strict=True))
    ranked = sorted((s for s in counts if counts[s] >= min_count), key=lambda s: (-counts[s], keys[s]))
    chosen = ranked[:max_ids]
    assert sorted(built.encode(chosen).tolist()) == list(range(FIRST, FIRST + len(chosen)))
    rest = [s for s in counts if s not in chosen]
    assert (built.own_rows(rest) == -1).all()
    if bits == 64:
        assert built.encode(rest).tolist() == [tail_of(s) for s in rest]
    assert (built.num_admitted, built.num_rows) == (len(chosen), FIRST + len(chosen))


def test_invalid_places_are_row_one_whatever_their_key() -> None:
    built = build(["a"])
    rows = built.lookup(np.concatenate([keys_of("a"), keys_of("a")]), np.array([True, False]))
    assert rows.tolist() == [FIRST, 1]
    assert built.encode([None, "", "a"]).tolist() == [1, 1, FIRST]


def test_a_map_of_no_ids_sends_everything_to_the_tail() -> None:
    built = build([])
    assert built.encode(["x", None]).tolist() == [tail_of("x"), 1]
    assert (built.num_rows, built.capacity_rows, built.num_admitted) == (FIRST, 64, 0)
    grown, rows = built.add(keys_of("x"))
    assert grown.encode(["x"]).tolist() == rows.tolist() == [FIRST]
    folded, old_row = grown.fold()
    assert old_row[folded.encode(["x"])].tolist() == [FIRST]
    assert build([]).fold()[0].encode(["x"]).tolist() == [tail_of("x")]


def test_only_a_row_of_ones_own_is_known() -> None:
    built = build(["a", "b"])
    rows = built.encode(["a", "never seen", None])
    assert built.known(rows).tolist() == [True, False, False]
    assert not built.known(np.array([0, 1, 2, FIRST - 1])).any()


@pytest.mark.parametrize(("num", "capacity"), [(0, 64), (64 - FIRST, 64), (65 - FIRST, 128), (200, 256)])
def test_capacity_doubles_from_64(num: int, capacity: int) -> None:
    assert build(words(num)).capacity_rows == capacity


def test_an_unseen_key_is_taken_for_an_admitted_one_as_often_as_stated() -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 2**64, 20_000, np.uint64)
    unseen = rng.integers(0, 2**64, 400_000, np.uint64)
    options: dict = {"table": "post", "key_seed": 0, "tail_rows": TAIL}
    shares = {
        bits: IdMap.build(keys, np.ones(len(keys), np.int64), fingerprint_bits=bits, **options)
        for bits in (8, 16, 32, 64)
    }
    false = {bits: int(built.known(built.lookup(unseen)).sum()) for bits, built in shares.items()}
    assert abs(false[8] - 400_000 / 256) < 5 * (400_000 / 256) ** 0.5
    assert 0 < false[16] < 25  # 6.1 expected
    assert false[32] == false[64] == 0


# ------------------------------------------------------------------------------------------------ refusals


def test_an_id_given_twice_is_named() -> None:
    with pytest.raises(IdError, match=r'ids/post: "id_1" is given 2 times; give every id once'):
        build([*words(3), "id_1"])


def test_a_key_given_twice_without_strings_is_named() -> None:
    with pytest.raises(IdError, match=r"ids/post: key 0x0{15}9 is given more than once; .* strings that tell"):
        IdMap.build(np.array([9, 4, 9], np.uint64), np.ones(3, np.int64), table="post", key_seed=0, tail_rows=TAIL)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fingerprint_bits": 12}, "fingerprint_bits is 12; allowed: 8, 16, 32, 64"),
        ({"tail_rows": 0}, "tail_rows is 0"),
        ({"strings": pa.array(["a"])}, "1 strings for 2 keys; give one of each"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(IdError, match=message):
        build(["a", "b"], **options)


def test_a_row_that_is_anothers_cannot_be_put() -> None:
    built = build(["a", "b"])
    row_a, row_b = built.encode(["a", "b"])
    assert built.upsert(keys_of("a"), np.array([row_a])).encode(["a", "b"]).tolist() == [row_a, row_b]
    for strings, rows in ((["a"], [row_b]), (["c"], [row_a]), (["c", "d"], [50, 50])):
        with pytest.raises(IdError, match=r"row \d+ is another id's; allowed: rows from 9 on"):
            built.upsert(keys_of(*strings), np.array(rows))
    with pytest.raises(IdError, match=r"rows are int64 \[2\]; allowed: integers \[1\], one a key"):
        built.upsert(keys_of("c"), np.array([50, 51]))
    with pytest.raises(IdError, match="more than once"):
        built.upsert(keys_of("c", "c"), np.array([50, 51]))


# ------------------------------------------------------------------------------------------------- changes


def test_a_change_leaves_the_old_map_as_it_was() -> None:
    built = build(["a", "b"])
    before = built.encode(["a", "b", "c"]).tolist()
    built.add(keys_of("c"))
    built.remove(keys_of("a"))
    assert built.encode(["a", "b", "c"]).tolist() == before


def test_adding_an_id_that_the_base_takes_for_another_gives_it_its_own_row() -> None:
    built = IdMap.build(
        np.arange(1000, dtype=np.uint64),
        np.ones(1000, np.int64),
        table="post",
        key_seed=0,
        tail_rows=TAIL,
        fingerprint_bits=8,
    )
    strangers = np.arange(1000, 20_000, dtype=np.uint64)
    mistaken = strangers[built.known(built.lookup(strangers))]
    assert len(mistaken) > 10
    grown, rows = built.add(mistaken)
    assert rows.tolist() == list(range(FIRST + 1000, FIRST + 1000 + len(mistaken)))
    assert (grown.lookup(mistaken) == rows).all()
    assert (grown.lookup(np.arange(1000, dtype=np.uint64)) == built.lookup(np.arange(1000, dtype=np.uint64))).all()


def test_adding_an_admitted_id_changes_nothing() -> None:
    built = build(["a", "b"])
    same, rows = built.add(keys_of("b", "a"))
    assert rows.tolist() == built.encode(["b", "a"]).tolist()
    assert (same.num_rows, same.num_admitted) == (built.num_rows, built.num_admitted)


def test_a_removed_id_that_comes_back_gets_a_new_row() -> None:
    built = build(["a", "b"]).remove(keys_of("a"))
    assert (built.num_rows, built.num_admitted) == (FIRST + 2, 1)
    assert built.encode(["a"]).tolist() == [tail_of("a")]
    again, rows = built.add(keys_of("a"))
    assert rows.tolist() == again.encode(["a"]).tolist() == [FIRST + 2]
    assert (again.num_rows, again.num_admitted) == (FIRST + 3, 2)


class MapLife(RuleBasedStateMachine):
    """Adds, removes, upserts, saves and folds in any order, against a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.map = build(words(6), fingerprint_bits=64)
        self.truth = {s: int(r) for s, r in zip(words(6), self.map.encode(words(6)), strict=True)}

    @rule(names=st.sets(st.integers(0, 15), min_size=1, max_size=4))
    def add(self, names: set[int]) -> None:
        strings = [f"id_{i}" for i in sorted(names)]
        num_rows = self.map.num_rows
        self.map, rows = self.map.add(keys_of(*strings))
        for string in strings:
            if string not in self.truth:
                self.truth[string] = num_rows
                num_rows += 1
        assert rows.tolist() == [self.truth[s] for s in strings]
        assert self.map.num_rows == num_rows

    @rule(names=st.sets(st.integers(0, 15), min_size=1, max_size=4))
    def remove(self, names: set[int]) -> None:
        self.map = self.map.remove(keys_of(*(f"id_{i}" for i in names)))
        for i in names:
            self.truth.pop(f"id_{i}", None)

    @rule(name=st.integers(0, 15), gap=st.integers(0, 3))
    def upsert(self, name: int, gap: int) -> None:
        row = self.map.num_rows + gap
        self.map = self.map.upsert(keys_of(f"id_{name}"), np.array([row]))
        self.truth[f"id_{name}"] = row

    @precondition(lambda self: self.map.overlay)
    @rule()
    def fold(self) -> None:
        folded, old_row = self.map.fold()
        assert len(old_row) == folded.capacity_rows
        assert old_row[:FIRST].tolist() == list(range(FIRST))
        rows = folded.encode(list(self.truth))
        assert old_row[rows].tolist() == list(self.truth.values())
        assert sorted(rows.tolist()) == list(range(FIRST, FIRST + len(self.truth)))
        assert (old_row[folded.num_rows :] == -1).all()
        self.map = folded
        self.truth = dict(zip(self.truth, rows.tolist(), strict=True))

    @precondition(lambda self: self.map.overlay)
    @rule()
    def merge(self) -> None:
        num_rows = self.map.num_rows
        self.map = self.map.merged()
        assert (len(self.map.overlay), self.map.num_rows) == (0, num_rows)

    @invariant()
    def it_answers_as_the_dictionary(self) -> None:
        strings = words(18)
        assert self.map.encode(strings).tolist() == [self.truth.get(s, tail_of(s)) for s in strings]
        assert self.map.own_rows(strings).tolist() == [self.truth.get(s, -1) for s in strings]
        assert self.map.num_admitted == len(self.truth)
        assert self.map.num_rows > max([FIRST - 1, *self.truth.values()])


TestMapLife = MapLife.TestCase
TestMapLife.settings = settings(max_examples=30, stateful_step_count=15, deadline=None)


# ---------------------------------------------------------------------------------------------- exceptions


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(0, 60), st.integers(1, 5), max_size=30), st.integers(1, 3))
def test_strings_with_equal_keys_have_rows_of_their_own(counts: dict[int, int], min_count: int) -> None:
    strings, numbers = [f"s{i}" for i in counts], list(counts.values())
    with pytest.MonkeyPatch.context() as patch:
        use_narrow_keys(patch)
        keys = narrow_hash(strings, 0)[0]
        built = IdMap.build(
            keys,
            np.array(numbers, np.int64),
            table="t",
            key_seed=0,
            tail_rows=TAIL,
            min_count=min_count,
            strings=pa.array(strings, pa.string()),
        )
        admitted = [s for s, n in zip(strings, numbers, strict=True) if n >= min_count]
        rows = built.encode(admitted)
        assert sorted(rows.tolist()) == list(range(FIRST, FIRST + len(admitted)))
        assert (built.num_admitted, built.num_rows) == (len(admitted), FIRST + len(admitted))
        for key in set(keys.tolist()):
            same = [
                (-n, s) for s, n, k in zip(strings, numbers, keys.tolist(), strict=True) if k == key and n >= min_count
            ]
            if same:
                assert built.lookup(np.array([key], np.uint64))[0] == built.encode([min(same)[1]])[0]
            if len(same) > 1:
                assert set(built.exceptions.by_key[key]) == {s.encode() for _, s in same}
        folded, old_row = built.fold()
        assert (old_row[folded.encode(admitted)] == rows).all()
        assert (built.merged().encode(admitted) == rows).all()


def test_an_unlisted_string_with_a_listed_key_is_unseen(narrow_keys: None) -> None:
    strings = words(40)
    keys = narrow_hash(strings, 0)[0]
    built = IdMap.build(
        keys[:30], np.ones(30, np.int64), table="t", key_seed=0, tail_rows=TAIL, strings=pa.array(strings[:30])
    )
    assert set(keys[30:].tolist()) <= set(built.exceptions.by_key)
    assert built.encode(strings[30:]).tolist() == [2 + int(k) % TAIL for k in keys[30:]]
    assert (built.own_rows(strings[30:]) == -1).all()
    dictionary = pa.array([*strings, None]).dictionary_encode()
    assert (built.encode(dictionary)[:-1] == built.encode(strings)).all()


def test_added_strings_with_equal_keys_are_told_apart(narrow_keys: None) -> None:
    strings = words(60)
    keys = narrow_hash(strings, 0)[0]
    one_per_key = [strings[i] for i in np.unique(keys[:20], return_index=True)[1]]
    built = IdMap.build(
        keys[:30], np.ones(30, np.int64), table="t", key_seed=0, tail_rows=TAIL, strings=pa.array(strings[:30])
    )
    grown, rows = built.add(keys[20:], strings[20:])
    assert (grown.encode(strings[:30]) == built.encode(strings[:30])).all()
    assert (grown.encode(strings[20:]) == rows).all()
    assert len(set(grown.encode(strings).tolist())) == 60
    assert (grown.num_admitted, grown.num_rows) == (60, FIRST + 60)
    empty = IdMap.build(keys[:0], np.empty(0, np.int64), table="t", key_seed=0, tail_rows=TAIL)
    filled, rows = empty.add(keys, strings)
    assert sorted(rows.tolist()) == list(range(FIRST, FIRST + 60))
    assert (filled.encode(strings) == rows).all()
    assert (filled.lookup(narrow_hash(one_per_key, 0)[0]) == filled.encode(one_per_key)).all()


def test_removing_a_key_removes_all_its_strings(narrow_keys: None) -> None:
    strings = words(30)
    keys = narrow_hash(strings, 0)[0]
    built = IdMap.build(keys, np.ones(30, np.int64), table="t", key_seed=0, tail_rows=TAIL, strings=pa.array(strings))
    smaller = built.remove(keys[:1])
    gone = keys == keys[0]
    assert (smaller.encode(strings)[gone] == 2 + int(keys[0]) % TAIL).all()
    assert (smaller.encode(strings)[~gone] == built.encode(strings)[~gone]).all()
    assert smaller.num_admitted == 30 - int(gone.sum())
    assert smaller.fold()[0].num_admitted == smaller.num_admitted


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_saved_map_answers_as_the_one_that_was_saved(tmp_path: Path, bits: int, mmap: bool) -> None:
    built = build(words(300), fingerprint_bits=bits).add(keys_of("late"))[0].remove(keys_of("id_0"))
    built.save(tmp_path / "ids" / "post")
    loaded = IdMap.load(tmp_path / "ids" / "post", mmap)
    strings = [*words(310), "late", None]
    assert (loaded.encode(strings) == built.encode(strings)).all()
    for name in ("table", "key_seed", "tail_rows", "fingerprint_bits", "num_rows", "num_admitted", "exceptions"):
        assert getattr(loaded, name) == getattr(built, name)
    changed = loaded.add(keys_of("later"))[0]
    assert changed.encode(["later"])[0] == built.num_rows


def test_a_loaded_map_pickles_as_its_path_and_another_by_value(tmp_path: Path) -> None:
    built = build(words(5000))
    built.save(tmp_path)
    loaded = IdMap.load(tmp_path)
    assert len(pickle.dumps(loaded)) < 1000
    for original in (built, loaded, loaded.add(keys_of("late"))[0]):
        copy = pickle.loads(pickle.dumps(original))
        strings = [*words(100), "late"]
        assert (copy.encode(strings) == original.encode(strings)).all()


def edit(folder: Path, **fields: object) -> None:
    header = json.loads((folder / "id_map.json").read_text())
    (folder / "id_map.json").write_text(json.dumps({**header, **fields}))


def test_a_header_without_a_field_or_with_arrays_of_another_map_is_refused(tmp_path: Path) -> None:
    build(words(300)).save(tmp_path)
    good = json.loads((tmp_path / "id_map.json").read_text())
    arrays = good["arrays"]
    no_seed = {k: v for k, v in good.items() if k != "key_seed"}
    broken = [
        no_seed,
        {**good, "fingerprint_bits": 32},
        {**good, "exceptions": None},
        {**good, "arrays": {k: v for k, v in arrays.items() if k != "pilots"}},
        {**good, "arrays": {**arrays, "pilots": arrays["spill"]}},
        {**good, "arrays": {**arrays, "keys": arrays["overlay"]}},
    ]
    for header in broken:
        (tmp_path / "id_map.json").write_text(json.dumps({**header, "sha256": sha256_of_header(header)}))
        with pytest.raises(IdError, match=r"id_map.json: cannot be meant .* restore the folder from its bundle"):
            IdMap.load(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    build(["a"]).save(tmp_path)
    edit(tmp_path, format="sparsefeed.id_map/9")
    with pytest.raises(IdError, match=r'format is "sparsefeed.id_map/9"; this version reads "sparsefeed.id_map/2"'):
        IdMap.load(tmp_path)


def test_an_upsert_at_the_row_an_id_has_keeps_its_exceptions(narrow_keys: None) -> None:
    strings = words(20)
    keys = narrow_hash(strings, 0)[0]
    built = IdMap.build(keys, np.ones(20, np.int64), table="t", key_seed=0, tail_rows=TAIL, strings=pa.array(strings))
    some = np.unique(keys)
    again = built.upsert(some, built.lookup(some))
    assert (again.encode(strings) == built.encode(strings)).all()
    assert again.num_admitted == 20
