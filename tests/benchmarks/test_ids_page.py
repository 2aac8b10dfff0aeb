"""docs/howto/ids.md: what it shows runs, and its tables come from the results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import readme  # noqa: E402
import results  # noqa: E402

PAGE = ROOT / "docs" / "howto" / "ids.md"


def row(case: str, metric: str, value: float, peer: str = "", peer_value: float | None = None) -> results.Row:
    return results.Recorder("ids", "run", "abc", "cpu", "2026-11-24").row(case, metric, value, "", peer, peer_value)


def test_the_pages_python_blocks_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(blocks) == 8
    assert (tmp_path / "inverse" / "member").is_dir()


def test_a_table_without_any_measurement_says_so() -> None:
    for page, tables in readme.PAGES.items():
        for table in tables:
            assert readme.render(table, {}, page) == "Not measured yet."


def test_a_matrix_shows_ours_above_the_peer_and_leaves_out_what_was_not_measured() -> None:
    case, peer = readme.KEYS_1, "bbhash"
    newest = results.latest(
        [row(case, "function bits per id", 2.64, peer, 3.71), row(case, "function build", 110.4, peer, 99.6)]
    )
    lines, rows = readme.IDS_OF_KEYS.render(newest)
    assert lines == [
        "| 10M random 64-bit keys, one thread | bits a key | build, ns/key | lookup, ns/key |",
        "|---|---|---|---|",
        "| **sparsefeed**, function alone | 2.64 | 110 | – |",
        "| bbhash 0.6, a key at a time | 3.71 | 99.6 | – |",
    ]
    assert len(rows) == 4


def test_each_pair_of_markers_gets_its_own_table() -> None:
    text = f"a\n{readme.BEGIN}\nold\n{readme.END}\nb\n{readme.BEGIN}\n{readme.END}\nc"
    new = readme.replaced(text, ["first", "second"])
    assert new == f"a\n{readme.BEGIN}\nfirst\n{readme.END}\nb\n{readme.BEGIN}\nsecond\n{readme.END}\nc"
    assert readme.replaced(new, ["first", "second"]) == new
