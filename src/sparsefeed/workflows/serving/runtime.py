"""TritonRuntime: where the real tritonserver and perf_analyzer are, and the environment they run in.

Notable: the server comes from the wheel of nvidia-pytriton, whose Python package is never imported; only
its binaries are used, through an overlay of symbolic links, so that the installed wheel stays untouched.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from sparsefeed.errors import ToolError
from sparsefeed.native import library

__all__ = ["TritonRuntime"]

_INSTALL = "pip install --no-deps nvidia-pytriton==0.4.2"


@dataclass(frozen=True)
class TritonRuntime:
    """The files of the wheel: `server_folder` (bin, backends, stubs, caches) and its shared libraries."""

    server_folder: Path
    libraries: Path

    @classmethod
    def find(cls) -> TritonRuntime:
        """Locate the wheel without importing it; ToolError says how to install it."""
        found = importlib.util.find_spec("pytriton")
        if found is None or found.origin is None:
            raise ToolError(f"tritonserver: nvidia-pytriton is not installed; {_INSTALL}")
        package = Path(found.origin).parent
        runtime = cls(package / "tritonserver", package.parent / "nvidia_pytriton.libs")
        for path in (runtime.server, runtime._stub, runtime.libraries):
            if not path.exists():
                raise ToolError(f"tritonserver: {path} is missing from nvidia-pytriton; {_INSTALL}")
        return runtime

    @property
    def server(self) -> Path:
        """The tritonserver program."""
        return self.server_folder / "bin" / "tritonserver"

    @property
    def caches(self) -> Path:
        """Folder of response cache implementations."""
        return self.server_folder / "caches"

    @property
    def _stub(self) -> Path:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return self.server_folder / "python_backend_stubs" / version / "triton_python_backend_stub"

    def link_backends(self, folder: Path) -> None:
        """Make the backend directory: Python with this interpreter's stub, and ours where it is built."""
        python = folder / "python"
        python.mkdir(parents=True)
        source = self.server_folder / "backends" / "python"
        for path in (source / "libtriton_python.so", source / "triton_python_backend_utils.py", self._stub):
            (python / path.name).symlink_to(path)
        native = library.built()
        if native is not None:  # copied: a build or an update meanwhile takes nothing from a running server
            (folder / library.BACKEND).mkdir()
            shutil.copyfile(native, folder / library.BACKEND / f"libtriton_{library.BACKEND}.so")

    def link_libraries(self, folder: Path) -> None:
        """Give the wheel's renamed libraries the names perf_analyzer was linked with."""
        folder.mkdir(parents=True)
        for name, pattern in (("libb64.so.0d", "libb64-*.so.0d"), ("libcudart.so.12", "libcudart-*.so.12*")):
            found = sorted(self.libraries.glob(pattern))
            if not found:
                raise ToolError(f"perf_analyzer: no {pattern} in {self.libraries}; {_INSTALL}")
            (folder / name).symlink_to(found[0])

    def environment(self, *library_folders: Path) -> dict[str, str]:
        """Variables for the server and its tools.

        The stub is an isolated interpreter that finds this environment through `python3` on PATH.
        """
        libraries = [*library_folders, Path(sysconfig.get_config_var("LIBDIR")), self.libraries]
        return os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        }
