"""The command line: help is quick, doctor never fails, an error is one message and status 1."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest


def sparsefeed(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "sparsefeed"
    return subprocess.run([str(program), *words], capture_output=True, text=True, cwd=cwd, timeout=120, check=False)


def test_help_names_every_command_and_imports_no_heavy_library() -> None:
    started = time.perf_counter()
    shown = sparsefeed("--help").stdout
    assert time.perf_counter() - started < 5
    for command in (
        "doctor",
        "simulate",
        "logs",
        "etl",
        "plan",
        "tune",
        "train",
        "eval",
        "export",
        "serve",
        "refresh",
        "fold",
        "publish",
        "canary",
        "shadow",
        "rollback",
        "push",
        "pull",
        "rank",
        "bench",
        "report",
        "demo",
        "inspect",
        "health",
    ):
        assert command in shown


def test_the_command_line_and_recipes_load_without_torch_and_dask() -> None:
    code = (
        "import sys, sparsefeed.workflows.cli, sparsefeed.workflows.recipe as r; r.load_recipe('tiny');"
        "print(sorted({'torch', 'dask', 'nvtabular', 'tritonclient', 'onnxruntime'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_doctor_says_what_is_there_and_why_not_the_rest() -> None:
    done = sparsefeed("doctor")
    assert done.returncode == 0
    for word in ("Python", "GPU", "cudf", "hugectr", "nvtabular", "torchrec", "tritonserver", "perf_analyzer", "redis"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["etl", "--recipe", "tinny"], 'SpecError: recipe "tinny" is not there; did you mean "tiny"?'),
        (
            ["etl", "--day", "2026-11-09"],
            "DataError: artifacts/etl: there is no finished ETL; run `sparsefeed etl` first",
        ),
        (["etl"], "DataError: artifacts/logs/impressions: no day=YYYY-MM-DD/*.parquet"),
        (["train"], "artifacts/etl: there is no finished ETL; run `sparsefeed etl` first"),
        (["eval"], "there is no finished ETL"),
        (["export"], "there is no finished ETL"),
        (
            ["logs", "obd", "nowhere"],
            "DataError: nowhere: no such folder; give the one that the data set was unpacked to",
        ),
        (["logs", "kuaisar", "."], "Invalid value for 'dataset'"),
        (["simulate", "--scale", "huge"], "Invalid value for '--scale'"),
        (["train", "--weights", "foo"], "Invalid value for '--weights'"),
        (["plan"], "SpecError: plan: give --member ROWS --creator ROWS --post ROWS --hashtag ROWS, or run `sparsefeed"),
        (["plan", "--memberz", "1e9"], 'SpecError: plan: --memberz is no option and no table; did you mean "member"?'),
        (["plan", "--member"], "Invalid value for --member: needs a number of rows"),
        (
            ["plan", "--memory", "80 potatoes"],
            "SpecError: plan: got '80 potatoes'; allowed: a size as 80GiB, 50GB or 1e9",
        ),
        (["serve"], "BundleError: artifacts/bundles/current: missing; run `sparsefeed export` first"),
        (["rank", "--member", "m", "--posts", "p", "--url", "127.0.0.1:1"], "is the server started"),
        (["rank", "--member", "m", "--posts", "p", "--overrides", "{"], "RequestError: --overrides: not JSON"),
    ],
)
def test_an_error_is_one_message_and_status_1_or_2_for_an_option(
    tmp_path: Path, words: list[str], message: str
) -> None:
    done = sparsefeed(*words, cwd=tmp_path)
    assert done.returncode == (2 if "Invalid value" in message else 1), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert message in " ".join((done.stdout + done.stderr).split())
