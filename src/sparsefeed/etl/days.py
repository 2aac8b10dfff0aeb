"""Days: an ETL result grown a day at a time, at the cost of the day; each day has a folder of its own.

What a day holds: its training rows, the id maps with the day's new ids, the IPS table over all days so far, the
snapshot of the members and posts that it saw, and what the next day goes on from. Moments of dense features stay those
of the base, for the model goes on too. A full ETL run begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from sparsefeed.errors import DataError, SpecError
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.logs import days_of
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.result import finished
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress, silent

__all__ = ["AddedDays"]


@dataclass(frozen=True)
class AddedDays:
    """The days that were added to a result.

    Attributes:
        base: folder of the result.
        folder: of the days' folders, each named as its day.
    """

    base: Path
    folder: Path

    def chain(self) -> dict[date, Path]:
        """Results by their last day, from the base on: each was made from the one before as it is now."""
        summary = finished(self.base)
        if not summary:
            raise DataError(f"{self.base}: there is no finished ETL; run `sparsefeed etl` first")
        found = {_last_day(summary): self.base}
        for path in sorted(self.folder.glob("????-??-??")):
            later = finished(path)
            if later["previous"] != summary["fingerprint"]:
                break
            summary = later
            found[_last_day(summary)] = path
        return found

    def add(
        self, spec: FeedSpec, logs_root: Path | str, day: date, config: EtlConfig, progress: Progress = silent
    ) -> dict[str, Any]:
        """Add a day of logs; returns the content of its etl.json. A day that was added from the same is left as it is.

        Args:
            spec: the declaration that the base was made with.
            logs_root: folder of the logs, or its URL.
            day: the first day with impressions after the last one that there is, or one that is there.
            config: how to run.
            progress: told of every step.

        Raises:
            DataError: another day is next, or the logs cannot be meant.
            SpecError: the base was made with another spec.
        """
        chain = self.chain()
        if FeedSpec.load(self.base / "spec.json").digest != spec.digest:
            raise SpecError(
                f"{self.base}: was made with another feed; run `sparsefeed etl` anew, or go back to that feed"
            )
        first, *_ = chain
        if day <= first:
            raise DataError(f"{self.base}: day {day} is in it, or before it; it ends with {first}; add a later day")
        last = max(known for known in chain if known < day)
        between = [other for other in days_of(logs_root) if last < other < day]
        if between:
            stale = self.folder / str(between[0])
            why = f"; {stale} was made from what is no longer there" if stale.exists() else ""
            raise DataError(f"{logs_root}: day {between[0]} comes after {last}; add it before {day}{why}")
        config = config.model_copy(update={"since": day, "until": day})
        self.folder.mkdir(parents=True, exist_ok=True)
        return run(spec, logs_root, self.folder / str(day), config, progress, chain[last])


def _last_day(summary: dict[str, Any]) -> date:
    return date.fromisoformat(summary["train_days"][-1])
