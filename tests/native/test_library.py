from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sparsefeed.errors import ToolError
from sparsefeed.native import library
from sparsefeed.workflows.doctor import examine


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(library, "FOLDER", tmp_path / "build")
    return tmp_path / "build"


def compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_missing_compiler_is_named_with_the_way_around_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(folder))
    with pytest.raises(ToolError, match=r"g\+\+: not found.*apt-get install g\+\+.*serving\.lookup_backend python"):
        library.build()
    assert library.built() is None


def test_a_compiler_that_fails_says_why_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", "echo 'table.h:1: no such thing' >&2; exit 1")))
    with pytest.raises(ToolError, match=r"cannot compile .*feed_hps\.cpp\ntable\.h:1: no such thing"):
        library.build()
    assert library.built() is None
    assert list(folder.iterdir()) == []


def test_a_library_of_other_sources_is_not_taken(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", 'while [ "$1" != -o ]; do shift; done; echo x > "$2"')))
    made = library.build()
    assert library.built() == made
    monkeypatch.setattr(library, "_FLAGS", (*library._FLAGS, "-DOTHER"))
    assert library.built() is None


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(library, "FOLDER", tmp_path / "file" / "build")
    with pytest.raises(ToolError, match=r"file/build: .*; build it as the user who may write there"):
        library.build()


def test_doctor_says_whether_it_is_built(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = [one for one in examine() if one.what == "native lookup"]
    assert (before.found, before.why_not) == ("", f"not built; {library.HOW}")
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", 'while [ "$1" != -o ]; do shift; done; echo x > "$2"')))
    library.build()
    (after,) = [one for one in examine() if one.what == "native lookup"]
    assert (after.found, after.why_not) == ("built", "")


def test_the_command_that_make_calls_says_an_error_in_one_line(tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": "no-such-compiler"}
    code = "import runpy, sys; from pathlib import Path; from sparsefeed.native import library; "
    code += f"library.FOLDER = Path({str(tmp_path)!r}); runpy.run_module('sparsefeed.native', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ToolError: no-such-compiler: not found")
    assert len(done.stderr.splitlines()) == 1
