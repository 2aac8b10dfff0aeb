"""Tiers of the parameter server: one class of tests for all three, then what is special to each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rocksdict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from sparsefeed.errors import BundleError, ToolError
from sparsefeed.models.store.hps import export_hps
from sparsefeed.models.store.memory_tier import MemoryTier
from sparsefeed.models.store.redis_tier import RedisTier
from sparsefeed.models.store.rocksdb_tier import RocksDbTier
from sparsefeed.models.store.tier import Tier, cut, load, partition_of, tag
from tests.bundles import values
from tests.redis_cluster import Cluster, plain_redis, running_cluster

DIM = 4
INT64 = st.integers(-(2**63), 2**63 - 1)
OpenTier = Callable[[], Tier]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running_cluster(tmp_path_factory.mktemp("redis")) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    running.flush()
    return running


@pytest.fixture(params=["memory", "rocksdb", pytest.param("redis", marks=pytest.mark.redis)])
def open_tier(request: pytest.FixtureRequest, tmp_path: Path) -> OpenTier:
    """Opens one and the same place each time it is called; the place begins empty."""
    if request.param == "memory":
        return lambda: MemoryTier(tmp_path / "tier")
    if request.param == "rocksdb":
        return lambda: RocksDbTier(tmp_path / "tier")
    address = request.getfixturevalue("cluster").address
    return lambda: RedisTier(address)


@pytest.fixture
def tier(open_tier: OpenTier) -> Iterator[Tier]:
    with open_tier() as opened:
        yield opened


def keys_of(*keys: int) -> NDArray[np.int64]:
    return np.array(keys, np.int64)


def rows_of(*firsts: float) -> NDArray[np.float32]:
    """Rows that begin with these and go on by tenths."""
    return (np.array(firsts)[:, None] + np.arange(DIM) / 10).astype(np.float32)


def look_up(tier: Tier, keys: NDArray[np.int64], table: str = "post", model: str = "m") -> tuple[Any, int]:
    out = np.full((len(keys), DIM), np.nan, np.float32)
    num_missing = tier.lookup(model, table, keys, -0.5, out)
    return out, num_missing


class TestEveryTier:
    def test_rows_are_read_in_the_order_of_the_keys(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(5, 3, 9), rows_of(50, 30, 90))
        out, num_missing = look_up(tier, keys_of(9, 5, 3))
        np.testing.assert_array_equal(out, rows_of(90, 50, 30))
        assert num_missing == 0

    def test_a_missing_key_has_the_default_and_is_counted(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3, 5), rows_of(30, 50))
        out, num_missing = look_up(tier, keys_of(4, 3, -1, 5, 4, 2**40))
        np.testing.assert_array_equal(out[[1, 3]], rows_of(30, 50))
        assert (out[[0, 2, 4, 5]] == -0.5).all()
        assert num_missing == 4

    def test_a_lookup_that_finds_nothing_is_all_default(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3), rows_of(30))
        out, num_missing = look_up(tier, keys_of(7, 8))
        assert (out == -0.5).all()
        assert num_missing == 2

    def test_a_key_asked_for_twice_is_answered_twice(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3, 5), rows_of(30, 50))
        np.testing.assert_array_equal(look_up(tier, keys_of(5, 3, 5, 5))[0], rows_of(50, 30, 50, 50))

    def test_an_empty_lookup_is_empty(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3), rows_of(30))
        out, num_missing = look_up(tier, keys_of())
        assert (out.shape, num_missing) == ((0, DIM), 0)

    def test_a_second_write_replaces_and_adds(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3, 5), rows_of(30, 50))
        look_up(tier, keys_of(3))
        tier.write("m", "post", keys_of(9, 5), rows_of(90, 55))
        np.testing.assert_array_equal(look_up(tier, keys_of(3, 5, 9))[0], rows_of(30, 55, 90))
        assert tier.num_rows("m", "post") == 3

    def test_of_a_key_written_twice_at_once_the_last_row_wins(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(5, 3, 5), rows_of(1, 30, 2))
        np.testing.assert_array_equal(look_up(tier, keys_of(5, 3))[0], rows_of(2, 30))
        assert tier.num_rows("m", "post") == 2

    def test_keys_may_be_negative_or_beyond_32_bits(self, tier: Tier) -> None:
        keys = keys_of(-1, 2**32, 2**32 + 1, 2**63 - 1, -(2**63), 0, 1)
        tier.write("m", "post", keys, rows_of(*range(7)))
        out, num_missing = look_up(tier, keys)
        np.testing.assert_array_equal(out, rows_of(*range(7)))
        assert num_missing == 0

    def test_more_rows_than_a_batch_are_written_and_read(self, tier: Tier) -> None:
        keys = np.random.default_rng(0).permutation(10_000) * 3
        rows = np.random.default_rng(1).normal(size=(len(keys), DIM)).astype(np.float32)
        tier.write("m", "post", keys, rows)
        asked = np.arange(30_000)
        out, num_missing = look_up(tier, asked)
        np.testing.assert_array_equal(out[keys], rows)
        assert num_missing == 20_000
        assert tier.num_rows("m", "post") == 10_000

    def test_models_and_tables_are_kept_apart(self, tier: Tier) -> None:
        tier.write("v1", "post", keys_of(7), rows_of(1))
        tier.write("v2", "post", keys_of(7), rows_of(2))
        tier.write("v2", "member", keys_of(7), rows_of(3))
        for first, (model, table) in enumerate((("v1", "post"), ("v2", "post"), ("v2", "member")), start=1):
            np.testing.assert_array_equal(look_up(tier, keys_of(7), table, model)[0], rows_of(first))
        assert (tier.tables("v1"), tier.tables("v2"), tier.tables("v")) == (("post",), ("member", "post"), ())

    def test_a_removed_model_is_gone_and_another_is_not(self, tier: Tier) -> None:
        for model in ("v1", "v10"):
            tier.write(model, "post", keys_of(7, 8), rows_of(7, 8))
            tier.write(model, "member", keys_of(7), rows_of(7))
        tier.remove("v1")
        assert (tier.tables("v1"), tier.tables("v10")) == ((), ("member", "post"))
        with pytest.raises(BundleError, match='table "post" of model "v1": not in this tier'):
            look_up(tier, keys_of(7), model="v1")
        assert look_up(tier, keys_of(7), model="v10")[1] == 0
        tier.remove("v1")

    def test_a_removed_model_may_come_back_with_another_dim(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(7, 8), rows_of(7, 8))
        tier.remove("m")
        tier.write("m", "post", keys_of(7), np.ones((1, 8), np.float32))
        out = np.empty((2, 8), np.float32)
        assert tier.lookup("m", "post", keys_of(7, 8), 0.0, out) == 1
        np.testing.assert_array_equal(out, np.repeat([[1.0], [0.0]], 8, axis=1))

    def test_a_tier_opened_again_has_its_rows(self, open_tier: OpenTier) -> None:
        with open_tier() as tier:
            tier.write("m", "post", keys_of(3, 5), rows_of(30, 50))
            tier.write("m", "post", keys_of(5), rows_of(55))
        with open_tier() as tier:
            np.testing.assert_array_equal(look_up(tier, keys_of(3, 5))[0], rows_of(30, 55))
            assert (tier.tables("m"), tier.num_rows("m", "post")) == (("post",), 2)

    def test_a_tier_may_be_closed_twice(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3), rows_of(30))
        tier.close()
        tier.close()

    def test_a_write_of_nothing_makes_no_table(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(), np.empty((0, DIM), np.float32))
        assert tier.tables("m") == ()
        with pytest.raises(BundleError, match="not in this tier"):
            tier.num_rows("m", "post")

    def test_a_table_that_is_not_there_is_told_with_those_that_are(self, tier: Tier) -> None:
        with pytest.raises(BundleError, match="the model's tables: none"):
            look_up(tier, keys_of(3))
        tier.write("m", "member", keys_of(3), rows_of(30))
        tier.write("m", "hashtag", keys_of(3), rows_of(30))
        with pytest.raises(BundleError, match="the model's tables: hashtag, member"):
            look_up(tier, keys_of(3))

    def test_another_dim_is_refused(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3), rows_of(30))
        message = 'table "post" of model "m": got dim 8, which is 32 bytes a row; its rows have 16 bytes, dim 4'
        with pytest.raises(BundleError, match=message):
            tier.lookup("m", "post", keys_of(3), 0.0, np.empty((1, 8), np.float32))
        with pytest.raises(BundleError, match=message):
            tier.write("m", "post", keys_of(4), np.empty((1, 8), np.float32))
        assert tier.num_rows("m", "post") == 1

    @pytest.mark.parametrize(("model", "table"), [("m.1", "post"), ("m", "po/st"), ("", "post"), ("m", "x" * 121)])
    def test_what_is_no_name_is_refused(self, tier: Tier, model: str, table: str) -> None:
        with pytest.raises(BundleError, match="not a name; must match"):
            tier.write(model, table, keys_of(3), rows_of(30))
        with pytest.raises(BundleError, match="not a name; must match"):
            look_up(tier, keys_of(3), table, model)

    def test_arrays_of_another_kind_are_refused(self, tier: Tier) -> None:
        tier.write("m", "post", keys_of(3), rows_of(30))
        for keys, rows in (
            (keys_of(3).astype(np.int32), rows_of(30)),
            (keys_of(3)[None], rows_of(30)),
            (keys_of(3), rows_of(30).astype(np.float64)),
            (keys_of(3), rows_of(30, 40)),
            (keys_of(3), rows_of(30)[:, :0]),
        ):
            with pytest.raises(ValueError, match="must be"):
                tier.write("m", "post", keys, rows)
        for keys, out in (
            (keys_of(3).astype(np.uint64), np.empty((1, DIM), np.float32)),
            (keys_of(3), np.empty((2, DIM), np.float32)),
            (keys_of(3), np.empty(DIM, np.float32)),
            (keys_of(3, 4), np.empty((DIM, 2), np.float32).T),
            (keys_of(3), np.empty((1, 0), np.float32)),
        ):
            with pytest.raises(ValueError, match="must be"):
                tier.lookup("m", "post", keys, 0.0, out)
        np.testing.assert_array_equal(look_up(tier, keys_of(3))[0], rows_of(30))

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_every_bit_of_every_row_comes_back(self, tier: Tier, data: st.DataObject) -> None:
        tier.remove("m")
        written = {}
        for _ in range(data.draw(st.integers(1, 3))):
            keys = np.array(data.draw(st.lists(INT64, min_size=1, max_size=12)), np.int64)
            bits = data.draw(arrays(np.uint32, (len(keys), DIM)))  # NaN of all kinds among them
            tier.write("m", "post", keys, bits.view(np.float32))
            written |= dict(zip(keys.tolist(), bits, strict=True))
        asked = data.draw(st.lists(st.sampled_from(sorted(written)) | INT64, max_size=20))
        out = np.zeros((len(asked), DIM), np.float32)
        num_missing = tier.lookup("m", "post", np.array(asked, np.int64), 2.0, out)
        default = np.full(DIM, 2, np.float32).view(np.uint32)
        for key, row in zip(asked, out.view(np.uint32), strict=True):
            np.testing.assert_array_equal(row, written.get(key, default))
        assert num_missing == sum(key not in written for key in asked)
        assert tier.num_rows("m", "post") == len(written)

    def test_sparse_folders_are_loaded(self, tier: Tier, tmp_path: Path) -> None:
        tables = {"member": values(4), "post": values(8, num_rows=5)}
        export_hps(tmp_path / "export", tables)
        for _ in range(2):  # again is no harm
            assert load(tier, "v1", tmp_path / "export", {"member": 4, "post": 8}) == 64 + 5
        assert tier.tables("v1") == ("member", "post")
        for name, expected in tables.items():
            out = np.empty_like(expected)
            assert tier.lookup("v1", name, np.arange(len(expected)), 0.0, out) == 0
            np.testing.assert_array_equal(out, expected)

    def test_sparse_folders_are_loaded_as_hps_names_them(self, tier: Tier, tmp_path: Path) -> None:
        export_hps(
            tmp_path / "export", {"post": np.concatenate([np.zeros((1, 4)), np.ones((2, 4))]).astype(np.float32)}
        )
        (tmp_path / "export" / "post").rename(tmp_path / "export" / "post.model")
        assert load(tier, "v1", tmp_path / "export", {"post": 4}) == 3
        assert tier.num_rows("v1", "post") == 3

    def test_a_load_of_a_wrong_folder_writes_nothing(self, tier: Tier, tmp_path: Path) -> None:
        export_hps(tmp_path / "export", {"member": values(4)})
        for dims in ({"member": 4, "post": 8}, {"member": 8}):
            with pytest.raises(BundleError, match=r"sparse folder|need"):
                load(tier, "v1", tmp_path / "export", dims)
        assert tier.tables("v1") == ()


# By a C program that holds HugeCTR's function: the hash modulo 8, 5 and 1000.
KNOWN_PARTITIONS = {
    0: (0, 0, 0), 1: (3, 3, 243), 2: (6, 3, 238), 7: (7, 4, 319), 1000: (5, 1, 421), -1: (4, 3, 468), -2: (6, 0, 230),
    2**32: (1, 3, 313), 2**32 + 5: (1, 1, 521), 2**63 - 1: (6, 2, 422), -(2**63): (3, 1, 531),
    1234567890123: (7, 4, 999),
}  # fmt: skip


class TestPackages:
    @pytest.mark.parametrize(("package", "open_tier"), [("rocksdict", lambda: RocksDbTier("x")), ("redis", RedisTier)])
    def test_a_package_that_is_not_installed_is_named(
        self, monkeypatch: pytest.MonkeyPatch, package: str, open_tier: OpenTier
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ToolError, match=rf"{package} cannot be imported .* pip install 'sparsefeed\[tiers\]'"):
            open_tier()

    def test_packages_are_imported_by_the_tier_that_is_opened_and_not_before(self) -> None:
        code = (
            "import sys; from sparsefeed.models.store import memory_tier, redis_tier, rocksdb_tier\n"
            "assert not {'rocksdict', 'redis'} & sys.modules.keys()"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


class TestPartitions:
    @pytest.mark.parametrize(("i", "num_partitions"), list(enumerate((8, 5, 1000))))
    def test_partitions_are_hugectrs(self, i: int, num_partitions: int) -> None:
        found = partition_of(np.array(list(KNOWN_PARTITIONS), np.int64), num_partitions)
        assert found.dtype == np.int64
        assert found.tolist() == [known[i] for known in KNOWN_PARTITIONS.values()]

    @settings(max_examples=60, deadline=None)
    @given(keys=st.lists(INT64, max_size=20), num_partitions=st.integers(1, 2**40))
    def test_partitions_follow_the_formula(self, keys: list[int], num_partitions: int) -> None:
        def rotated(word: int, bits: int) -> int:
            return (word >> bits | word << (64 - bits)) % 2**64

        def mixed(word: int) -> int:
            word = (word ^ rotated(word, 25) ^ rotated(word, 50)) * 0xA24BAED4963EE407 % 2**64
            word = (word ^ rotated(word, 24) ^ rotated(word, 49)) * 0x9FB21C651E98DF25 % 2**64
            return word ^ word >> 28

        given_keys = np.array(keys, np.int64)
        found = partition_of(given_keys, num_partitions)
        assert found.tolist() == [mixed(key % 2**64) % num_partitions for key in keys]
        assert given_keys.tolist() == keys

    def test_dense_keys_spread_evenly(self) -> None:
        counts = np.bincount(partition_of(np.arange(80_000), 8), minlength=8)
        assert (np.abs(counts - 10_000) < 500).all()  # five standard deviations of a fair spread are 468

    def test_no_partition_at_all_is_refused(self) -> None:
        with pytest.raises(ValueError, match="num_partitions: got 0"):
            partition_of(np.arange(3), 0)

    def test_a_tag_is_hps_s(self) -> None:
        assert tag("feed_v1", "post") == "hps_et.feed_v1.post"


class TestMemoryTier:
    def test_a_folder_that_export_hps_wrote_is_a_table(self, tmp_path: Path) -> None:
        export_hps(tmp_path / "m", {"post": values(DIM)})
        out, num_missing = look_up(MemoryTier(tmp_path), keys_of(63, 64))
        np.testing.assert_array_equal(out[0], values(DIM)[63])
        assert num_missing == 1

    def test_files_are_what_a_sparse_folder_holds_and_no_more(self, tmp_path: Path) -> None:
        MemoryTier(tmp_path).write("m", "post", keys_of(5, -3), rows_of(50, -30))
        MemoryTier(tmp_path).write("m", "post", keys_of(4), rows_of(40))
        assert (tmp_path / "m/post/key").read_bytes() == np.array([-3, 4, 5], "<i8").tobytes()
        assert (tmp_path / "m/post/emb_vector").read_bytes() == rows_of(-30, 40, 50).astype("<f4").tobytes()
        found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
        assert found == {"m", "m/post", "m/post/key", "m/post/emb_vector"}

    def test_keys_that_do_not_ascend_are_refused_and_can_be_loaded(self, tmp_path: Path) -> None:
        export_hps(tmp_path / "m", {"post": values(DIM)})
        np.arange(64)[::-1].astype("<i8").tofile(tmp_path / "m/post/key")
        with pytest.raises(BundleError, match=r"m/post: keys do not ascend; .* load\(\)"):
            look_up(MemoryTier(tmp_path), keys_of(3))
        tier = MemoryTier(tmp_path / "sorted")
        load(tier, "m", tmp_path / "m", {"post": DIM})
        np.testing.assert_array_equal(look_up(tier, np.arange(64))[0], values(DIM)[::-1])

    @pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"1234567")])
    @pytest.mark.parametrize("name", ["key", "emb_vector"])
    def test_a_damaged_folder_is_refused(self, tmp_path: Path, name: str, damage: Callable[[Path], object]) -> None:
        MemoryTier(tmp_path).write("m", "post", keys_of(3), rows_of(30))
        damage(tmp_path / "m/post" / name)
        with pytest.raises(BundleError, match="m/post"):
            look_up(MemoryTier(tmp_path), keys_of(3))

    def test_a_mapped_table_stays_as_it_was_while_another_writes(self, tmp_path: Path) -> None:
        reader = MemoryTier(tmp_path)
        reader.write("m", "post", keys_of(3), rows_of(30))
        look_up(reader, keys_of(3))
        MemoryTier(tmp_path).write("m", "post", keys_of(3), rows_of(33))
        np.testing.assert_array_equal(look_up(reader, keys_of(3))[0], rows_of(30))
        np.testing.assert_array_equal(look_up(MemoryTier(tmp_path), keys_of(3))[0], rows_of(33))

    def test_writers_at_once_lose_none_of_their_rows(self, tmp_path: Path) -> None:
        def write(i: int) -> None:
            MemoryTier(tmp_path).write("m", "post", np.arange(i, 100, 4), rows_of(*range(i, 100, 4)))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        out, num_missing = look_up(MemoryTier(tmp_path), np.arange(100))
        np.testing.assert_array_equal(out, rows_of(*range(100)))
        assert num_missing == 0

    def test_a_writer_that_dies_between_its_two_renames_loses_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tier = MemoryTier(tmp_path)
        tier.write("m", "post", keys_of(3), rows_of(30))
        rename = Path.rename

        def dies(path: Path, target: Path) -> Path:
            if path.name == ".post.partial":
                raise KeyboardInterrupt
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dies)
            with pytest.raises(KeyboardInterrupt):
                tier.write("m", "post", keys_of(3, 4), rows_of(33, 44))
        assert MemoryTier(tmp_path).tables("m") == ("post",)
        out, num_missing = look_up(MemoryTier(tmp_path), keys_of(3, 4))
        np.testing.assert_array_equal(out[0], rows_of(30)[0])
        assert num_missing == 1


def raw_options() -> rocksdict.Options:
    return rocksdict.Options(raw_mode=True)


@contextmanager
def raw_rocksdb(path: Path) -> Iterator[rocksdict.Rdict]:
    """The database by the library alone."""
    families = {name: raw_options() for name in rocksdict.Rdict.list_cf(str(path), raw_options())}
    database = rocksdict.Rdict(str(path), raw_options(), families)
    yield database
    database.close()


class TestRocksDbTier:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        """A database with one table of two rows, in a table file and not only in the log."""
        path = tmp_path / "rows"
        with RocksDbTier(path) as tier:
            tier.write("m", "post", keys_of(-3, 2**32 + 5), rows_of(-30, 50))
        with RocksDbTier(path):  # opening writes the log out
            pass
        return path

    def test_the_layout_is_hps_s_byte_for_byte(self, path: Path) -> None:
        assert sorted(rocksdict.Rdict.list_cf(str(path))) == ["default", "hps_et.m.post"]
        with raw_rocksdb(path) as database:
            family = database.get_column_family("hps_et.m.post")
            held = dict(family.items())
            family.close()
            assert not list(database.keys())
        assert held == {
            b"\xfd\xff\xff\xff\xff\xff\xff\xff": rows_of(-30).astype("<f4").tobytes(),
            b"\x05\x00\x00\x00\x01\x00\x00\x00": rows_of(50).astype("<f4").tobytes(),
        }

    def test_table_files_are_of_the_version_that_hps_reads(self, path: Path) -> None:
        (table,) = path.glob("*.sst")
        version, magic = np.frombuffer(table.read_bytes()[-12:-8], "<u4")[0], table.read_bytes()[-8:]
        assert (version, magic) == (5, bytes.fromhex("f7cff485b741e288"))

    def test_a_database_that_another_program_wrote_is_read(self, path: Path) -> None:
        with raw_rocksdb(path) as database:
            family = database.create_column_family("hps_et.m.hashtag", raw_options())
            family[b"\x07" + bytes(7)] = rows_of(70).tobytes()
            family.close()
        (path / "rocksdict-config.json").unlink()  # HPS writes none
        with RocksDbTier(path, read_only=True) as tier:
            assert tier.tables("m") == ("hashtag", "post")
            np.testing.assert_array_equal(look_up(tier, keys_of(7), "hashtag")[0], rows_of(70))

    def test_a_database_open_in_another_process_is_locked_but_can_be_read(self, path: Path) -> None:
        holds = (
            "import sys; from sparsefeed.models.store.rocksdb_tier import RocksDbTier\n"
            "tier = RocksDbTier(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
        )
        with subprocess.Popen(
            [sys.executable, "-c", holds, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as other:
            assert other.stdin and other.stdout
            assert other.stdout.readline() == b"open\n"
            with pytest.raises(BundleError, match=r"rows: RocksDB: .*lock.*; it is open elsewhere for writing"):
                RocksDbTier(path)
            with RocksDbTier(path, read_only=True) as tier:
                assert look_up(tier, keys_of(-3))[1] == 0
            other.stdin.close()
        with RocksDbTier(path) as tier:
            assert look_up(tier, keys_of(-3))[1] == 0

    def test_rows_outlive_a_writer_that_is_killed(self, tmp_path: Path) -> None:
        writes = (
            "import os, sys, numpy as np; from sparsefeed.models.store.rocksdb_tier import RocksDbTier\n"
            "tier = RocksDbTier(sys.argv[1])\n"
            "tier.write('m', 'post', np.array([3]), np.ones((1, 4), np.float32)); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", writes, str(tmp_path / "rows")], check=False).returncode == -9
        with RocksDbTier(tmp_path / "rows") as tier:
            assert look_up(tier, keys_of(3))[1] == 0

    def test_a_database_open_twice_in_one_process_is_locked(self, path: Path) -> None:
        with RocksDbTier(path), pytest.raises(BundleError, match="it is open elsewhere for writing"):
            RocksDbTier(path)

    def test_a_read_only_tier_changes_nothing(self, path: Path) -> None:
        with RocksDbTier(path, read_only=True) as tier:
            for change in (lambda: tier.write("m", "post", keys_of(1), rows_of(1)), lambda: tier.remove("m")):
                with pytest.raises(BundleError, match="opened read-only"):
                    change()
            assert tier.num_rows("m", "post") == 2

    def test_a_read_only_tier_sees_what_the_log_holds(self, tmp_path: Path) -> None:
        with RocksDbTier(tmp_path / "rows") as writer:
            writer.write("m", "post", keys_of(3), rows_of(30))
            with RocksDbTier(tmp_path / "rows", read_only=True) as tier:
                writer.write("m", "post", keys_of(4), rows_of(40))
                assert look_up(tier, keys_of(3, 4))[1] == 1

    def test_a_closed_tier_says_so(self, path: Path) -> None:
        tier = RocksDbTier(path)
        tier.close()
        for use in (
            lambda: look_up(tier, keys_of(3)),
            lambda: tier.write("m", "post", keys_of(3), rows_of(30)),
            lambda: tier.num_rows("m", "post"),
        ):
            with pytest.raises(BundleError, match="closed; open it again"):
                use()

    @pytest.mark.parametrize("name", ["*.sst", "MANIFEST-*", "CURRENT"])
    @pytest.mark.parametrize(
        "damage", [lambda raw: raw[: len(raw) // 2], lambda raw: bytes(byte ^ 0x55 for byte in raw)]
    )
    def test_a_damaged_file_is_told(self, path: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
        (file,) = path.glob(name)
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(BundleError, match=r"rows.*: RocksDB: .*; the database is damaged; remove the folder"):
            look_up(RocksDbTier(path), keys_of(-3))

    def test_a_damaged_block_is_told_by_count_and_lookup(self, path: Path) -> None:
        (file,) = path.glob("*.sst")
        raw = bytearray(file.read_bytes())
        raw[20] ^= 1
        file.write_bytes(raw)
        with RocksDbTier(path) as tier:
            for use in (lambda: look_up(tier, keys_of(-3)), lambda: tier.num_rows("m", "post")):
                with pytest.raises(BundleError, match="the database is damaged"):
                    use()

    def test_a_row_of_another_length_is_told_with_its_key(self, path: Path) -> None:
        with raw_rocksdb(path) as database:
            family = database.get_column_family("hps_et.m.post")
            family[cut(keys_of(2**40 - 1))[0]] = bytes(15)
            family.close()
        with RocksDbTier(path) as tier:
            assert look_up(tier, keys_of(-3))[1] == 0
            message = (
                f'rows: table "post" of model "m": key {2**40 - 1}: its row has 15 bytes; the table.s rows have 16;'
            )
            with pytest.raises(BundleError, match=message):
                look_up(tier, keys_of(-3, 2**40 - 1))

    def test_a_path_that_is_no_database_is_refused(self, tmp_path: Path) -> None:
        for path in (tmp_path, tmp_path / "none"):
            with pytest.raises(BundleError, match=r"not a RocksDB database \(no file CURRENT\)"):
                RocksDbTier(path, read_only=True)
        assert not (tmp_path / "none").exists()

    def test_a_database_without_its_pointer_is_not_made_anew(self, path: Path) -> None:
        (path / "CURRENT").unlink()
        with pytest.raises(BundleError, match="not a whole RocksDB database"):
            RocksDbTier(path)
        assert list(path.glob("*.sst"))

    def test_a_path_that_is_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "rows").write_text("")
        with pytest.raises(BundleError, match=r"rows: RocksDB: .*; look at the path"):
            RocksDbTier(tmp_path / "rows")


@pytest.mark.redis
class TestRedisTier:
    def test_the_layout_is_hps_s_byte_for_byte(self, cluster: Cluster) -> None:
        with RedisTier(cluster.address) as tier:
            tier.write("m", "post", keys_of(-2, 1000, 2), rows_of(-20, 10, 20))
        assert cluster.hgetall("hps_et{hps_et.m.post/p6}v") == {
            b"\xfe\xff\xff\xff\xff\xff\xff\xff": rows_of(-20).astype("<f4").tobytes(),
            b"\x02\x00\x00\x00\x00\x00\x00\x00": rows_of(20).astype("<f4").tobytes(),
        }
        assert cluster.hgetall("hps_et{hps_et.m.post/p5}v") == {
            b"\xe8\x03\x00\x00\x00\x00\x00\x00": rows_of(10).astype("<f4").tobytes()
        }
        assert not cluster.hgetall("hps_et{hps_et.m.post/p0}v")

    def test_a_removed_model_leaves_nothing_and_others_their_hashes(self, cluster: Cluster) -> None:
        with RedisTier(cluster.address) as tier:
            tier.write("m", "post", np.arange(50), rows_of(*range(50)))
            cluster.set_hash("hps_et{hps_et.m.post/p0}t", b"field", b"12")
            cluster.set_hash("hps_et{hps_et.m.x/y}v", b"field", b"12")
            tier.remove("m")
        assert cluster.names() == {"hps_et{hps_et.m.x/y}v"}

    @pytest.mark.parametrize(("written", "given"), [(8, 4), (8, 5), (4, 8), (8, 1), (1, 8)])
    def test_another_number_of_partitions_is_told(self, cluster: Cluster, written: int, given: int) -> None:
        with RedisTier(cluster.address, written) as tier:
            tier.write("m", "post", np.arange(100), rows_of(*range(100)))
        with (
            RedisTier(cluster.address, given) as tier,
            pytest.raises(BundleError, match=f"got num_partitions {given}, but its rows lie in other partitions"),
        ):
            look_up(tier, keys_of(3))

    def test_a_row_of_another_length_is_told_with_its_key(self, cluster: Cluster) -> None:
        with RedisTier(cluster.address) as tier:
            tier.write("m", "post", np.arange(2, 50), rows_of(*range(2, 50)))
            look_up(tier, keys_of(2))
            cluster.set_hash("hps_et{hps_et.m.post/p3}v", cut(keys_of(1))[0], bytes(15))
            with pytest.raises(BundleError, match='table "post" of model "m": key 1: its row has 15 bytes'):
                look_up(tier, keys_of(1, 2))

    def test_a_table_that_another_client_loaded_anew_is_read(self, cluster: Cluster) -> None:
        with RedisTier(cluster.address) as reader, RedisTier(cluster.address) as writer:
            writer.write("m", "post", keys_of(3), np.ones((1, 8), np.float32))
            with pytest.raises(BundleError, match="got dim 4"):
                look_up(reader, keys_of(3))
            writer.remove("m")
            writer.write("m", "post", keys_of(3), rows_of(30))
            np.testing.assert_array_equal(look_up(reader, keys_of(3))[0], rows_of(30))

    def test_a_lost_node_is_named_and_lookups_work_again_when_it_is_back(self, cluster: Cluster) -> None:
        keys, rows = np.arange(1000), rows_of(*range(1000))
        with RedisTier(cluster.address) as tier:
            tier.write("m", "post", keys, rows)
            with cluster.without(1):
                uses: list[Callable[[], object]] = [
                    lambda: look_up(tier, keys),
                    lambda: tier.write("m", "post", keys, rows),
                    lambda: tier.tables("m"),
                    lambda: tier.num_rows("m", "post"),
                    lambda: tier.remove("m"),
                ]
                for use in uses:
                    with pytest.raises(BundleError, match=f"no answer from 127.0.0.1:{cluster.ports[1]}: start it"):
                        use()
            out, num_missing = look_up(tier, keys)
            is_held = out[:, 0] != -0.5
            np.testing.assert_array_equal(out[is_held], rows[is_held])
            assert 0 < num_missing < 1000  # those of the node that came back without them
            tier.write("m", "post", keys, rows)
            out, num_missing = look_up(tier, keys)
            np.testing.assert_array_equal(out, rows)
            assert num_missing == 0

    def test_a_message_about_a_lost_node_holds_no_raw_keys(self, cluster: Cluster) -> None:
        with RedisTier(cluster.address) as tier:
            tier.write("m", "post", np.arange(1000), rows_of(*range(1000)))
            with cluster.without(2):
                cluster.wait_until_down()  # now the others refuse too, and redis-py repeats the refused command
                with pytest.raises(BundleError, match=f"no answer from 127.0.0.1:{cluster.ports[2]}") as raised:
                    look_up(tier, np.arange(1000))
        assert str(raised.value).isprintable()
        assert len(str(raised.value)) < 400

    def test_a_node_that_hangs_is_named(self, cluster: Cluster) -> None:
        with RedisTier(cluster.address) as patient, RedisTier(cluster.address, timeout_s=0.1) as tier:
            patient.write("m", "post", np.arange(1000), rows_of(*range(1000)))
            message = f"no answer from 127.0.0.1:{cluster.ports[1]}"
            with cluster.hung(1), pytest.raises(BundleError, match=message):
                look_up(tier, np.arange(1000))
            assert look_up(patient, np.arange(1000))[1] == 0

    def test_a_closed_tier_says_so(self, cluster: Cluster) -> None:
        tier = RedisTier(cluster.address)
        tier.close()
        with pytest.raises(BundleError, match="closed; open it again"):
            look_up(tier, keys_of(3))

    def test_any_node_that_answers_will_do(self, cluster: Cluster) -> None:
        with RedisTier(f"127.0.0.1:1, 127.0.0.1:{cluster.ports[2]}") as tier:
            tier.write("m", "post", np.arange(50), rows_of(*range(50)))
            assert tier.num_rows("m", "post") == 50

    def test_a_redis_that_does_not_answer_is_named(self) -> None:
        with pytest.raises(BundleError, match=r"127\.0\.0\.1:1, connecting: .* no answer from 127\.0\.0\.1:1"):
            RedisTier("127.0.0.1:1")

    def test_a_plain_redis_is_told(self, tmp_path: Path) -> None:
        with plain_redis(tmp_path) as port, pytest.raises(BundleError, match="a plain Redis has no partitions; give"):
            RedisTier(f"127.0.0.1:{port}")

    @pytest.mark.parametrize("password", [None, "wrong"])
    def test_a_wrong_password_is_told(self, tmp_path: Path, password: str | None) -> None:
        with (
            plain_redis(tmp_path, "--requirepass", "secret") as port,
            pytest.raises(BundleError, match="give the cluster's password"),
        ):
            RedisTier(f"127.0.0.1:{port}", password=password)

    @pytest.mark.parametrize("address", ["", "localhost", ":7000", "localhost:x", "localhost:7000,"])
    def test_an_address_that_is_none_is_refused(self, address: str) -> None:
        with pytest.raises(BundleError, match="must be host:port"):
            RedisTier(address)

    def test_no_partition_at_all_is_refused(self) -> None:
        with pytest.raises(BundleError, match="num_partitions: got 0"):
            RedisTier(num_partitions=0)
