"""Moment: where a part of a day ends."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone

from sparsefeed.errors import DataError

__all__ = ["Moment"]

_FORMAT = "%Y-%m-%dT%H%M%S"


@dataclass(frozen=True, order=True)
class Moment:
    """A second of UTC; as text `2026-11-09T120000`, which names folders and sorts by time.

    Attributes:
        at: with the time zone UTC.
    """

    at: datetime

    @classmethod
    def parse(cls, text: str) -> Moment:
        """Of ISO 8601, UTC unless an offset is given; DataError where it is no moment to the second."""
        try:
            at = datetime.fromisoformat(text)
            if len(text) <= len("2026-11-09") or at.microsecond:
                raise ValueError("no time of day" if not at.microsecond else "finer than a second")
            at = at.replace(tzinfo=timezone.utc) if at.tzinfo is None else at.astimezone(timezone.utc)
        except (ValueError, OverflowError) as error:
            raise DataError(
                f'"{text}": not a moment ({error}); give a day and a time to the second, as 2026-11-09T12:00:00 (UTC) '
                "or 2026-11-09T12:00:00+01:00"
            ) from error
        return cls(at)

    @property
    def ms(self) -> int:
        """Milliseconds since the epoch."""
        return int(self.at.timestamp()) * 1000

    def __str__(self) -> str:
        return self.at.strftime(_FORMAT)
