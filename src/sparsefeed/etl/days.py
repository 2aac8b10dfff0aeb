"""Days: an ETL result grown a day at a time, at the cost of the day; each day has a folder of its own.

What a day holds: its training rows, the id maps with the day's new ids, the IPS table over all days so far, the
snapshot of the members and posts that it saw, and what the next day goes on from. Moments of dense features stay those
of the base, for the model goes on too. A full ETL run begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sparsefeed.errors import DataError, SpecError
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.logs import days_of
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.result import FORMAT, Result, finished
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress, silent

__all__ = ["AddedDays"]

_DAY = timedelta(days=1)


@dataclass(frozen=True)
class AddedDays:
    """The days that were added to a result.

    Attributes:
        base: folder of the result.
        folder: of the days' folders, each named as its day.
    """

    base: Path
    folder: Path

    def chain(self) -> list[Result]:
        """The base, and each day that was added to the result before it as that is now; days of another base are none.

        Raises:
            DataError: there is no base, or it is of a version that kept nothing for the next day.
        """
        summary = finished(self.base)
        if not summary:
            raise DataError(f"{self.base}: there is no finished ETL; run `sparsefeed etl` first")
        if summary["format"] < FORMAT:
            raise DataError(
                f"{self.base}: an older version made it, and kept nothing to go on from; run `sparsefeed etl`"
            )
        results = [Result(self.base, summary)]
        for path in sorted(self.folder.glob("????-??-??")):
            later, last = Result(path, finished(path)), results[-1]
            if later.summary.get("previous") == last.summary["fingerprint"] and later.last_day > last.last_day:
                results.append(later)
        return results

    def outdated(self) -> list[Path]:
        """Folders of days that were added to what is no longer there."""
        known = {result.folder for result in self.chain()}
        return [path for path in sorted(self.folder.glob("????-??-??")) if path not in known]

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
        results = self.chain()
        if FeedSpec.load(self.base / "spec.json").digest != spec.digest:
            raise SpecError(
                f"{self.base}: was made with another feed; run `sparsefeed etl` anew, or go back to that feed"
            )
        first = results[0].last_day
        if day <= first:
            raise DataError(f"{self.base}: day {day} is in it, or before it; it ends with {first}; add a later day")
        previous = [result for result in results if result.last_day < day][-1]
        skip = config.on_bad_file == "skip"
        if not days_of(logs_root, day, day, skip):
            raise DataError(f"{logs_root}: no impression of {day} can be read there; give a day that has some")
        if between := days_of(logs_root, previous.last_day + _DAY, day - _DAY, skip):
            stale = self.folder / str(between[0])
            why = f"; {stale} was made from what is no longer there" if stale.exists() else ""
            raise DataError(f"{logs_root}: day {between[0]} comes after {previous.last_day}; add it before {day}{why}")
        config = config.model_copy(update={"since": day, "until": day})
        self.folder.mkdir(parents=True, exist_ok=True)
        return run(spec, logs_root, self.folder / str(day), config, progress, previous)
