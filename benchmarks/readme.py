"""Render the README's figures from results.csv, between its two markers.

python benchmarks/readme.py          rewrite README.md
python benchmarks/readme.py --check  exit with 1 if it would change
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from results import Row, latest, read

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

# What is shown: title of the line, suite, case, metric, peer, how.
OF_PEER = "{value:.4f} against {peer_value:.4f} of {peer}"
WEIGHTS = "{value:.3f} with IPS weights, {peer_value:.3f} without"
TREES, UNWEIGHTED, OVER = "LightGBM without ids", "no weights", "predicted_over_actual"
LINES = (
    ("click: AUC", "quality", "click", "auc", TREES, OF_PEER),
    ("like: AUC", "quality", "like", "auc", TREES, OF_PEER),
    ("click: log loss", "quality", "click", "log_loss", TREES, "{ratio:.3f} of that of {peer}"),
    ("click: log loss", "quality", "click", "log_loss", UNWEIGHTED, "{ratio:.3f} of its own without IPS weights"),
    ("click: predicted/actual", "quality", "click", OVER, UNWEIGHTED, WEIGHTS),
    ("reshare: predicted/actual", "quality", "reshare", OVER, UNWEIGHTED, WEIGHTS),
    ("ETL, cluster start included", "etl", "logs to parquet", "rows per second", "", "{value:,.0f} rows/s"),
    ("training", "train", "2 processes, batch 8192", "samples per second", "", "{value:,.0f} samples/s"),
    ("ensemble, 100 candidates", "serve", "100 candidates, 1 in flight", "p50", "", "p50 {value:.1f} ms"),
    ("ensemble, 500 candidates", "serve", "500 candidates, 1 in flight", "p50", "", "p50 {value:.1f} ms"),
    ("the same, 4 in flight", "serve", "500 candidates, 4 in flight", "requests per second", "", "{value:,.0f}/s"),
)  # fmt: skip


def render(rows: list[Row]) -> str:
    """A table of the newest rows, with the command of each; lines never measured are left out."""
    newest = latest(rows)
    lines = ["| what | measured | command |", "|---|---|---|"]
    machines = []
    for title, suite, case, metric, peer, how in LINES:
        row = newest.get((suite, case, metric, peer))
        if row is not None:
            shown = how.format(value=row.value, peer=row.peer, peer_value=row.peer_value, ratio=row.ratio)
            lines.append(f"| {title} | {shown} | `{row.command}` |")
            machines.append(f"{row.machine}, {row.date}")
    lines += [
        "",
        f"Machine: {'; '.join(sorted(set(machines)))}. All rows: [benchmarks/results.csv](benchmarks/results.csv).",
    ]
    return "\n".join(lines)


def replaced(text: str, figures: str) -> str:
    """The README with the figures between its markers."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n{figures}\n{END}{tail}"


def main() -> int:
    """Rewrite, or compare."""
    text = README.read_text("utf-8")
    new = replaced(text, render(read()))
    if "--check" in sys.argv[1:]:
        return int(new != text)
    README.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
