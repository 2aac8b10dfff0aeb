"""Days: an ETL result grown a day at a time, at the cost of the day; each day has a folder of its own.

What a day holds: its training rows, the id maps with the day's new ids, the IPS table over all days so far, the
snapshot of the members and posts that it saw, and what the next day goes on from. Moments of dense features stay those
of the base, for the model goes on too. A full ETL run begins anew.

A part of a day is what the day is before some moment, made from the day before as the whole day is. A later part, and
then the day, begin there again; of an earlier part they keep the rows of ids alone (docs/adr/0022-parts-of-a-day.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from sparsefeed.errors import DataError, SpecError
from sparsefeed.etl.config import EtlConfig
from sparsefeed.etl.logs import days_of
from sparsefeed.etl.moment import Moment
from sparsefeed.etl.pipeline import run
from sparsefeed.etl.result import FORMAT, Result, finished
from sparsefeed.etl.spec import FeedSpec
from sparsefeed.progress import Progress, silent

__all__ = ["AddedDays"]

_DAY = timedelta(days=1)
_DAYS, _PARTS = "????-??-??", "????-??-??T??????"


@dataclass(frozen=True)
class AddedDays:
    """The days that were added to a result.

    Attributes:
        base: folder of the result.
        folder: of the days' folders, each named as its day, and of their parts', each named as its moment.
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
        for path in sorted(self.folder.glob(_DAYS)):
            later, last = Result(path, finished(path)), results[-1]
            if later.summary.get("previous") == last.summary["fingerprint"] and later.last_day > last.last_day:
                results.append(later)
        return results

    def parts(self, previous: Result) -> list[Result]:
        """Parts of the day after a result, by moment."""
        found = [Result(path, finished(path)) for path in sorted(self.folder.glob(_PARTS))]
        return [part for part in found if part.summary.get("previous") == previous.summary["fingerprint"]]

    def up_to(self, last: date | Moment) -> list[Result]:
        """The base, and the days after it up to this one, or up to this part of the day after them.

        Raises:
            DataError: it was not added.
        """
        results = self.chain()
        days, parts = results[1:], self.parts(results[-1])
        for number, result in enumerate(days, 2):
            if result.name == str(last):
                return results[:number]
        for part in parts:
            if part.name == str(last):
                return [*results, part]
        there = ", ".join(result.name for result in (*days, *parts)) or "none"
        add = f"sparsefeed refresh --until {last}" if isinstance(last, Moment) else f"sparsefeed etl --day {last}"
        raise DataError(f"{self.folder}: day {last} was not added; there: {there}; run `{add}`")

    def by_ids(self, results: list[Result]) -> list[Result]:
        """The same results with the parts of the last one's day before it, as far as it has their ids.

        Each goes on from the ids of the one before it.

        Raises:
            DataError: one of these parts is gone.
        """
        before, last = results[:-1], results[-1]
        parts = {part.summary["fingerprint"]: part for part in self.parts(before[-1])}
        found = [last]
        while part := parts.get(found[0].summary.get("ids_from", "")):
            found.insert(0, part)
        if "ids_from" in found[0].summary:
            raise DataError(
                f"{last.folder}: has the ids of a part of its day that is no longer in {self.folder}; put that back"
            )
        return [*before, *found]

    def outdated(self) -> list[Path]:
        """Folders of days that were added to what is no longer there."""
        results = self.chain()
        known = {result.folder for result in results}
        known |= {part.folder for result in results for part in self.parts(result)}
        found = [*self.folder.glob(_DAYS), *self.folder.glob(_PARTS)]
        return [path for path in sorted(found) if path not in known]

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
        results = self._chain_of(spec)
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
        parts = [part for part in self.parts(previous) if part.last_day == day]
        ids_from = parts[-1] if parts else None
        return run(spec, logs_root, self.folder / str(day), config, progress, previous, ids_from=ids_from)

    def add_part(
        self, spec: FeedSpec, logs_root: Path | str, until: Moment, config: EtlConfig, progress: Progress = silent
    ) -> dict[str, Any]:
        """Add what the next day has before a moment; returns the content of its etl.json.

        A part that is there is left as it is, whatever came into the logs since: the day, and later parts, have it.

        Args:
            spec: the declaration that the base was made with.
            logs_root: folder of the logs, or its URL.
            until: a moment that the impressions of the next day have passed.
            config: how to run.
            progress: told of every step.

        Raises:
            DataError: the moment is not of the next day, a later part is there, or the logs cannot be meant.
            SpecError: the base was made with another spec.
        """
        previous = self._chain_of(spec)[-1]
        path, parts = self.folder / str(until), self.parts(previous)
        for part in parts:
            if part.name == str(until) and part.summary["view"] == config.view:
                progress(4, 4, "nothing to do: the part is there")
                return part.summary
        if parts and parts[-1].name >= str(until):
            raise DataError(f"{self.folder}: the part until {parts[-1].name} is there; give a later moment than that")
        last = until.at.date() + _DAY  # a day's folder may be of a day elsewhere, ahead of UTC
        days = days_of(logs_root, previous.last_day + _DAY, last, config.on_bad_file == "skip")
        if not days:
            raise DataError(
                f"{logs_root}: no impression can be read there that is of a day after {previous.last_day}, which is "
                f"there whole, and before {until}"
            )
        config = config.model_copy(update={"since": days[0], "until": days[0]})
        self.folder.mkdir(parents=True, exist_ok=True)
        ids_from = parts[-1] if parts else None
        return run(spec, logs_root, path, config, progress, previous, until=until, ids_from=ids_from)

    def _chain_of(self, spec: FeedSpec) -> list[Result]:
        results = self.chain()
        if FeedSpec.load(self.base / "spec.json").digest != spec.digest:
            raise SpecError(
                f"{self.base}: was made with another feed; run `sparsefeed etl` anew, or go back to that feed"
            )
        return results
