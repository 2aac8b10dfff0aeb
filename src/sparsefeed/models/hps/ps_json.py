"""ps.json of NVIDIA HPS 24.06: read strictly, and made for a bundle.

HPS's own parser accepts nearly anything: it skips unknown keys, takes unknown words for a default and lists of other
lengths as they are. So each key has its type and range (ps_sections), what must hold between keys is checked
(ps_rules), and whatever would be misused in silence is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

from pydantic import model_validator

from sparsefeed.errors import BundleError, SpecError
from sparsefeed.etl.spec import Frozen, Name, validate
from sparsefeed.models.hps.ps_rules import faults
from sparsefeed.models.hps.ps_sections import (
    Count,
    Filled,
    Flag,
    HpsModel,
    PersistentDatabase,
    Text,
    UpdateSource,
    VolatileDatabase,
)

__all__ = [
    "HpsModel",
    "HpsTable",
    "ParameterServer",
    "PersistentDatabase",
    "UpdateSource",
    "VolatileDatabase",
    "problems_in",
    "ps_json",
]


class ParameterServer(Frozen):
    """ps.json. `supportlonglong` is always true: Triton's backend takes int64 keys only."""

    supportlonglong: Flag
    fuse_embedding_table: Flag = False  # joins tables of one vecsize, under names fused_embedding0, ...
    volatile_db: VolatileDatabase = VolatileDatabase(type="parallel_hash_map")
    persistent_db: PersistentDatabase = PersistentDatabase()
    update_source: UpdateSource = UpdateSource()
    models: Annotated[tuple[HpsModel, ...], Filled]

    @model_validator(mode="after")
    def _holds_together(self) -> ParameterServer:
        found = faults(self.model_dump(mode="json", exclude_unset=True))
        if found:
            raise ValueError("\n".join(found))
        return self

    def dump(self) -> str:
        """Return the JSON text, of the keys that were given."""
        return json.dumps(self.model_dump(mode="json", exclude_unset=True), indent=1) + "\n"


class HpsTable(Frozen):
    """One table as HPS serves it."""

    name: Name
    dim: Count  # floats per row
    sparse_file: Text  # its sparse folder on the GPU host
    max_keys_per_sample: Count  # keys one candidate asks of it at most: the sum of its features' lengths


def ps_json(
    model: str, tables: Sequence[HpsTable], max_batch_size: int, *, gpus: int = 1, worker_buffers: int = 4
) -> str:
    """ps.json of one bundle.

    Args:
        model: the Triton model's name, `feed_hps_<bundle>`.
        tables: in the spec's order.
        max_batch_size: candidates per request at most.
        gpus: of the host, each of which holds a cache of every table.
        worker_buffers: per GPU; at least the instances of the Triton model there.

    Raises:
        BundleError: a name, a length or a number that HPS would take without a word and misuse; one line each.
    """
    entry = {
        "model": model,
        "sparse_files": [table.sparse_file for table in tables],
        "embedding_table_names": [table.name for table in tables],
        "embedding_vecsize_per_table": [table.dim for table in tables],
        "maxnum_catfeature_query_per_table_per_sample": [table.max_keys_per_sample for table in tables],
        "default_value_for_each_table": [0.0] * len(tables),
        "max_batch_size": max_batch_size,
        "num_of_worker_buffer_in_pool": worker_buffers,
        "deployed_device_list": list(range(gpus)),
        "gpucache": True,
        "gpucacheper": 0.5,
        "hit_rate_threshold": 0.9,
        "embedding_cache_type": "dynamic",
    }
    # Signed 64 bits are what every JSON library holds, and as good as no margin.
    volatile = {
        "type": "parallel_hash_map",
        "num_partitions": 8,
        "overflow_margin": 2**63 - 1,
        "update_filters": [".+"],
    }
    value = {"supportlonglong": True, "volatile_db": volatile, "models": [entry]}
    try:
        return validate(ParameterServer, value, where="ps.json").dump()
    except SpecError as error:
        raise BundleError(str(error)) from error


def problems_in(value: object) -> list[str]:
    """Everything that is wrong with the content of a ps.json, a sentence each; none when it can be served."""
    try:
        validate(ParameterServer, value)
    except SpecError as error:
        lines = str(error).split("\n")
        # pydantic compares keys only once each of them is right; a reader wants all at once.
        return [*lines, *(fault for fault in faults(value) if fault not in lines)]
    return []
