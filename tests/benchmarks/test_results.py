"""The tracked results: their form, what is checked against them, and the README that is rendered from them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "python benchmarks/run.py",
    "python benchmarks/ablations.py",
    "python benchmarks/gpu_",
    "python benchmarks/release_",
)
sys.path.insert(0, str(ROOT / "benchmarks"))

import results  # noqa: E402


def row(value: float, peer: str = "", peer_value: float | None = None) -> results.Row:
    return results.Recorder("etl", "run", "abc", "cpu", "2026-11-23").row(
        "case", "metric", value, "s", peer, peer_value
    )


def test_the_readmes_figures_are_those_of_the_results() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], check=False, timeout=60)
    assert done.returncode == 0, "run python benchmarks/readme.py"


def test_every_tracked_row_can_be_read_and_names_its_command() -> None:
    rows = results.read()
    assert rows
    assert all(r.command.startswith(COMMANDS) for r in rows)
    assert all(r.ratio is None or r.ratio == pytest.approx(r.value / (r.peer_value or 0), rel=1e-4) for r in rows)


def test_rows_are_appended_and_the_newest_of_a_case_wins(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    results.append([row(2.0)], path)
    results.append([row(3.0), row(4.0, "peer", 2.0)], path)
    newest = results.latest(results.read(path))
    assert newest["etl", "case", "metric", ""].value == 3.0
    assert newest["etl", "case", "metric", "peer"].ratio == 2.0
    assert path.read_text().count("commit,") == 1


def test_a_target_that_falls_short_or_was_not_measured_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = tmp_path / "targets.toml"
    targets.write_text(
        '[[etl]]\ncase = "case"\nmetric = "metric"\nat_most = 5\n'
        '[[etl]]\ncase = "case"\nmetric = "metric"\npeer = "peer"\nof = "ratio"\nat_least = 3\n'
        '[[etl]]\ncase = "other"\nmetric = "metric"\nat_least = 0\n'
    )
    monkeypatch.setattr(results, "TARGETS", targets)
    verdicts = results.check([row(2.0), row(4.0, "peer", 2.0)], "etl")
    assert [holds for _, holds, _ in verdicts] == [True, False, False]
    assert verdicts[2][2] == "not measured"
