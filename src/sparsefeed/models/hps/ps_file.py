"""A ps.json on disk: everything that is wrong with it, and with the sparse folders that lie here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import BundleError
from sparsefeed.models.hps.ps_json import problems_in
from sparsefeed.models.hps.ps_sections import (
    OTHER_NAMES,
    HpsModel,
    PersistentDatabase,
    VolatileDatabase,
    sound,
)
from sparsefeed.models.store.hps import read_hps

__all__ = ["ExaminedFile", "examine"]

_CHUNK_KEYS = 1 << 22
# Keys that one type of volatile_db reads; any other takes them without a word.
_READ_BY = {
    "redis_cluster": (
        "address", "user_name", "password", "num_node_connections", "enable_tls", "tls_ca_certificate",
        "tls_client_certificate", "tls_client_key", "tls_server_name_identification",
    ),
    "multi_process_hash_map": ("shared_memory_size", "shared_memory_name", "shared_memory_auto_remove"),
}  # fmt: skip


@dataclass(frozen=True)
class ExaminedFile:
    """What a ps.json says, as far as it can be read.

    Attributes:
        problems: what must be mended, a sentence each.
        notes: what is allowed but worth knowing, a sentence each.
        models: its entries; a key that is missing or wrong is None, an entry that is none is left out.
        num_tables: of all models.
        num_bytes: of the sparse folders that lie here.
    """

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()
    models: tuple[HpsModel, ...] = ()
    num_tables: int = 0
    num_bytes: int = 0


def examine(path: Path) -> ExaminedFile:
    """Read a ps.json and the sparse folders it names; all problems at once, none raised.

    A folder is looked for beside the file first, where a model repository has it (`<model>/1/<table>.model`), then
    where its path says. One that is not here is no problem when nothing around it is: it may lie in the container.
    Cost: every key is read once; keys that do not ascend are sorted in memory, 8 bytes each.
    """
    twice: list[str] = []
    try:
        text = path.read_text("utf-8-sig")
        value = json.loads(text, object_pairs_hook=lambda pairs: _object(pairs, twice), parse_constant=_no_number)
    except OSError as error:
        return ExaminedFile((f"not readable: {error.strerror}; name a ps.json",))
    except (ValueError, RecursionError) as error:
        return ExaminedFile((f"not JSON: {error}; HPS reads standard JSON, without comments and trailing commas",))
    if not isinstance(value, dict):
        return ExaminedFile((f"holds {type(value).__name__}, not an object; a ps.json begins with {{",))
    problems = [*twice, *problems_in(value)]
    notes = list(_notes(value))
    listed = value.get("models")
    entries = {i: sound(HpsModel, entry) for i, entry in enumerate(listed if isinstance(listed, list) else ())}
    models = {i: model for i, model in entries.items() if model is not None}
    tables = _Tables(path.parent, value)
    for i, model in models.items():
        tables.examine(f"models[{i}]", model)
    return ExaminedFile(
        problems=(*problems, *tables.problems),
        notes=(*notes, *tables.notes),
        models=tuple(models.values()),
        num_tables=sum(len(model.sparse_files or ()) for model in models.values()),
        num_bytes=tables.num_bytes,
    )


def _object(pairs: list[tuple[str, Any]], twice: list[str]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        for key in value:
            if keys.count(key) > 1:
                twice.append(f'"{key}" stands twice in one object; HPS reads one of them; remove the other')
    return value


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


class _Tables:
    """The sparse folders of a file, and what was found about them."""

    def __init__(self, here: Path, top: dict[str, Any]) -> None:
        self.problems: list[str] = []
        self.notes: list[str] = []
        self.num_bytes = 0
        self._here = here
        self._most_keys = _most_keys(top)

    def examine(self, path: str, model: HpsModel) -> None:
        """Look at every folder of a model."""
        files, dims = model.sparse_files or (), model.embedding_vecsize_per_table or ()
        for j, text in enumerate(files):
            where = f"{path}.sparse_files[{j}]"
            folder = self._find(where, text, model.model or "")
            if folder is not None and j < len(dims):
                name = model.table_names[j] if j < len(model.table_names) else f"{j}"
                self._examine_folder(where, folder, dims[j], name)

    def _find(self, where: str, text: str, model: str) -> Path | None:
        if "://" in text:
            self.notes.append(f"{where}: {text} is not on this machine; its size was not checked")
            return None
        path = Path(text)
        try:
            if model in path.parts:
                beside = self._here.joinpath(*path.parts[path.parts.index(model) :])
                if beside.exists():
                    return beside
            if path.exists():
                return path
            parent_is_here = path.parent.exists()
        except OSError as error:
            self.problems.append(f"{where}: {text} cannot be looked at: {error.strerror}; mend the path or its rights")
            return None
        if not path.is_absolute():
            self.problems.append(
                f"{where}: {text} is not there; HPS looks for it from the folder that tritonserver is started in; give "
                "a path that begins with /"
            )
        elif parent_is_here:
            self.problems.append(f"{where}: {text} is not there, though {path.parent} is; export the table or mend it")
        else:
            self.notes.append(f"{where}: {text} is not on this machine; its size was not checked")
        return None

    def _examine_folder(self, where: str, folder: Path, dim: int, name: str) -> None:
        try:
            keys, vectors = read_hps(folder, dim)
        except BundleError as error:
            self.problems.append(f"{where}: {error}")
            return
        self.num_bytes += keys.nbytes + vectors.nbytes
        if not len(keys):
            self.problems.append(f"{where}: {folder}/key is empty, and HPS does not start; give it key 0, a zero row")
        meta = folder / "meta"
        if meta.exists() and meta.stat().st_size != keys.nbytes:
            self.problems.append(
                f"{where}: {meta} has {meta.stat().st_size} bytes, key has {keys.nbytes}; they must be the same, "
                "remove it or write it anew"
            )
        again = _first_twice(keys)
        if again is not None:
            self.problems.append(f"{where}: key {again} is there twice; one vector would be lost; write each key once")
        if self._most_keys is not None and len(keys) > self._most_keys:
            self.problems.append(
                f'{where}: table "{name}" has {len(keys)} keys, volatile_db holds {self._most_keys} (num_partitions x '
                "overflow_margin) and no persistent_db holds the rest; raise overflow_margin or add one"
            )


def _most_keys(top: dict[str, Any]) -> int | None:
    """Keys of a table the memory tier holds when no disk tier is behind it; None when that is no limit."""
    volatile = sound(VolatileDatabase, top.get("volatile_db"))
    persistent = sound(PersistentDatabase, top.get("persistent_db"))
    if volatile is None or (persistent is not None and persistent.type != "disabled"):
        return None
    if volatile.type in ("disabled", None) or not volatile.overflow_margin or not volatile.num_partitions:
        return None
    return volatile.overflow_margin * volatile.num_partitions


def _first_twice(keys: NDArray[np.int64]) -> int | None:
    for start in range(0, len(keys), _CHUNK_KEYS):
        chunk = keys[start : start + _CHUNK_KEYS + 1]  # one over, so that the seam is looked at
        if (chunk[1:] <= chunk[:-1]).any():
            break
    else:
        return None
    ordered = np.sort(keys)
    again = np.flatnonzero(ordered[1:] == ordered[:-1])
    return int(ordered[again[0]]) if len(again) else None


def _notes(top: dict[str, Any]) -> Iterator[str]:
    for (section, key), words in OTHER_NAMES.items():
        block = top.get(section)
        got = block.get(key) if isinstance(block, dict) else None
        for name, others in words.items():
            if isinstance(got, str) and got in others:
                yield f'{section}.{key}: "{got}" is another name of "{name}"'
    volatile = sound(VolatileDatabase, top.get("volatile_db"))
    if volatile is not None:
        yield from _notes_of_memory(volatile)
    persistent = sound(PersistentDatabase, top.get("persistent_db"))
    if persistent is not None and persistent.type == "rocks_db" and "path" not in persistent.model_fields_set:
        yield f"persistent_db.path: not given, so HPS takes {persistent.path}, which a restart may empty"
    if top.get("fuse_embedding_table") is True:
        yield (
            "fuse_embedding_table: tables of one vecsize become one, fused_embedding<i>: their keys must differ, and "
            "updates must be sent under these names"
        )
    listed = top.get("models")
    for i, entry in enumerate(listed if isinstance(listed, list) else ()):
        model = sound(HpsModel, entry)
        if model is not None and "embedding_table_names" not in model.model_fields_set and model.sparse_files:
            yield f"models[{i}].embedding_table_names: not given, so HPS calls them {', '.join(model.table_names)}"


def _notes_of_memory(volatile: VolatileDatabase) -> Iterator[str]:
    for kind, keys in _READ_BY.items():
        for key in keys:
            if key in volatile.model_fields_set and volatile.type not in (kind, None):
                yield f"volatile_db.{key}: {volatile.type} ignores it; {kind} alone reads it"
    if volatile.initial_cache_rate not in (1.0, None):
        yield "volatile_db.initial_cache_rate: HPS 24.06 logs it and no more"
    if volatile.cache_missed_embeddings:
        yield "volatile_db.cache_missed_embeddings: default vectors of unknown ids are stored, too, and take memory"
