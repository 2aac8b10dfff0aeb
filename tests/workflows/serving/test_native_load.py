"""What the native lookup does not load: table files and lists of tables that are not what an export wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc

from sparsefeed.errors import ServeError
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.conftest import config
from tests.workflows.serving.lookups import SHAPES, ask, drawn, export_lookup, publish

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("native_library")]


@pytest.fixture(scope="module")
def server(native_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of one good lookup, to which the bad ones are loaded."""
    root, out = tmp_path_factory.mktemp("bundles"), tmp_path_factory.mktemp("serving")
    publish(root, "int8", "int8")
    export_lookup(root, "int8", out)
    with TritonServer(out, ["int8"], config()) as running:
        yield running


def cut_off(tables: Path) -> str:
    path = tables / "post.npy"
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole[:-1])
    return rf"{path}: holds 359999 bytes of rows, its header says 360000; export the bundle again"


def without_a_file(tables: Path) -> str:
    (tables / "tag.overlay.npy").unlink()
    return rf"{tables}/tag\.overlay\.npy: No such file or directory; export the bundle again"


def empty(tables: Path) -> str:
    (tables / "tag.npy").unlink()
    (tables / "tag.npy").touch()
    return rf"{tables}/tag\.npy: an empty file, or none; export"


def header(path: Path, change: Callable[[bytes], bytes]) -> None:
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(change(whole))


def huge(tables: Path) -> str:
    header(tables / "post.npy", lambda b: b.replace(b"(5000, 72), }  ", b"(%d, 72), }" % (2**60)))
    return rf"{tables}/post\.npy: too large|holds \d+ bytes of rows"


def overflowing(tables: Path) -> str:
    header(tables / "post.npy", lambda b: b.replace(b"(5000, 72), }", b"(" + b"9" * 30 + b", 72), }"))
    return rf"{tables}/post\.npy: too large"


def of_objects(tables: Path) -> str:
    header(tables / "member.npy", lambda b: b.replace(b"|u1", b"|O1"))
    return rf"{tables}/member\.npy: holds no C-ordered rows of \|u1"


def no_array(tables: Path) -> str:
    header(tables / "member.npy", lambda b: b"PK" + b[2:])
    return rf"{tables}/member\.npy: not a \.npy file"


def cut_in_the_header(tables: Path) -> str:
    header(tables / "member.npy", lambda b: b[:40])
    return rf"{tables}/member\.npy: ends within its header"


def narrow(tables: Path) -> str:
    header(tables / "post.npy", lambda b: b.replace(b"(5000, 72)", b"(5000, 71)"))
    return rf"{tables}/post\.npy: not 1 to 8192 rows of 72 elements"


def unordered(tables: Path) -> str:
    path = tables / "post.overlay_rows.npy"
    rows = np.load(path)[::-1]
    path.unlink()
    np.save(path, np.ascontiguousarray(rows))
    return rf"{path}: its rows do not ascend within the table"


@pytest.mark.parametrize(
    "damage",
    [cut_off, without_a_file, empty, huge, overflowing, of_objects, no_array, cut_in_the_header, narrow, unordered],
)
def test_a_table_that_is_not_what_the_export_says_fails_to_load_and_is_named(
    server: TritonServer, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    name = damage.__name__
    publish(tmp_path, name, "int8", is_changed=True)
    export_lookup(tmp_path, name, server._repository)
    said = damage((tmp_path / "versions" / name / "tables").resolve())
    with pytest.raises(ServeError, match=said):
        server.control().load(name)
    with grpc.InferenceServerClient(server.grpc_url) as client:  # which goes on
        keys, num_keys = drawn([10, 10, 10], (1, 1, 1))
        assert ask(client, "int8", keys, num_keys).size == sum(dim for _, dim in SHAPES.values())


@pytest.mark.parametrize(
    ("line", "changed"),
    [
        (0, "sparsefeed feed_hps 2"),
        (1, "bundl x"),
        (3, "table member 4 300 int8"),
        (3, "table member 4 300 int8 0 0"),
        (3, "table member -4 300 int8 0"),
        (3, "table member 4 99999999999999999999 int8 0"),
        (3, "table member 4 300 int4 0"),
        (3, "table member 0 300 int8 0"),
        (3, "table member 18446744073709551615 300 int8 0"),
        (3, "table member 4 299 int8 0"),
    ],
)
def test_what_an_export_did_not_write_is_not_loaded(
    server: TritonServer, tmp_path: Path, line: int, changed: str
) -> None:
    name = f"edited-{line}-{abs(hash(changed))}"
    publish(tmp_path, name, "int8")
    export_lookup(tmp_path, name, server._repository)
    path = server._repository / f"feed_hps_{name}" / "1" / "tables.txt"
    lines = path.read_text().splitlines()
    lines[line] = changed
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ServeError, match=r'got "|allowed: fp32, fp16, int8|member\.npy: not 1 to'):
        server.control().load(name)
