"""The shared library of the native lookup: where it lies, and how g++ makes it.

Notable: its name carries a digest of sources and flags, so a library of other sources is never taken for this one's;
it lies in the package, so a checkout and an installed package find it alike. It is built on the machine that uses it
and part of no wheel.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from sparsefeed.errors import ToolError

__all__ = ["BACKEND", "HOW", "build", "built"]

BACKEND = "sparsefeed"  # what Triton calls it
HOW = "make native (or python -m sparsefeed.native, where pip installed it); it needs g++"
FOLDER = Path(__file__).parent / "build"

_SOURCES = ("feed_hps.cpp", "meter.h", "table.h", "triton_api.h")
# int8 rows must come out with numpy's and numba's bits, so products and sums are never fused.
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden",
    "-Wl,-z,now", "-s",
)  # fmt: skip


def built() -> Path | None:
    """The library of exactly these sources; None when it is not built."""
    path = _path()
    return path if path.is_file() else None


def build() -> Path:
    """Compile it, some seconds, and return where it lies; what lies there already is not compiled again.

    Raises:
        ToolError: g++ is not there or fails, or the package's folder cannot be written.
    """
    path = _path()
    if path.is_file():
        return path
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise ToolError(
            f"{os.environ.get('CXX', 'g++')}: not found, and the native lookup is C++; install g++ (Debian: apt-get "
            "install g++), or serve without it: serving.lookup_backend python"
        )
    source = str(Path(__file__).with_name(_SOURCES[0]))
    try:
        FOLDER.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            made = Path(scratch) / path.name
            command = [compiler, *_FLAGS, "-o", str(made), source]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ToolError(f"{compiler}: cannot compile {source}\n{done.stderr[-4000:]}")
            made.replace(path)
    except OSError as error:
        raise ToolError(
            f"{FOLDER}: {error.strerror}; build it as the user who may write there, or install sparsefeed into an "
            "environment of your own"
        ) from error
    return path


def _path() -> Path:
    digest = hashlib.sha256(" ".join((platform.machine(), *_FLAGS)).encode())
    for name in _SOURCES:
        digest.update(Path(__file__).with_name(name).read_bytes())
    return FOLDER / f"libtriton_{BACKEND}-{digest.hexdigest()[:16]}.so"
