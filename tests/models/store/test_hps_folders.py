"""NVIDIA HPS: sparse folders and ps.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsefeed.errors import BundleError
from sparsefeed.models.store.hps import (
    HpsModel,
    HpsTable,
    ParameterServer,
    VolatileDatabase,
    export_hps,
    ps_json,
    read_hps,
)
from tests.bundles import values

TABLES = (HpsTable("member", 16, "/models/1/member", 1), HpsTable("post", 32, "/models/1/post", 51))


def model(**changes: Any) -> HpsModel:
    return replace(
        HpsModel(
            model="feed_hps_v1",
            sparse_files=("/a", "/b"),
            embedding_table_names=("member", "post"),
            embedding_vecsize_per_table=(16, 32),
            maxnum_catfeature_query_per_table_per_sample=(1, 51),
            default_value_for_each_table=(0.0, 0.0),
            max_batch_size=500,
        ),
        **changes,
    )


def test_a_sparse_folder_reads_back_as_it_was_written(tmp_path: Path) -> None:
    tables = {"member": values(4), "post": values(8, num_rows=5)}
    export_hps(tmp_path, tables)
    for name, written in tables.items():
        keys, vectors = read_hps(tmp_path / name, written.shape[1])
        np.testing.assert_array_equal(keys, np.arange(len(written)))
        np.testing.assert_array_equal(vectors, written)


def test_an_empty_sparse_folder_is_an_empty_table(tmp_path: Path) -> None:
    export_hps(tmp_path, {"post": np.empty((0, 8), np.float32)})
    keys, vectors = read_hps(tmp_path / "post", 8)
    assert (keys.shape, vectors.shape) == ((0,), (0, 8))


def test_padding_that_is_not_zero_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match='table "post": row 0'):
        export_hps(tmp_path, {"post": np.ones((3, 4), np.float32)})
    assert not (tmp_path / "post").exists()


def test_a_sparse_folder_of_another_dim_or_cut_off_is_refused(tmp_path: Path) -> None:
    export_hps(tmp_path, {"post": values(8)})
    with pytest.raises(BundleError, match="64 keys of dim 4 need 512 and 1024"):
        read_hps(tmp_path / "post", 4)
    (tmp_path / "post" / "key").write_bytes(b"1234567")
    with pytest.raises(BundleError, match="key has 7 bytes"):
        read_hps(tmp_path / "post", 8)
    (tmp_path / "post" / "key").unlink()
    with pytest.raises(BundleError, match="must hold key and emb_vector"):
        read_hps(tmp_path / "post", 8)


# Keys that the parser of HPS 24.06 reads (HugeCTR/src/hps/inference_utils.cpp); it skips all others in silence.
KEYS_READ = {
    "": {"supportlonglong", "fuse_embedding_table", "volatile_db", "persistent_db", "update_source", "models"},
    "volatile_db": {
        "type", "address", "user_name", "password", "num_partitions", "allocation_rate", "shared_memory_size",
        "max_batch_size", "overflow_margin", "overflow_policy", "overflow_resolution_target", "initial_cache_rate",
        "cache_missed_embeddings", "update_filters",
    },
    "models": {
        "model", "sparse_files", "max_batch_size", "gpucache", "gpucacheper", "hit_rate_threshold", "dense_file",
        "num_of_worker_buffer_in_pool", "num_of_refresher_buffer_in_pool", "cache_refresh_percentage_per_iteration",
        "deployed_device_list", "maxnum_catfeature_query_per_table_per_sample", "embedding_vecsize_per_table",
        "default_value_for_each_table", "maxnum_des_feature_per_sample", "refresh_delay", "refresh_interval",
        "embedding_table_names", "use_static_table", "embedding_cache_type", "thread_pool_size", "init_ec", "fp8_quant",
    },
}  # fmt: skip
# Keys without which the Triton backend does not start (hps_backend/src/backend.cpp).
KEYS_NEEDED = {
    "model", "max_batch_size", "sparse_files", "gpucache", "hit_rate_threshold", "gpucacheper",
    "num_of_worker_buffer_in_pool", "deployed_device_list", "embedding_vecsize_per_table",
    "maxnum_catfeature_query_per_table_per_sample", "default_value_for_each_table",
}  # fmt: skip


def test_every_key_of_ps_json_is_one_that_hps_reads_and_none_it_needs_is_left_out() -> None:
    written = json.loads(ps_json("feed_hps_v1", TABLES, 500))
    assert written.keys() <= KEYS_READ[""]
    assert written["volatile_db"].keys() <= KEYS_READ["volatile_db"]
    assert KEYS_NEEDED <= written["models"][0].keys() <= KEYS_READ["models"]


def test_ps_json_is_what_hps_reads() -> None:
    assert json.loads(ps_json("feed_hps_v1", TABLES, 500)) == {
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
                "num_of_worker_buffer_in_pool": 4,
                "deployed_device_list": [0],
                "gpucache": True,
                "gpucacheper": 0.5,
                "hit_rate_threshold": 0.9,
                "embedding_cache_type": "dynamic",
            }
        ],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "feed.v1"}, 'model "feed.v1": not a name'),
        ({"model": ""}, "not a name"),
        ({"embedding_vecsize_per_table": (16,)}, "lists of different lengths"),
        ({"embedding_table_names": ("post", "post")}, "a table name occurs twice"),
        ({"max_batch_size": 0}, "max_batch_size: got 0; must be at least 1"),
        ({"num_of_worker_buffer_in_pool": 0}, "num_of_worker_buffer_in_pool: got 0"),
        ({"gpucacheper": 1.5}, r"gpucacheper: got 1.5; must be in \(0, 1\]"),
        ({"hit_rate_threshold": 0.0}, "hit_rate_threshold: got 0.0"),
        ({"embedding_cache_type": "dynamo"}, 'got "dynamo"; allowed: dynamic, static, uvm'),
    ],
)
def test_a_model_that_hps_would_take_in_silence_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        model(**change)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (("po st", 8, "/p", 1), 'table "po st": not a name'),
        (("post", 0, "/p", 1), "dim: got 0"),
        (("post", 8, "", 1), "sparse_file: empty"),
        (("post", 8, "/p", 0), "max_keys_per_sample: got 0"),
    ],
)
def test_a_table_that_hps_would_take_in_silence_is_refused(table: tuple[str, int, str, int], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        HpsTable(*table)


def test_a_server_without_models_with_two_alike_or_without_int64_is_refused() -> None:
    with pytest.raises(BundleError, match="models: empty"):
        ParameterServer(())
    with pytest.raises(BundleError, match="a name occurs twice"):
        ParameterServer((model(), model()))
    with pytest.raises(BundleError, match="supportlonglong"):
        ParameterServer((model(),), supportlonglong=False)
    with pytest.raises(BundleError, match="has no table"):
        ps_json("feed_hps_v1", (), 500)


@pytest.mark.parametrize("change", [{"type": "hashmap_parallel"}, {"num_partitions": 0}])
def test_a_volatile_database_that_hps_would_disable_in_silence_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match=r"volatile_db\."):
        VolatileDatabase(**change)
