"""What must hold between the keys of a ps.json: HPS checks none of it, and serves default vectors instead."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sparsefeed.models.hps.ps_sections import (
    NEVER_MATCHES,
    OTHER_NAMES,
    PER_TABLE,
    UNBOUNDED,
    HpsModel,
    PersistentDatabase,
    UpdateSource,
    VolatileDatabase,
    sound,
)

__all__ = ["faults"]


def faults(value: object) -> list[str]:
    """What does not hold between keys that are right by themselves."""
    top = value if isinstance(value, dict) else {}
    listed = top.get("models")
    models = [sound(HpsModel, model) for model in (listed if isinstance(listed, list) else [])]
    found = []
    if top.get("supportlonglong") is False:
        found.append("supportlonglong: got False; Triton's backend takes int64 keys only; set it to true")
    for name in ("volatile_db", "persistent_db", "update_source"):
        if isinstance(top.get(name), dict) and "type" not in top[name]:
            words = [word for word in OTHER_NAMES[name, "type"] if word not in ("disabled", "null")]
            found.append(
                f"{name}: has no type, so HPS disables it without a word; give one of {', '.join(words)}, or drop it"
            )
    found += _twice("models", [model.model for model in models if model], "HPS would mix their tables")
    for i, model in enumerate(models):
        found += _faults_of_model(f"models[{i}]", model) if model else ()
    return [*found, *_faults_of_tiers(top, [model for model in models if model])]


def _twice(path: str, names: Sequence[object], why: str) -> Iterator[str]:
    for name in sorted({str(name) for i, name in enumerate(names) if name is not None and name in names[:i]}):
        yield f'{path}: "{name}" occurs twice; {why}; give each its own'


def _faults_of_model(path: str, model: HpsModel) -> Iterator[str]:
    given = model.model_fields_set
    lists = {name: getattr(model, name) for name in PER_TABLE if name in given}
    lengths = {name: len(values) for name, values in lists.items() if values is not None}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        yield f"{path}: lists of different lengths: {told}; give each one entry per table, in the same order"
    yield from _twice(f"{path}.embedding_table_names", model.embedding_table_names or (), "HPS would mix their rows")
    yield from _twice(f"{path}.deployed_device_list", model.deployed_device_list or (), "a GPU holds one cache")
    for name in ("gpucacheper", "hit_rate_threshold"):
        if model.gpucache and name not in given:
            yield f"{path}.{name}: missing; Triton's backend needs it with gpucache; it must be given"
    if (
        model.use_static_table
        and "embedding_cache_type" in given
        and model.embedding_cache_type not in ("static", None)
    ):
        yield (
            f'{path}.embedding_cache_type: got "{model.embedding_cache_type}", but use_static_table makes it static; '
            "drop one of them"
        )
    if model.fp8_quant and model.cache in ("dynamic", "uvm"):
        yield (
            f'{path}.fp8_quant: got True, which the {model.cache} cache ignores; set embedding_cache_type to "static" '
            "or drop it"
        )
    if model.gpucache is False and model.cache in ("static", "uvm"):
        yield (
            f"{path}.gpucache: got False, but the {model.cache} cache is all that holds its rows; set it to true, or "
            'embedding_cache_type to "dynamic"'
        )


def _faults_of_tiers(top: Mapping[str, Any], models: Sequence[HpsModel]) -> Iterator[str]:
    volatile, persistent, source = (
        sound(VolatileDatabase, top.get("volatile_db")),
        sound(PersistentDatabase, top.get("persistent_db")),
        sound(UpdateSource, top.get("update_source")),
    )
    # True: on, False: off, None: cannot be told, and was told of already.
    in_memory = _is_on(volatile, "disabled") if "volatile_db" in top else True
    on_disk = _is_on(persistent, "disabled") if "persistent_db" in top else False
    updated = _is_on(source, "null") if "update_source" in top else False
    caches = {model.cache for model in models}
    if models and caches <= {"static", "uvm"}:
        for name, is_on in (("volatile_db", in_memory and "volatile_db" in top), ("persistent_db", on_disk)):
            if is_on:
                yield f'{name}: stays empty: HPS fills it for embedding_cache_type "dynamic" only; drop the block'
        if updated:
            yield "update_source: updates reach no static or uvm cache; drop it, or use dynamic caches"
    elif in_memory is False and on_disk is False:
        if "dynamic" in caches:
            yield (
                "volatile_db: disabled, and there is no persistent_db: rows that no GPU cache holds would be default "
                "vectors; enable one of them"
            )
        if updated:
            yield "update_source: has no database to update; enable volatile_db or persistent_db, or drop it"
    if volatile and volatile.type == "redis_cluster":
        yield from _faults_of_redis(volatile)
    topics = [f"hps_et.{model.model}.{table}" for model in models for table in model.table_names]
    if any(model.model is None or model.embedding_table_names is None for model in models):
        topics = []  # a name that is wrong by itself may be the one that a filter means
    for name, database in (("volatile_db", volatile), ("persistent_db", persistent)):
        if database:
            needed = bool(updated) and database.type not in ("disabled", None)
            yield from _faults_of_filters(name, database, topics, needed)


def _faults_of_redis(volatile: VolatileDatabase) -> Iterator[str]:
    if volatile.num_partitions and volatile.num_partitions < (volatile.num_node_connections or 0):
        yield (
            f"volatile_db.num_partitions: got {volatile.num_partitions}, fewer than num_node_connections, "
            f"{volatile.num_node_connections}, and HPS does not start; raise it or lower those"
        )
    if volatile.overflow_policy == "evict_random" and (volatile.overflow_margin or UNBOUNDED) < UNBOUNDED:
        yield (
            "volatile_db.overflow_policy: evict_random evicts nothing from redis_cluster, so overflow_margin is "
            "not held; use evict_oldest or evict_least_used"
        )


def _is_on(section: VolatileDatabase | PersistentDatabase | UpdateSource | None, off: str) -> bool | None:
    if section is None or section.type is None or "type" not in section.model_fields_set:
        return None
    return section.type != off


def _faults_of_filters(
    name: str, database: VolatileDatabase | PersistentDatabase, topics: Sequence[str], needed: bool
) -> Iterator[str]:
    path = f"{name}.update_filters"
    if "update_filters" not in database.model_fields_set:
        if needed:
            yield f'{path}: missing, and HPS\'s default {NEVER_MATCHES[0]} never matches a table; give [".+"]'
        return
    for i, text in enumerate(database.update_filters or ()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Python's of sets that may nest one day
                matches = re.compile(rf"^hps_et\.{text}\..+$").match
        except (re.error, OverflowError, RecursionError) as error:
            yield f'{path}[{i}]: got {text!r}; not a regular expression: {error}; ".+" takes all models'
            continue
        if topics and not any(matches(topic) for topic in topics):
            yield (
                f"{path}[{i}]: got {text!r}, which matches no table: HPS puts it between hps_et. and .<table>; name a "
                'model, or ".+" for all'
            )
