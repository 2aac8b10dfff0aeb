"""Render the figures of the README and of docs/howto/ids.md from results.csv, between their markers.

python benchmarks/readme.py          rewrite the pages
python benchmarks/readme.py --check  exit with 1 if one would change
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

sys.path.insert(0, str(Path(__file__).parent))

from results import RESULTS, Row, latest, read

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

Newest: TypeAlias = "Mapping[tuple[str, str, str, str], Row]"


@dataclass(frozen=True)
class Lines:
    """A line per figure: title, suite, case, metric, peer, how it is told."""

    lines: Sequence[tuple[str, str, str, str, str, str]]

    def render(self, newest: Newest) -> tuple[list[str], list[Row]]:
        """The lines measured, with the command of each, and their rows."""
        text, rows = ["| what | measured | command |", "|---|---|---|"], []
        for title, suite, case, metric, peer, how in self.lines:
            row = newest.get((suite, case, metric, peer))
            if row is not None:
                shown = how.format(value=row.value, peer=row.peer, peer_value=row.peer_value, ratio=row.ratio)
                text.append(f"| {title} | {shown} | `{row.command}` |")
                rows.append(row)
        return text, rows


@dataclass(frozen=True)
class Side:
    """A line of a matrix: the values, or the peers' values, of one case; its metrics begin with `prefix`."""

    title: str
    case: str
    prefix: str = ""
    peer: str = ""
    ours: bool = True


@dataclass(frozen=True)
class Matrix:
    """A line per mapper or day, a column per metric."""

    title: str
    suite: str
    columns: Mapping[str, str]  # title -> metric
    sides: Sequence[Side]

    def render(self, newest: Newest) -> tuple[list[str], list[Row]]:
        """The lines of which anything was measured, and their rows."""
        text, rows = [f"| {' | '.join([self.title, *self.columns])} |", "|---" * (len(self.columns) + 1) + "|"], []
        for side in self.sides:
            metrics = (side.prefix + metric for metric in self.columns.values())
            found = [newest.get((self.suite, side.case, metric, side.peer)) for metric in metrics]
            cells = ["" if row is None else _number(row.value if side.ours else row.peer_value) for row in found]
            if any(cells):
                text.append(f"| {' | '.join([side.title, *(cell or '–' for cell in cells)])} |")
                rows += [row for row in found if row is not None]
        return text, rows


def _number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


OF_PEER = "{value:.4f} against {peer_value:.4f} of {peer}"
WEIGHTS = "{value:.3f} with IPS weights, {peer_value:.3f} without"
TREES, UNWEIGHTED, OVER = "LightGBM with encoded ids", "no weights", "predicted_over_actual"
KNOWN, GAP = "what a request can tell", "{value:.2f} of the way from the best trees to {peer}"
TRAINED, SAMPLES = "1M-row tables, batch 8192", "{value:,.0f} samples/s, {ratio:.1f} times plain {peer}"
TIMES = "{value:,.0f} rows/s, {ratio:.2f} times {peer}"
STEP = "training step, 10000000-row tables of 64, batch 65536, bf16"
ON_H100 = "{value:.3f} ns an id, {peer_value:.2f} on 16 cores"
README_FIGURES = Lines((
    ("click: AUC", "quality", "click", "auc", TREES, OF_PEER),
    ("like: AUC", "quality", "like", "auc", TREES, OF_PEER),
    ("click: AUC", "quality", "click", "auc, share of the gap closed", KNOWN, GAP),
    ("click: log loss", "quality", "click", "log_loss", TREES, "{ratio:.3f} of that of {peer}"),
    ("click: log loss", "quality", "click", "log_loss", UNWEIGHTED, "{ratio:.3f} of its own without IPS weights"),
    ("click: predicted/actual", "quality", "click", OVER, UNWEIGHTED, WEIGHTS),
    ("reshare: predicted/actual", "quality", "reshare", OVER, UNWEIGHTED, WEIGHTS),
    ("ETL, cluster start included", "etl", "logs to parquet", "rows per second", "", "{value:,.0f} rows/s"),
    ("20M rows: fit ids and floats", "etl", "20M rows", "fit", "NVTabular", TIMES),
    ("20M rows: fit ids and floats", "etl", "20M rows", "fit", "polars", TIMES),
    ("20M rows: map and write", "etl", "20M rows", "transform and write", "NVTabular", TIMES),
    ("20M rows: map and write", "etl", "20M rows", "transform and write", "polars", TIMES),
    ("20M rows: peak memory", "etl", "20M rows", "peak memory", "NVTabular", "{value:.2f} GB, {ratio:.2f} of {peer}'s"),
    ("training, rows read", "train", TRAINED, "samples per second", "PyTorch", SAMPLES),
    ("one H100: training steps, batch 65,536", "gpu-train", STEP, "samples per second", "PyTorch", SAMPLES),
    ("one H100: training, rows read", "gpu-train", STEP, "reading parquet", "on the device", "{value:,.0f} samples/s"),
    ("one H100: hash and look up strings", "gpu_ids", "10000000 keys, hash and look up strings", "time per id", "CPU",
     ON_H100),
    ("ensemble, 100 candidates", "serve", "100 candidates, 1 in flight", "p50", "", "p50 {value:.1f} ms"),
    ("ensemble, 500 candidates", "serve", "500 candidates, 1 in flight", "p50", "", "p50 {value:.1f} ms"),
    ("the same, 4 in flight", "serve", "500 candidates, 4 in flight", "requests per second", "", "{value:,.0f}/s"),
))  # fmt: skip

KEYS, KEYS_1, KEYS_2 = "10M keys", "10M keys, 1 thread each", "10M keys, 2 threads each"
WORDS_1, WORDS_2 = "6.6M words, 2 threads against 1", "6.6M words, 2 threads against 2"
PLACE, REQUEST = "id mapping in place", "share of a request with {} candidates"
DICT, INDEX, OBJECTS, JOIN = "python dict", "pandas Index", "pandas Index of objects", "polars join"
CATEGORIFY, PHOBIC = "NVTabular Categorify", "phobic at load 0.5"
IDS_OF_KEYS = Matrix(
    "10M random 64-bit keys, one thread",
    "ids",
    {"bits a key": "bits per id", "build, ns/key": "build", "lookup, ns/key": "lookup, uniform"},
    (
        Side("**sparsefeed**, function alone", KEYS_1, "function ", "bbhash"),
        Side("bbhash 0.6, a key at a time", KEYS_1, "function ", "bbhash", ours=False),
        Side("phobic 0.4, twice as many rows as keys", KEYS_1, "function ", PHOBIC, ours=False),
        Side("**sparsefeed**, map", KEYS_1, "map ", DICT),
        Side(DICT, KEYS_1, "map ", DICT, ours=False),
        Side(INDEX, KEYS_1, "map ", INDEX, ours=False),
        Side("**sparsefeed**, map, two threads", KEYS_2, "map ", JOIN),
        Side("polars join, two threads", KEYS_2, "map ", JOIN, ours=False),
    ),
)
IDS_OF_WORDS = Matrix(
    "6.6M words",
    "ids",
    {
        "bits a word": "bits per id",
        "build, ns/word": "build",
        "lookup by frequency, ns": "lookup, frequent",
        "lookup of any, ns": "lookup, uniform",
    },
    (
        Side("**sparsefeed**, two threads", WORDS_1, "map ", DICT),
        Side("python dict, one thread", WORDS_1, "map ", DICT, ours=False),
        Side("pandas Index (Arrow strings), one thread", WORDS_1, "map ", INDEX, ours=False),
        Side("pandas Index of objects, one thread", WORDS_1, "map ", OBJECTS, ours=False),
        Side("polars join, two threads", WORDS_2, "map ", JOIN, ours=False),
        Side("NVTabular Categorify, one thread", WORDS_1, "map ", CATEGORIFY, ours=False),
    ),
)
IDS_GROWING = Matrix(
    "growing map",
    "ids",
    {
        "ids": "ids",
        "in the overlay": "ids in the overlay",
        "lookup, ns": "lookup of known ids, one thread",
        "half unseen, ns": "lookup of half unseen ids, one thread",
        "bits an id": "bits a lookup reads from, per id",
        "bytes on disk": "bytes on disk, per id",
    },
    tuple(
        Side(name, f"growth, {name}") for name in ("day 0", "day 10", "day 15", "day 15, folded", "day 20", "day 30")
    ),
)
IDS_FIGURES = Lines((
    ("10M keys: build, one thread", "ids", KEYS, "function build, 1 thread", "", "{value:.0f} ns/key"),
    ("... on two threads", "ids", KEYS, "function build, speed-up of two threads", "", "{value:.2f} times as fast"),
    ("... hash, query and fingerprint of integers", "ids", KEYS, "hash, query and fingerprint", "two random accesses",
     "{value:.1f} ns, {ratio:.2f} times {peer}"),
    ("a call with 1,000 keys", "ids", "a call of 1,000", "lookup of keys", "", "{value:.0f} µs"),
    ("a call with 1,000 strings", "ids", "a call of 1,000", "encode of strings", "", "{value:.0f} µs"),
    ("100M keys: build, two threads", "ids", "100M keys", "map build, 2 threads", "", "{value:.0f} ns/key"),
    ("... peak memory, interpreter included", "ids", "100M keys", "peak memory of build and save", "",
     "{value:.2f} GB"),
    ("... of which the caller's keys and counts", "ids", "100M keys", "of which keys and counts, given", "",
     "{value:.2f} GB"),
    ("... opened in a fresh process", "ids", "100M keys", "open in a fresh process", "", "{value:.1f} ms"),
    ("mapping in a training step", "ids", PLACE, "share of a training step", "", "{value:.1f} %"),
    ("mapping in a request, 100 candidates", "ids", PLACE, REQUEST.format(100), "", "{value:.1f} %"),
    ("mapping in a request, 500 candidates", "ids", PLACE, REQUEST.format(500), "", "{value:.1f} %"),
    ("false accepts, 8 bits", "ids", "false accepts", "8 bits, distance from 2^-8", "",
     "{value:.1f} standard deviations from 2^-8"),
    ("false accepts, 16 bits", "ids", "false accepts", "16 bits, distance from 2^-16", "",
     "{value:.1f} standard deviations from 2^-16"),
    ("of 100M ids, lost or alike", "ids", "wrong answers", "100M keys", "", "{value:.0f}"),
))  # fmt: skip

# The tables of a page stand between its pairs of markers, in order.
PAGES: dict[Path, tuple[Lines | Matrix, ...]] = {
    ROOT / "README.md": (README_FIGURES,),
    ROOT / "docs" / "howto" / "ids.md": (IDS_OF_KEYS, IDS_OF_WORDS, IDS_FIGURES, IDS_GROWING),
}


def render(table: Lines | Matrix, newest: Newest, page: Path) -> str:
    """A table of the newest rows and where they were measured; lines never measured are left out."""
    lines, rows = table.render(newest)
    if not rows:
        return "Not measured yet."
    machines = "; ".join(sorted({f"{row.machine}, {row.date}" for row in rows}))
    csv = Path(os.path.relpath(RESULTS, page.parent)).as_posix()
    return "\n".join([*lines, "", f"Machine: {machines}. All rows: [benchmarks/results.csv]({csv})."])


def replaced(text: str, tables: Sequence[str]) -> str:
    """The page with a table between each pair of markers."""
    head, *parts = text.split(BEGIN)
    assert len(parts) == len(tables), f"{len(parts)} pairs of markers for {len(tables)} tables"
    tails = (part.split(END)[1] for part in parts)
    return head + "".join(f"{BEGIN}\n{table}\n{END}{tail}" for table, tail in zip(tables, tails, strict=True))


def main() -> int:
    """Rewrite, or compare."""
    newest, changed = latest(read()), False
    for page, tables in PAGES.items():
        text = page.read_text("utf-8")
        new = replaced(text, [render(table, newest, page) for table in tables])
        if new != text:
            changed = True
            if "--check" not in sys.argv[1:]:
                page.write_text(new, "utf-8")
    return int(changed and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
