"""An id map on the disk: one header and its arrays (see array_folder)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.array_folder import read_array_folder, stored_arrays, write_array_folder
from sparsefeed.etl.ids.base import Base
from sparsefeed.etl.ids.codes import MOST_PAIRED_ROWS
from sparsefeed.etl.ids.exceptions import Exceptions
from sparsefeed.etl.ids.overlay import Overlay
from sparsefeed.etl.ids.probe import FIRST_TAIL_ROW

__all__ = ["NUMBERS", "read_map", "write_map"]

NUMBERS = ("table", "key_seed", "tail_rows", "paired_tail", "fingerprint_bits", "num_rows", "num_admitted")
_FORMAT = "sparsefeed.id_map/2"
_HEADER = "id_map.json"


def write_map(
    folder: Path | str, numbers: Mapping[str, Any], base: Base, overlay: Overlay, exceptions: Exceptions
) -> None:
    """Write the parts of a map; a reader of the folder meanwhile sees the old one or the new one."""
    header = {
        "format": _FORMAT,
        **{name: value for name, value in numbers.items() if name != "paired_tail" or value},
        "base": base.header(),
        "num_changes": len(overlay),
        "exceptions": exceptions.to_json(),
    }
    write_array_folder(
        folder, _HEADER, header, {**base.arrays(), **overlay.arrays()}, {**base.stored, **overlay.stored}
    )


def read_map(folder: Path | str, mmap: bool, digest: str | None) -> dict[str, Any]:
    """Read the fields of an `IdMap`; arguments and errors are those of `IdMap.load`."""
    header, arrays = read_array_folder(folder, _HEADER, _FORMAT, mmap, digest)
    header.setdefault("paired_tail", False)
    try:
        stored = stored_arrays(Path(folder), header)
        base = Base.load(header["base"], arrays, header["fingerprint_bits"], stored)
        exceptions = Exceptions.from_json(header["exceptions"])
        least_rows = FIRST_TAIL_ROW + header["tail_rows"] + len(base.keys)
        last_listed = max((row for rows in exceptions.by_key.values() for row in rows.values()), default=0)
        if header["tail_rows"] < 1 or not 0 <= header["key_seed"] < 2**64:
            raise ValueError("tail_rows or key_seed is out of range")
        if header["paired_tail"] and (header["tail_rows"] % 2 or not 4 <= header["tail_rows"] <= MOST_PAIRED_ROWS):
            raise ValueError("tail_rows cannot be paired")
        if header["num_rows"] < max(least_rows, last_listed + 1):
            raise ValueError(f"num_rows is less than {max(least_rows, last_listed + 1)}")
        return {
            **{name: header[name] for name in NUMBERS},
            "base": base,
            "overlay": Overlay.load(arrays["overlay"], arrays["overlay_filter"], header["num_changes"], stored),
            "exceptions": exceptions,
            "folder": Path(folder),
            "digest": header["sha256"],
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise IdError(
            f"{Path(folder) / _HEADER}: cannot be meant ({error!r}); restore the folder from its bundle"
        ) from error
