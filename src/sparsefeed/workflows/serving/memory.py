"""Memory: what a bundle weighs at rest, and what each process of a running server holds of it.

Notable: processes share the pages of a mapped file, so resident sizes cannot be added up. The kernel's proportional
set size (Pss) divides each page by the processes that hold it; sums of it are true.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sparsefeed.errors import ServeError
from sparsefeed.models.bundle import Bundle

__all__ = ["Part", "Process", "at_rest", "parse_smaps", "running"]

_HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)$")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Part:
    """A table, its ids, a side of the snapshot, or another file of a bundle; `rows` where it is a table."""

    name: str
    num_bytes: int
    rows: int | None = None
    row_format: str = ""


@dataclass(frozen=True)
class Process:
    """A process of a server.

    Attributes:
        process_id: Of it.
        name: Of the model that it runs; tritonserver itself otherwise.
        pss_bytes: Its share of memory, all of it.
        parts: Its share of each part of the bundle; parts it has not touched are not in it.
    """

    process_id: int
    name: str
    pss_bytes: int
    parts: dict[str, int] = field(default_factory=dict)


def at_rest(bundle: Bundle) -> list[Part]:
    """What a bundle's files weigh: tables, ids, snapshot, the rest; in this order."""
    tables = json.loads((bundle.tables / "tables.json").read_text("utf-8"))["tables"]
    known = {f"table {table['name']}": table for table in tables}
    sizes: dict[str, int] = dict.fromkeys(known, 0)
    for path in sorted(bundle.path.rglob("*")):
        if path.is_file():
            name = _part(path.relative_to(bundle.path))
            sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return [
        Part(name, num_bytes, known[name]["rows"], known[name]["row_format"])
        if name in known
        else Part(name, num_bytes)
        for name, num_bytes in sorted(sizes.items(), key=lambda item: _ORDER.index(item[0].split()[0]))
    ]


_ORDER = ("table", "ids", "snapshot", "dense.onnx", "rest")


def _part(path: Path) -> str:
    """`tables/post.npy`, or a delta's file of it -> `table post`."""
    first = path.parts[0]
    if first == "tables" and path.name != "tables.json":
        return f"table {path.name.split('.')[0]}"
    if first in ("ids", "snapshot") and len(path.parts) > 2:
        return f"{first} {path.parts[1]}"
    return first if first == "dense.onnx" else "rest"


def running(repository: Path, bundle: Bundle) -> list[Process]:
    """The servers of this model repository and their steps' processes, by name; empty when none runs.

    Raises:
        ServeError: It is another user's, whose memory this one may not see.
    """
    servers = _servers_of(repository)
    process_ids = dict.fromkeys(one for server in servers for one in (server, *_children(server)))
    found = [_process(process_id, bundle) for process_id in process_ids]
    return sorted((process for process in found if process), key=lambda process: (process.name, process.process_id))


def parse_smaps(text: str) -> Iterator[tuple[str, int]]:
    """Path ("" for anonymous memory) and Pss in bytes of each mapping, as /proc/PID/smaps lists them."""
    path = ""
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            path = header[1]
        elif line.startswith("Pss:"):
            yield path, int(line.split()[1]) * 1024


def _process(process_id: int, bundle: Bundle) -> Process | None:
    folder = str(bundle.path.resolve()) + "/"
    try:
        smaps = (_PROC / str(process_id) / "smaps").read_text("utf-8", "replace")
        command = _command(process_id)
    except PermissionError as error:
        raise ServeError(
            f"process {process_id}: {error.strerror}; inspect as the user who started the server"
        ) from error
    except (FileNotFoundError, ProcessLookupError):
        return None  # it ended meanwhile
    parts: defaultdict[str, int] = defaultdict(int)
    total = 0
    for path, pss_bytes in parse_smaps(smaps):
        total += pss_bytes
        if path.startswith(folder):
            parts[_part(Path(path.removeprefix(folder)))] += pss_bytes
    model = next((Path(word).parent.parent.name for word in command if word.endswith("/model.py")), "tritonserver")
    return Process(process_id, model, total, {name: size for name, size in parts.items() if size})


def _servers_of(repository: Path) -> list[int]:
    flag, found = "--model-repository=", []
    for entry in _PROC.glob("[0-9]*"):
        try:
            command = _command(int(entry.name))
            given = [word.removeprefix(flag) for word in command if word.startswith(flag)]
            if given and Path(command[0]).name == "tritonserver":
                started_in = (entry / "cwd").readlink()
                if (started_in / given[0]).resolve() == repository.resolve():
                    found.append(int(entry.name))
        except OSError:
            continue  # another user's, or ended meanwhile
    return sorted(found)


def _children(process_id: int) -> list[int]:
    found: list[int] = []
    for listed in _PROC.glob(f"{process_id}/task/*/children"):
        try:
            found += map(int, listed.read_text().split())
        except OSError:
            continue
    return found


def _command(process_id: int) -> list[str]:
    return (_PROC / str(process_id) / "cmdline").read_text("utf-8", "replace").rstrip("\0").split("\0")
