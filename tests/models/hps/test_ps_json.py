"""ps.json: what is made for a bundle is what HPS reads, and each mistake that HPS takes in silence is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sparsefeed.errors import BundleError
from sparsefeed.models.hps.ps_file import examine
from sparsefeed.models.hps.ps_json import (
    HpsModel,
    HpsTable,
    ParameterServer,
    PersistentDatabase,
    UpdateSource,
    VolatileDatabase,
    problems_in,
    ps_json,
)
from sparsefeed.models.store.hps import export_hps
from tests.bundles import values

Json = dict[str, Any]
Change = Callable[[Json], object]

# A file with every section and both a model's usual keys and the rare ones.
FULL: Json = {
    "supportlonglong": True,
    "fuse_embedding_table": False,
    "volatile_db": {
        "type": "redis_cluster",
        "address": "redis-0:7000,redis-1:7001",
        "user_name": "default",
        "password": "",
        "num_partitions": 8,
        "num_node_connections": 5,
        "allocation_rate": 268435456,
        "max_batch_size": 65536,
        "enable_tls": False,
        "overflow_margin": 1000000,
        "overflow_policy": "evict_oldest",
        "overflow_resolution_target": 0.8,
        "initial_cache_rate": 1.0,
        "cache_missed_embeddings": False,
        "update_filters": ["feed_a", "feed_b|feed_z"],
    },
    "persistent_db": {
        "type": "rocks_db",
        "path": "/var/hps",
        "num_threads": 4,
        "read_only": False,
        "max_batch_size": 65536,
        "update_filters": [".+"],
    },
    "update_source": {
        "type": "kafka_message_queue",
        "brokers": "kafka-0:9092,kafka-1",
        "metadata_refresh_interval_ms": 30000,
        "receive_buffer_size": 262144,
        "poll_timeout_ms": 500,
        "max_batch_size": 8192,
        "failure_backoff_ms": 50,
        "max_commit_interval": 32,
    },
    "models": [
        {
            "model": name,
            "sparse_files": [f"/away/{name}/1/member.model", f"/away/{name}/1/post.model"],
            "embedding_table_names": ["member", "post"],
            "embedding_vecsize_per_table": [4, 8],
            "maxnum_catfeature_query_per_table_per_sample": [1, 51],
            "default_value_for_each_table": [0.0, 0],
            "max_batch_size": 500,
            "num_of_worker_buffer_in_pool": 4,
            "num_of_refresher_buffer_in_pool": 1,
            "cache_refresh_percentage_per_iteration": 0.2,
            "deployed_device_list": [0, 1],
            "gpucache": True,
            "gpucacheper": 0.5,
            "hit_rate_threshold": 1,
            "embedding_cache_type": "dynamic",
            "refresh_delay": 0,
            "refresh_interval": 10,
            "init_ec": True,
            "fp8_quant": False,
        }
        for name in ("feed_a", "feed_b")
    ],
}
TABLES = (
    HpsTable(name="member", dim=16, sparse_file="/models/1/member", max_keys_per_sample=1),
    HpsTable(name="post", dim=32, sparse_file="/models/1/post", max_keys_per_sample=51),
)


def changed(*changes: Change) -> Json:
    """The full file after some changes in place."""
    value = copy.deepcopy(FULL)
    for change in changes:
        change(value)
    return value


def of_model(**keys: Any) -> Change:
    """Set keys of the first model."""
    return lambda value: value["models"][0].update(keys)


def of(section: str, **keys: Any) -> Change:
    """Set keys of a section."""
    return lambda value: value[section].update(keys)


def without(*path: str) -> Change:
    """Drop a key of the top, of a section, or of the first model ("models", key)."""

    def drop(value: Json) -> None:
        *sections, key = path
        for section in sections:
            value = value["models"][0] if section == "models" else value[section]
        del value[key]

    return drop


def only_caches_of(kind: str) -> Change:
    """Give every model this cache."""
    return lambda value: [model.update(embedding_cache_type=kind) for model in value["models"]]


def test_a_full_file_has_no_problem() -> None:
    assert problems_in(FULL) == []


def test_what_is_made_has_no_problem_and_is_as_stated() -> None:
    written = json.loads(ps_json("feed_hps_v1", TABLES, 500, gpus=2, worker_buffers=6))
    assert problems_in(written) == []
    assert written == {
        "supportlonglong": True,
        "volatile_db": {
            "type": "parallel_hash_map",
            "num_partitions": 8,
            "overflow_margin": 2**63 - 1,
            "update_filters": [".+"],
        },
        "models": [
            {
                "model": "feed_hps_v1",
                "sparse_files": ["/models/1/member", "/models/1/post"],
                "embedding_table_names": ["member", "post"],
                "embedding_vecsize_per_table": [16, 32],
                "maxnum_catfeature_query_per_table_per_sample": [1, 51],
                "default_value_for_each_table": [0.0, 0.0],
                "max_batch_size": 500,
                "num_of_worker_buffer_in_pool": 6,
                "deployed_device_list": [0, 1],
                "gpucache": True,
                "gpucacheper": 0.5,
                "hit_rate_threshold": 0.9,
                "embedding_cache_type": "dynamic",
            }
        ],
    }


# Keys that the parser of HPS 24.06 reads (HugeCTR/src/hps/inference_utils.cpp); it skips all others in silence.
KEYS_READ = {
    ParameterServer: {
        "supportlonglong", "fuse_embedding_table", "volatile_db", "persistent_db", "update_source", "models",
    },
    VolatileDatabase: {
        "type", "address", "user_name", "password", "num_partitions", "allocation_rate", "shared_memory_size",
        "shared_memory_name", "shared_memory_auto_remove", "num_node_connections", "max_batch_size", "enable_tls",
        "tls_ca_certificate", "tls_client_certificate", "tls_client_key", "tls_server_name_identification",
        "overflow_margin", "overflow_policy", "overflow_resolution_target", "initial_cache_rate",
        "cache_missed_embeddings", "update_filters",
    },
    PersistentDatabase: {"type", "path", "num_threads", "read_only", "max_batch_size", "update_filters"},
    UpdateSource: {
        "type", "brokers", "metadata_refresh_interval_ms", "receive_buffer_size", "poll_timeout_ms", "max_batch_size",
        "failure_backoff_ms", "max_commit_interval",
    },
    HpsModel: {
        "model", "sparse_files", "max_batch_size", "gpucache", "gpucacheper", "hit_rate_threshold", "dense_file",
        "num_of_worker_buffer_in_pool", "num_of_refresher_buffer_in_pool", "cache_refresh_percentage_per_iteration",
        "deployed_device_list", "maxnum_catfeature_query_per_table_per_sample", "embedding_vecsize_per_table",
        "default_value_for_each_table", "maxnum_des_feature_per_sample", "refresh_delay", "refresh_interval",
        "embedding_table_names", "use_static_table", "embedding_cache_type", "use_context_stream",
        "use_hctr_cache_implementation", "thread_pool_size", "init_ec", "enable_pagelock", "fp8_quant", "label_dim",
        "slot_num",
    },
}  # fmt: skip
# Keys without which the Triton backend does not start (hps_backend/src/backend.cpp).
KEYS_NEEDED = {
    "model", "max_batch_size", "sparse_files", "gpucache", "num_of_worker_buffer_in_pool", "deployed_device_list",
    "embedding_vecsize_per_table", "maxnum_catfeature_query_per_table_per_sample", "default_value_for_each_table",
}  # fmt: skip


@pytest.mark.parametrize("section", KEYS_READ)
def test_a_section_declares_the_keys_that_hps_reads_and_no_other(section: Any) -> None:
    assert set(section.model_fields) == KEYS_READ[section]


def test_the_keys_that_the_backend_needs_are_required() -> None:
    assert {name for name, field in HpsModel.model_fields.items() if field.is_required()} == KEYS_NEEDED


def test_defaults_are_those_of_nvidia() -> None:
    assert VolatileDatabase().type == PersistentDatabase().type == "disabled"
    assert UpdateSource().type == "null"
    assert VolatileDatabase().update_filters == ("^hps_.+$",)
    assert VolatileDatabase().overflow_margin == 2**64 - 1
    assert VolatileDatabase().num_partitions <= 16
    assert PersistentDatabase().path.endswith("/rocksdb")


# (what is done to the full file, the problem that must be told of); * marks what NVIDIA's parser takes in silence.
MISTAKES: dict[str, tuple[Change, str]] = {
    "* a misspelt section": (
        lambda value: value.update(peristent_db=value.pop("persistent_db")),
        'peristent_db: "peristent_db" is not a key; did you mean "persistent_db"?',
    ),
    "* a key of older releases": (
        of("volatile_db", max_get_batch_size=10000),
        'volatile_db.max_get_batch_size: "max_get_batch_size" is not a key; did you mean "max_batch_size"?',
    ),
    "* a key that JSON cannot set": (
        of("volatile_db", initialize_after_startup=False),
        'volatile_db.initialize_after_startup: "initialize_after_startup" is not a key',
    ),
    "* a key that is none": (of("volatile_db", refresh_time_after_fetch=True), "is not a key; allowed: "),
    "* a misspelt key of a model": (of_model(gpucachper=0.5), 'is not a key; did you mean "gpucacheper"?'),
    "* Python's name of a key": (of("persistent_db", backend="rocks_db"), 'persistent_db.backend: "backend" is not a'),
    "* an unknown type": (
        of("volatile_db", type="redis_clustr"),
        "volatile_db.type: got 'redis_clustr'; no word it knows, which HPS takes for \"disabled\" in silence; did you "
        'mean "redis_cluster"?',
    ),
    "* a type in capitals": (of("volatile_db", type="Redis_Cluster"), "volatile_db.type: got 'Redis_Cluster'"),
    "* a type of the other tier": (of("persistent_db", type="redis"), "allowed: disabled, rocks_db"),
    "* a tier without a type": (
        without("volatile_db", "type"),
        "volatile_db: has no type, so HPS disables it without a word; give one of hash_map, parallel_hash_map, multi",
    ),
    "* a disk tier without a type": (without("persistent_db", "type"), "persistent_db: has no type"),
    "* a source without a type": (without("update_source", "type"), "give one of kafka_message_queue, or drop it"),
    "* an unknown source": (of("update_source", type="kafak"), 'takes for "null" in silence'),
    "* an unknown policy": (of("volatile_db", overflow_policy="evict_lru"), 'takes for "evict_random" in silence'),
    "* an unknown cache": (of_model(embedding_cache_type="dynamo"), 'takes for "dynamic" in silence; did you mean'),
    "* fewer table names": (
        of_model(embedding_table_names=["member"]),
        "models[0]: lists of different lengths: sparse_files 2, embedding_table_names 1, embedding_vecsize_per_table 2",
    ),
    "* fewer files": (of_model(sparse_files=["/away/a"]), "models[0]: lists of different lengths: sparse_files 1, "),
    "* fewer sizes": (of_model(embedding_vecsize_per_table=[4]), "models[0]: lists of different lengths"),
    "* more key counts": (
        of_model(maxnum_catfeature_query_per_table_per_sample=[1, 2, 3]),
        "maxnum_catfeature_query_per_table_per_sample 3",
    ),
    "* fewer default values": (of_model(default_value_for_each_table=[0.0]), "default_value_for_each_table 1; give"),
    "* no file at all": (of_model(sparse_files=[]), "models[0].sparse_files: got []"),
    "* an empty path": (of_model(sparse_files=["", "/b"]), "models[0].sparse_files[0]: got ''"),
    "* two models of one name": (of_model(model="feed_b"), 'models: "feed_b" occurs twice; HPS would mix their tables'),
    "* two tables of one name": (
        of_model(embedding_table_names=["post", "post"]),
        'models[0].embedding_table_names: "post" occurs twice',
    ),
    "* a name with a dot": (of_model(model="feed.v1"), "models[0].model: got 'feed.v1'; string should match pattern"),
    "* a table's name with a blank": (of_model(embedding_table_names=["a b", "c"]), "embedding_table_names[0]: got"),
    "* a name that is too long": (of_model(model="x" * 121), "models[0].model: got 'xxx"),
    "* a cache larger than the table": (of_model(gpucacheper=1.5), "models[0].gpucacheper: got 1.5"),
    "* a cache of nothing": (of_model(gpucacheper=0), "models[0].gpucacheper: got 0"),
    "* no worker": (of_model(num_of_worker_buffer_in_pool=0), "models[0].num_of_worker_buffer_in_pool: got 0"),
    "* no candidate": (of_model(max_batch_size=0), "models[0].max_batch_size: got 0"),
    "* a size that is negative": (of_model(embedding_vecsize_per_table=[4, -8]), "vecsize_per_table[1]: got -8"),
    "* a GPU twice": (of_model(deployed_device_list=[0, 0]), 'models[0].deployed_device_list: "0" occurs twice'),
    "* no GPU": (of_model(deployed_device_list=[]), "models[0].deployed_device_list: got []"),
    "* fp8 in a dynamic cache": (of_model(fp8_quant=True), "got True, which the dynamic cache ignores; set embedding_"),
    "* a static table that is dynamic": (
        of_model(use_static_table=True),
        'models[0].embedding_cache_type: got "dynamic", but use_static_table makes it static; drop one of them',
    ),
    "* a static cache off the GPU": (
        of_model(embedding_cache_type="uvm", gpucache=False),
        "models[0].gpucache: got False, but the uvm cache is all that holds its rows",
    ),
    "* a memory tier that stays empty": (only_caches_of("static"), "volatile_db: stays empty"),
    "* a disk tier that stays empty": (only_caches_of("uvm"), "persistent_db: stays empty"),
    "* updates that reach nothing": (only_caches_of("static"), "update_source: updates reach no static or uvm cache"),
    "* rows that nothing holds": (
        lambda value: [value[name].update(type="disabled") for name in ("volatile_db", "persistent_db")],
        "volatile_db: disabled, and there is no persistent_db: rows that no GPU cache holds would be default vectors",
    ),
    "* updates without a database": (
        lambda value: [value[name].update(type="disabled") for name in ("volatile_db", "persistent_db")],
        "update_source: has no database to update",
    ),
    "* NVIDIA's filter, given": (
        of("volatile_db", update_filters=["^hps_.+$"]),
        "volatile_db.update_filters[0]: got '^hps_.+$', which matches no table",
    ),
    "* NVIDIA's filter, by default": (
        without("persistent_db", "update_filters"),
        'persistent_db.update_filters: missing, and HPS\'s default ^hps_.+$ never matches a table; give [".+"]',
    ),
    "* a filter of another model": (of("volatile_db", update_filters=[".+", "feed_c"]), "update_filters[1]: got 'fee"),
    "* a margin that Redis ignores": (
        of("volatile_db", overflow_policy="evict_random"),
        "evict_random evicts nothing from redis_cluster",
    ),
    "* a plain list of hosts": (of("volatile_db", address="a:7000;b:7000"), "must be host:port, or several with comm"),
    "a filter that is no expression": (of("volatile_db", update_filters=["(feed"]), "not a regular expression"),
    "a filter that is too large": (of("volatile_db", update_filters=["a{99999999999}"]), "not a regular expression"),
    "a host without a port": (of("volatile_db", address="redis-0"), "volatile_db.address: got 'redis-0'; must be host"),
    "brokers in a sentence": (of("update_source", brokers="a:9092 b:9092"), "update_source.brokers: got"),
    "fewer partitions than connections": (
        of("volatile_db", num_partitions=2),
        "volatile_db.num_partitions: got 2, fewer than num_node_connections, 5, and HPS does not start",
    ),
    "no int64": (lambda value: value.update(supportlonglong=False), "takes int64 keys only; set it to"),
    "int64 not said": (without("supportlonglong"), "supportlonglong: missing"),
    "no models": (without("models"), "models: missing"),
    "an empty list of models": (lambda value: value.update(models=[]), "models: got []"),
    "a model that is none": (lambda value: value["models"].append("feed_c"), "models[2]: got 'feed_c'"),
    "models by name": (lambda value: value.update(models={"feed": {}}), "models: got {'feed': {}}"),
    "* the backend's pool not said": (without("models", "num_of_worker_buffer_in_pool"), "buffer_in_pool: missing"),
    "* the backend's cache not said": (without("models", "gpucache"), "models[0].gpucache: missing"),
    "* the backend's share not said": (without("models", "gpucacheper"), "models[0].gpucacheper: missing; Triton's"),
    "* the backend's threshold not said": (without("models", "hit_rate_threshold"), "hit_rate_threshold: missing"),
    "devices not said": (without("models", "deployed_device_list"), "models[0].deployed_device_list: missing"),
    "a number in quotes": (of_model(max_batch_size="500"), "models[0].max_batch_size: got '500'"),
    "a flag that is a number": (of_model(gpucache=1), "models[0].gpucache: got 1"),
    "a number that is a flag": (of_model(max_batch_size=True), "models[0].max_batch_size: got True"),
    "a count with a point": (of_model(max_batch_size=500.5), "models[0].max_batch_size: got 500.5"),
    "more than HPS can hold": (of_model(max_batch_size=2**31), "models[0].max_batch_size: got 2147483648"),
    "null": (of_model(refresh_delay=None), "models[0].refresh_delay: got None"),
    "a share below zero": (of_model(cache_refresh_percentage_per_iteration=-0.1), "per_iteration: got -0.1"),
    "a delay below zero": (of_model(refresh_interval=-1), "models[0].refresh_interval: got -1"),
    "no memory": (of("volatile_db", shared_memory_size=0), "volatile_db.shared_memory_size: got 0"),
    "a section that is a word": (lambda value: value.update(volatile_db="redis"), "volatile_db: got 'redis'"),
}


@pytest.mark.parametrize(("change", "problem"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_of_with_its_place(change: Change, problem: str) -> None:
    assert any(problem in line for line in problems_in(changed(change))), problems_in(changed(change))


def test_all_problems_are_told_of_at_once_and_each_once() -> None:
    changes = [
        of("volatile_db", type="hash_mapp", update_filters=["^hps_.+$"]),
        of_model(gpucacheper=1.5, embedding_table_names=["member"], fp8_quant=True, colour="red"),
        lambda value: value["models"].append({"model": "feed_b"}),
    ]
    problems = problems_in(changed(*changes))
    assert len(set(problems)) == len(problems)
    for expected in (
        "volatile_db.type", "volatile_db.update_filters[0]", "models[0].gpucacheper: got 1.5", "models[0]: lists of",
        "models[0].fp8_quant", 'models[0].colour: "colour" is not a key', "models[2].sparse_files: missing",
        'models: "feed_b" occurs twice',
    ):  # fmt: skip
        assert sum(line.startswith(expected) for line in problems) == 1, (expected, problems)
    assert not any(line.startswith("models: got") for line in problems), problems


def test_a_filter_is_not_blamed_for_a_name_that_is_wrong() -> None:
    (problem,) = problems_in(changed(of_model(model="feed.a")))
    assert problem.startswith("models[0].model: ")


def test_a_static_cache_without_tiers_may_have_fp8() -> None:
    tiers = [without(name) for name in ("volatile_db", "persistent_db", "update_source")]
    assert problems_in(changed(*tiers, only_caches_of("static"), of_model(fp8_quant=True))) == []
    assert problems_in(changed(*tiers, lambda value: [of_static(model) for model in value["models"]])) == []


def of_static(model: Json) -> None:
    """Say it the old way."""
    del model["embedding_cache_type"]
    model.update(use_static_table=True, fp8_quant=True)


def test_one_dynamic_cache_is_enough_for_the_tiers() -> None:
    assert problems_in(changed(of_model(embedding_cache_type="static"))) == []


def test_without_a_cache_its_settings_need_not_be_said() -> None:
    gone = [without("models", name) for name in ("gpucacheper", "hit_rate_threshold")]
    assert problems_in(changed(of_model(gpucache=False), *gone)) == []


def test_a_source_that_is_off_needs_no_filters_and_no_filter_is_a_choice() -> None:
    off = of("update_source", type="none")
    assert problems_in(changed(off, without("volatile_db", "update_filters"))) == []
    assert problems_in(changed(of("persistent_db", update_filters=[]))) == []
    assert problems_in(changed(of("persistent_db", update_filters=["[[f]eed_a"]))) == []


def test_a_bundle_that_cannot_be_served_is_refused_where_ps_json_is_made() -> None:
    with pytest.raises(BundleError, match=r"ps\.json: models\[0\]\.model: got 'feed\.v1'; string should match"):
        ps_json("feed.v1", TABLES, 500)
    with pytest.raises(BundleError, match=r"ps\.json: models\[0\]\.sparse_files: got \[\]; must hold at least one"):
        ps_json("feed_hps_v1", (), 500)
    with pytest.raises(BundleError, match=r"models\[0\]\.deployed_device_list: got \[\]"):
        ps_json("feed_hps_v1", TABLES, 500, gpus=0)
    with pytest.raises(BundleError, match=r'"post" occurs twice'):
        ps_json("feed_hps_v1", (TABLES[1], TABLES[1]), 500)


@pytest.mark.parametrize("change", [{"name": "po st"}, {"dim": 0}, {"sparse_file": ""}, {"max_keys_per_sample": 0}])
def test_a_table_that_hps_would_misuse_cannot_be_made(change: Json) -> None:
    with pytest.raises(ValidationError):
        HpsTable(**{**TABLES[0].model_dump(), **change})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("redis"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.just("type"), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(wrong=JSON, place=st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_whatever_stands_at_a_key_the_file_is_judged_and_not_stumbled_over(wrong: Any, place: int) -> None:
    value = copy.deepcopy(FULL)
    parts = [value, *(value[name] for name in ("volatile_db", "persistent_db", "update_source")), value["models"][0]]
    slots = [(part, key) for part in parts for key in part]
    part, key = slots[place % len(slots)]
    part[key] = wrong
    assert all(line.strip() for line in problems_in(value))


# Files


def save(folder: Path, value: object) -> Path:
    path = folder / "ps.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def small(folder: Path) -> Json:
    """One model whose sparse folders lie in `folder`."""
    value = json.loads(
        ps_json(
            "feed_a",
            [
                HpsTable(name=name, dim=dim, sparse_file=str(folder / name), max_keys_per_sample=1)
                for name, dim in (("member", 4), ("post", 8))
            ],
            100,
        )
    )
    assert isinstance(value, dict)
    return value


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    export_hps(tmp_path / "tables", {"member": values(4), "post": values(8)})
    return tmp_path / "tables"


def test_a_file_and_its_folders_are_counted(tmp_path: Path, tables: Path) -> None:
    examined = examine(save(tmp_path, small(tables)))
    assert (examined.problems, examined.notes) == ((), ())
    assert [model.model for model in examined.models] == ["feed_a"]
    assert (examined.num_tables, examined.num_bytes) == (2, 64 * (8 + 4 * 4) + 64 * (8 + 8 * 4))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON: "),
        ('{"supportlonglong": true, // yes\n}', "HPS reads standard JSON, without comments and trailing commas"),
        ("[]", "holds list, not an object"),
        ('{"supportlonglong": true, "supportlonglong": false}', '"supportlonglong" stands twice in one object'),
        ('{"models": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "not JSON: "),
    ],
)
def test_a_file_that_is_no_ps_json_is_told_of(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in examine(save(tmp_path, text)).problems[0]


def test_a_file_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    assert "not readable: No such file" in examine(tmp_path / "ps.json").problems[0]
    assert "not readable: Is a directory" in examine(tmp_path).problems[0]


def break_vectors(tables: Path) -> None:
    (tables / "post" / "emb_vector").write_bytes(bytes(64 * 4 * 4))


def break_keys(tables: Path) -> None:
    (tables / "post" / "key").write_bytes(bytes(7))


def drop_vectors(tables: Path) -> None:
    (tables / "post" / "emb_vector").unlink()


def empty(tables: Path) -> None:
    for name in ("key", "emb_vector"):
        (tables / "post" / name).write_bytes(b"")


def repeat_a_key(tables: Path) -> None:
    np.array([*range(63), 7], "<i8").tofile(tables / "post" / "key")


def break_meta(tables: Path) -> None:
    (tables / "post" / "meta").write_bytes(bytes(9))


def make_a_file_of_it(tables: Path) -> None:
    for path in (tables / "post").iterdir():
        path.unlink()
    (tables / "post").rmdir()
    (tables / "post").write_text("")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (break_vectors, "post: key has 512 bytes, emb_vector 1024; 64 keys of dim 8 need 512 and 2048"),
        (break_keys, "post: key has 7 bytes"),
        (drop_vectors, "it must hold key and emb_vector"),
        (empty, "post/key is empty, and HPS does not start"),
        (repeat_a_key, "key 7 is there twice"),
        (break_meta, "meta has 9 bytes, key has 512"),
        (make_a_file_of_it, "post: not a sparse folder"),
    ],
)
def test_a_bad_sparse_folder_is_told_of(
    tmp_path: Path, tables: Path, change: Callable[[Path], None], problem: str
) -> None:
    change(tables)
    (told,) = examine(save(tmp_path, small(tables))).problems
    assert told.startswith("models[0].sparse_files[1]: ")
    assert problem in told


def test_keys_in_any_order_are_fine_when_none_is_there_twice(tmp_path: Path, tables: Path) -> None:
    np.random.default_rng(0).permutation(64).astype("<i8").tofile(tables / "post" / "key")
    assert examine(save(tmp_path, small(tables))).problems == ()


def test_a_memory_tier_that_is_too_small_for_a_table_is_told_of(tmp_path: Path, tables: Path) -> None:
    value = small(tables)
    value["volatile_db"]["overflow_margin"] = 7
    problems = examine(save(tmp_path, value)).problems
    assert 'table "member" has 64 keys, volatile_db holds 56 (num_partitions x overflow_margin)' in problems[0]
    value["persistent_db"] = {"type": "rocks_db", "path": "/var/hps"}
    assert examine(save(tmp_path, value)).problems == ()


def test_a_folder_elsewhere_is_noted_but_one_that_should_be_here_is_a_problem(tmp_path: Path, tables: Path) -> None:
    value = small(tables)
    value["models"][0]["sparse_files"] = ["/away/feed/1/member.model", "hdfs://host/post"]
    away = examine(save(tmp_path, value))
    assert (len(away.notes), away.problems) == (2, ())
    value["models"][0]["sparse_files"] = [str(tables / "membre"), "tables/post"]
    missing = examine(save(tmp_path, value)).problems
    assert f"{tables / 'membre'} is not there, though {tables} is" in missing[0]
    assert "tables/post is not there; HPS looks for it from the folder that tritonserver is started in" in missing[1]
    value["models"][0]["sparse_files"] = [str(tables / ("x" * 300)), str(tables / "post")]
    assert "File name too long" in examine(save(tmp_path, value)).problems[0]


def test_a_folder_beside_ps_json_is_found_by_the_name_of_its_model(tmp_path: Path, tables: Path) -> None:
    (tmp_path / "feed_a").mkdir()
    tables.rename(tmp_path / "feed_a" / "1")
    break_keys(tmp_path / "feed_a" / "1")
    examined = examine(save(tmp_path, small(Path("/models/feed_a/1"))))
    assert examined.num_bytes == 64 * (8 + 4 * 4)
    assert f"{tmp_path / 'feed_a' / '1' / 'post'}: key has 7 bytes" in examined.problems[0]


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (of("volatile_db", type="redis"), 'volatile_db.type: "redis" is another name of "redis_cluster"'),
        (of("volatile_db", overflow_policy="oldest"), '"oldest" is another name of "evict_oldest"'),
        (of("persistent_db", type="rocks"), 'persistent_db.type: "rocks" is another name of "rocks_db"'),
        (of("update_source", type="kafka"), 'update_source.type: "kafka" is another name of "kafka_message_queue"'),
        (of("volatile_db", type="hash_map"), "volatile_db.address: hash_map ignores it; redis_cluster alone reads it"),
        (of("volatile_db", shared_memory_size=1), "redis_cluster ignores it; multi_process_hash_map alone reads it"),
        (of("volatile_db", initial_cache_rate=0.5), "HPS 24.06 logs it and no more"),
        (of("volatile_db", cache_missed_embeddings=True), "default vectors of unknown ids are stored"),
        (without("persistent_db", "path"), "persistent_db.path: not given, so HPS takes "),
        (lambda value: value.update(fuse_embedding_table=True), "fuse_embedding_table: tables of one vecsize"),
        (without("models", "embedding_table_names"), "HPS calls them sparse_embedding0, sparse_embedding1"),
    ],
)
def test_what_is_allowed_but_worth_knowing_is_noted(tmp_path: Path, change: Change, note: str) -> None:
    examined = examine(save(tmp_path, changed(change)))
    assert examined.problems == ()
    assert any(note in line for line in examined.notes), examined.notes
