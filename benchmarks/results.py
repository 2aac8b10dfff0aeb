"""results.csv holds a row per measurement; targets.toml what must hold; the README's figures are read from here."""

from __future__ import annotations

import csv
import dataclasses
import datetime
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tomllib

__all__ = ["Row", "append", "check", "latest", "machine", "read"]

FOLDER = Path(__file__).parent
RESULTS, TARGETS = FOLDER / "results.csv", FOLDER / "targets.toml"


@dataclass(frozen=True)
class Row:
    """One figure, beside a peer's of the same run where there is one."""

    commit: str
    date: str
    machine: str
    suite: str
    case: str
    metric: str
    value: float
    unit: str
    peer: str
    peer_value: float | None
    ratio: float | None  # value / peer_value
    command: str


def machine() -> str:
    """Processor and cores; nothing that names a host."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def commit() -> str:
    """The commit measured, with + where the tree was changed."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=FOLDER, check=False).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")


@dataclass(frozen=True)
class Recorder:
    """Makes the rows of one suite's run."""

    suite: str
    command: str
    commit: str = dataclasses.field(default_factory=commit)
    machine: str = dataclasses.field(default_factory=machine)
    date: str = dataclasses.field(default_factory=lambda: datetime.date.today().isoformat())

    def row(
        self, case: str, metric: str, value: float, unit: str, peer: str = "", peer_value: float | None = None
    ) -> Row:
        """A row; the ratio is value / peer_value."""
        ratio = None if not peer_value else value / peer_value
        return Row(
            self.commit,
            self.date,
            self.machine,
            self.suite,
            case,
            metric,
            value,
            unit,
            peer,
            peer_value,
            ratio,
            self.command,
        )


def append(rows: Iterable[Row], path: Path = RESULTS) -> None:
    """Add rows to the file; the header is written once."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow([field.name for field in dataclasses.fields(Row)])
        for row in rows:
            values = dataclasses.astuple(row)
            writer.writerow(["" if v is None else f"{v:.6g}" if isinstance(v, float) else v for v in values])


def read(path: Path = RESULTS) -> list[Row]:
    """All rows, oldest first."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = []
        for values in csv.DictReader(file):
            number = {key: float(values[key]) if values[key] else None for key in ("value", "peer_value", "ratio")}
            rows.append(Row(**{**values, **number}))  # type: ignore[arg-type]
    return rows


def latest(rows: Iterable[Row]) -> dict[tuple[str, str, str, str], Row]:
    """The newest row of each suite, case, metric and peer."""
    return {(row.suite, row.case, row.metric, row.peer): row for row in rows}


def check(rows: Iterable[Row], suite: str) -> list[tuple[str, bool, str]]:
    """Every target of the suite: (what, holds, measured against allowed); a target nobody measured does not hold."""
    newest = latest(rows)
    verdicts = []
    for target in tomllib.loads(TARGETS.read_text("utf-8")).get(suite, []):
        found = newest.get((suite, target["case"], target["metric"], target.get("peer", "")))
        what = f"{target['case']}, {target['metric']}" + (f" against {target['peer']}" if "peer" in target else "")
        field = target.get("of", "value")
        value = getattr(found, field) if found else None
        low, high = target.get("at_least", float("-inf")), target.get("at_most", float("inf"))
        shown = "not measured" if value is None else f"{field} {value:.4g}; allowed {low:g} to {high:g}"
        verdicts.append((what, value is not None and low <= value <= high, shown))
    return verdicts
