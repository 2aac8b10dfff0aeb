"""The last day each id was seen, so that ids nobody meets any more can give up their rows.

    last_seen = last_seen.merge(LastSeen.of(keys_of_today, today))
    gone = last_seen.unseen_since(today - 90)
    id_map, last_seen = id_map.remove(gone), last_seen.without(gone)

It holds keys, never rows, so a fold of the map does not touch it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids import sorted_keys
from sparsefeed.etl.ids.array_folder import read_array_folder, write_array_folder

__all__ = ["LastSeen"]

_FORMAT = "sparsefeed.last_seen/1"
_HEADER = "last_seen.json"
_LAST_DAY = 2_932_896  # 9999-12-31: what is beyond is no day but seconds or milliseconds


@dataclass(frozen=True, eq=False)
class LastSeen:
    """Immutable: key -> day, 12 bytes an id.

    Attributes:
        keys: uint64 [n], ascending, unique.
        days: int32 [n]: days since 1970-01-01.
    """

    keys: NDArray[np.uint64]
    days: NDArray[np.int32]

    @classmethod
    def of(cls, keys: NDArray[np.uint64], day: int) -> LastSeen:
        """Note the keys of one day.

        Args:
            keys: uint64 in any order, repeated or not; pass valid ones only.
            day: days since 1970-01-01.

        Raises:
            IdError: no such day.
        """
        _check_day(day)
        unique, _ = sorted_keys.count(keys)
        return cls(unique, np.full(len(unique), day, np.int32))

    def merge(self, *others: LastSeen) -> LastSeen:
        """Keep the later day of every key; neither order nor grouping of merges matters."""
        return LastSeen(*sorted_keys.merge([(part.keys, part.days) for part in (self, *others)], largest=True))

    def unseen_since(self, day: int) -> NDArray[np.uint64]:
        """Keys last seen before `day` (days since 1970-01-01): uint64, ascending; IdError if there is no such day."""
        _check_day(day)
        return self.keys[self.days < day]

    def without(self, keys: NDArray[np.uint64]) -> LastSeen:
        """Forget keys; those that are not there are no error."""
        places = sorted_keys.places(self.keys, keys)
        kept = np.ones(len(self.keys), np.bool_)
        kept[places[places >= 0]] = False
        return LastSeen(self.keys[kept], self.days[kept])

    def __len__(self) -> int:
        return len(self.keys)

    def save(self, folder: Path | str) -> None:
        """Write the days; a reader of the folder meanwhile sees the old ones or the new ones."""
        write_array_folder(folder, _HEADER, {"format": _FORMAT}, {"keys": self.keys, "days": self.days})

    @classmethod
    def load(cls, folder: Path | str, mmap: bool = True) -> LastSeen:
        """Open what was saved; IdError if it is not there, of another format, incomplete, truncated or altered."""
        _, arrays = read_array_folder(folder, _HEADER, _FORMAT, mmap)
        shapes = {name: (str(array.dtype), *array.shape) for name, array in arrays.items()}
        num = len(arrays["keys"]) if "keys" in arrays else 0
        if shapes != {"keys": ("uint64", num), "days": ("int32", num)}:
            raise IdError(
                f"{Path(folder) / _HEADER}: its arrays are {shapes}; allowed: keys uint64 and days int32, one a key; "
                "restore the whole folder from its bundle"
            )
        return cls(arrays["keys"], arrays["days"])


def _check_day(day: int) -> None:
    if not isinstance(day, int | np.integer) or not 0 <= day <= _LAST_DAY:
        raise IdError(
            f"last_seen: day is {day}; allowed: days since 1970-01-01, 0 to {_LAST_DAY}; "
            "divide seconds by 86,400 and milliseconds by 86,400,000"
        )
