"""The sections of ps.json of NVIDIA HPS 24.06: every key that its parser reads, with type, range and default.

Names and defaults are NVIDIA's; where a default is a trap, `ps_json` writes another value.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from sparsefeed.errors import did_you_mean
from sparsefeed.etl.spec import Frozen, Name

__all__ = [
    "NEVER_MATCHES",
    "OTHER_NAMES",
    "PER_TABLE",
    "UNBOUNDED",
    "Count",
    "Filled",
    "Flag",
    "HpsModel",
    "PersistentDatabase",
    "Text",
    "UpdateSource",
    "VolatileDatabase",
    "sound",
]

# Words by what they mean, and NVIDIA's other names for it.
_VOLATILE = {
    "disabled": ("disable", "none"),
    "hash_map": ("hashmap", "hash", "map"),
    "parallel_hash_map": ("parallel_hashmap", "parallel_hash", "parallel_map"),
    "multi_process_hash_map": ("multi_process_hashmap", "multi_process_hash", "multi_process_map"),
    "redis_cluster": ("redis",),
}
_PERSISTENT = {"disabled": ("disable", "none"), "rocks_db": ("rocksdb", "rocks")}
_SOURCE = {"null": ("none",), "kafka_message_queue": ("kafka_mq", "kafka")}
_POLICY = {"evict_random": ("random",), "evict_least_used": ("least_used",), "evict_oldest": ("oldest",)}
_CACHE: dict[str, tuple[str, ...]] = {"dynamic": (), "static": (), "uvm": ()}
OTHER_NAMES: dict[tuple[str, str], Mapping[str, tuple[str, ...]]] = {
    ("volatile_db", "type"): _VOLATILE,
    ("volatile_db", "overflow_policy"): _POLICY,
    ("persistent_db", "type"): _PERSISTENT,
    ("update_source", "type"): _SOURCE,
}

UNBOUNDED = 2**64 - 1
NEVER_MATCHES = ("^hps_.+$",)  # NVIDIA's default: what it is asked to match begins with hps_et\.
PER_TABLE = (
    "sparse_files",
    "embedding_table_names",
    "embedding_vecsize_per_table",
    "maxnum_catfeature_query_per_table_per_sample",
    "default_value_for_each_table",
)


def _meaning(words: Mapping[str, tuple[str, ...]], taken_for: str, got: str) -> str:
    for name, others in words.items():
        if got == name or got in others:
            return name
    hint = did_you_mean(got, words)
    raise PydanticCustomError(
        "word", "{why}", {"why": f'no word it knows, which HPS takes for "{taken_for}" in silence{hint}'}
    )


def _word(words: Mapping[str, tuple[str, ...]], taken_for: str) -> Callable[[str], str]:
    return partial(_meaning, words, taken_for)


def _hosts(got: str, pattern: str = r"[^\s:,;]+:[0-9]{1,5}(,[^\s:,;]+:[0-9]{1,5})*") -> str:
    if not re.fullmatch(pattern, got):
        raise PydanticCustomError("hosts", "must be host:port, or several with commas")
    return got


def _filled(got: tuple[Any, ...]) -> tuple[Any, ...]:
    # Not min_length: pydantic calls a tuple empty, too, when none of its entries is right.
    if not got:
        raise PydanticCustomError("empty", "must hold at least one")
    return got


Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
Index = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Size = Annotated[int, Field(strict=True, ge=1, le=UNBOUNDED)]
Number = Annotated[float, Field(strict=True)]
Share = Annotated[float, Field(strict=True, gt=0, le=1)]
ShareOrNone = Annotated[float, Field(strict=True, ge=0, le=1)]
Text = Annotated[str, Field(min_length=1)]
Hosts = Annotated[str, AfterValidator(_hosts)]
Filled = AfterValidator(_filled)


class VolatileDatabase(Frozen):
    """The CPU memory tier. Without the whole block HPS takes parallel_hash_map, with one that has no type, none."""

    type: Annotated[str, AfterValidator(_word(_VOLATILE, "disabled"))] = "disabled"
    address: Hosts = "127.0.0.1:7000"  # redis_cluster: nodes, of which the first is asked for the others
    user_name: str = "default"  # redis_cluster
    password: str = ""  # redis_cluster
    num_partitions: Count = Field(default_factory=lambda: min(16, os.cpu_count() or 1))  # a key's is its hash's
    allocation_rate: Size = 2**28  # bytes; hash maps grow by it
    shared_memory_size: Size = 2**34  # bytes; multi_process_hash_map
    shared_memory_name: Text = "hctr_mp_hash_map_database"  # multi_process_hash_map
    shared_memory_auto_remove: Flag = True  # multi_process_hash_map
    num_node_connections: Count = 5  # redis_cluster; at most num_partitions, or HPS does not start
    max_batch_size: Count = 65536  # keys per read or write
    enable_tls: Flag = False  # redis_cluster, as the four below
    tls_ca_certificate: Text = "cacertbundle.crt"
    tls_client_certificate: Text = "client_cert.pem"
    tls_client_key: Text = "client_key.pem"
    tls_server_name_identification: Text = "redis.localhost"
    overflow_margin: Size = UNBOUNDED  # rows per partition before eviction
    overflow_policy: Annotated[str, AfterValidator(_word(_POLICY, "evict_random"))] = "evict_random"
    overflow_resolution_target: Share = 0.8  # of the margin that eviction leaves
    initial_cache_rate: Share = 1.0  # 24.06 logs it and no more
    cache_missed_embeddings: Flag = False  # default vectors of unknown ids are stored, too
    update_filters: tuple[Text, ...] = NEVER_MATCHES


class PersistentDatabase(Frozen):
    """The disk tier."""

    type: Annotated[str, AfterValidator(_word(_PERSISTENT, "disabled"))] = "disabled"
    path: Text = Field(default_factory=lambda: f"{tempfile.gettempdir()}/rocksdb")  # ours: always stated
    num_threads: Count = 16
    read_only: Flag = False
    max_batch_size: Count = 65536  # keys per read or write
    update_filters: tuple[Text, ...] = NEVER_MATCHES


class UpdateSource(Frozen):
    """Kafka, whose messages change rows of the two databases while HPS serves."""

    type: Annotated[str, AfterValidator(_word(_SOURCE, "null"))] = "null"
    brokers: Annotated[
        str, AfterValidator(partial(_hosts, pattern=r"[^\s:,;]+(:[0-9]{1,5})?(,[^\s:,;]+(:[0-9]{1,5})?)*"))
    ] = "127.0.0.1:9092"
    metadata_refresh_interval_ms: Count = 30000
    receive_buffer_size: Count = 2**18  # bytes
    poll_timeout_ms: Count = 500
    max_batch_size: Count = 8192  # rows per write into a database
    failure_backoff_ms: Index = 50
    max_commit_interval: Count = 32  # messages


class HpsModel(Frozen):
    """One entry of `models`: one bundle. HPS keys tables by model name, so each bundle has a name of its own.

    Lists run over tables in the spec's order. Missing keys give default vectors. Five keys have defaults that Triton's
    backend does not take; they must be given.
    """

    model: Name
    sparse_files: Annotated[tuple[Text, ...], Filled]  # sparse folders, one per table
    max_batch_size: Count  # candidates per request at most; NVIDIA's default is 64
    gpucache: Flag  # NVIDIA's default is true
    gpucacheper: Share = 0.2  # share of a table's rows held on a GPU; needed with gpucache
    hit_rate_threshold: ShareOrNone = 0.9  # above it HPS answers at once and fills its cache behind; with gpucache
    dense_file: str = ""  # Triton's backend looks rows up and no more
    num_of_worker_buffer_in_pool: Count  # per GPU, at least the instances of the Triton model; NVIDIA's default is 1
    num_of_refresher_buffer_in_pool: Count = 1
    cache_refresh_percentage_per_iteration: ShareOrNone = 0.0
    deployed_device_list: Annotated[tuple[Index, ...], Filled]  # GPUs, each with a cache of its own
    maxnum_catfeature_query_per_table_per_sample: tuple[Count, ...]  # keys one candidate asks of a table at most
    embedding_vecsize_per_table: tuple[Count, ...]  # floats per row
    default_value_for_each_table: tuple[Number, ...]  # each float of the vector of a key that is not there
    maxnum_des_feature_per_sample: Index = 26
    refresh_delay: Annotated[float, Field(strict=True, ge=0)] = 0.0  # seconds from the load to the first refresh
    refresh_interval: Index = 0  # seconds between refreshes; 0: none
    embedding_table_names: tuple[Name, ...] = ()  # absent: sparse_embedding0, sparse_embedding1, ...
    use_static_table: Flag = False  # true overrules embedding_cache_type
    embedding_cache_type: Annotated[str, AfterValidator(_word(_CACHE, "dynamic"))] = "dynamic"
    use_context_stream: Flag = True
    use_hctr_cache_implementation: Flag = True
    thread_pool_size: Count = 16
    init_ec: Flag = True  # the cache is filled at the load
    enable_pagelock: Flag = False
    fp8_quant: Flag = False  # the static cache alone heeds it
    label_dim: Count = 1
    slot_num: Count = 10

    @property
    def cache(self) -> str:
        """The cache that HPS takes, whatever `embedding_cache_type` says."""
        return "static" if self.use_static_table else self.embedding_cache_type

    @property
    def table_names(self) -> tuple[str, ...]:
        """Names of its tables; HPS's own when none are given."""
        return self.embedding_table_names or tuple(f"sparse_embedding{i}" for i in range(len(self.sparse_files or ())))


Section = TypeVar("Section", bound=Frozen)


def sound(section: type[Section], value: object) -> Section | None:
    """What of a section can be read: the keys that are missing or wrong are None, the absent ones NVIDIA's defaults.

    `model_fields_set` holds the keys that are given, wrong ones too. None when it is no section at all.
    """
    if not isinstance(value, dict):
        return None
    read: dict[str, Any] = {name: None for name, field in section.model_fields.items() if field.is_required()}
    given = set(value) & set(section.model_fields)
    for name in given:
        try:
            read[name] = _reader(section, name).validate_python(value[name])
        except ValidationError:
            read[name] = None
    return section.model_construct(_fields_set=given, **read)


@cache
def _reader(section: type[Frozen], name: str) -> TypeAdapter[Any]:
    field = section.model_fields[name]
    kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
