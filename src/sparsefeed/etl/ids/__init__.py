"""String IDs to rows, without collisions (docs/contracts/ids.md)."""

from __future__ import annotations

from sparsefeed.etl.ids.counts import KeyCounts
from sparsefeed.etl.ids.id_map import FIRST_TAIL_ROW, NULL_ROW, PADDING_ROW, IdMap
from sparsefeed.etl.ids.inverse import Inverse
from sparsefeed.etl.ids.keys import hash_ints, hash_strings
from sparsefeed.etl.ids.last_seen import LastSeen
from sparsefeed.etl.ids.mph import MinimalPerfectHash
from sparsefeed.etl.ids.string_counts import StringCounts

__all__ = [
    "FIRST_TAIL_ROW",
    "NULL_ROW",
    "PADDING_ROW",
    "IdMap",
    "Inverse",
    "KeyCounts",
    "LastSeen",
    "MinimalPerfectHash",
    "StringCounts",
    "hash_ints",
    "hash_strings",
]
