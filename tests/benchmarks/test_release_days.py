"""What benchmarks/release_days.py makes of what it measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import release_days  # noqa: E402
import results  # noqa: E402

from tests import bundles  # noqa: E402

RECORD = results.Recorder("release", "run", "abc", "cpu", "2026-11-23")


def test_a_days_share_is_the_bases_time_by_rows_and_growth_compares_the_ends() -> None:
    days = [release_days.Day(100, 1.0, 2.0 + number, 150 + 10 * number, 100, 10) for number in range(6)]
    rows = {(row.metric, row.peer): row for row in release_days.rows_of(RECORD, release_days.Base(600, 12.0), days)}
    assert rows["a day's share of the base", ""].value == 2.0
    assert rows["seconds, times a day's share of the base, worst", ""].value == 3.5
    assert rows["seconds, times a day's share of the base, median", ""].value == pytest.approx(2.25)
    assert rows["bytes, times what the day changed, worst", ""].value == 2.0
    assert rows["seconds of the last 3 days", "of the first 3"].ratio == 2.0


@pytest.mark.parametrize(("row_format", "row_bytes"), [("fp32", 32), ("int8", 16)])
def test_changed_bytes_are_stored_rows_ids_and_the_files_that_are_new(
    tmp_path: Path, row_format: str, row_bytes: int
) -> None:
    parent = bundles.publish(tmp_path, row_format=row_format)  # type: ignore[arg-type]
    rows = {"post": bundles.rows_of([7, 70], bundles.values(8, 3)[1:])}
    delta = bundles.delta(parent, "v2", tmp_path / "delta", rows, {"post": bundles.ids_of({5: 70}, [])})
    others = [path for path in delta.path.rglob("*") if path.is_file() and path.parent.name not in ("tables", "ids")]
    files = sum(path.stat().st_size for path in others if path.name not in ("SHA256SUMS", "READY"))
    assert release_days.changed_bytes(delta) == 2 * row_bytes + 16 + files
