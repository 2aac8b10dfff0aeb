from __future__ import annotations

from pathlib import Path

import pytest

from sparsefeed.models.bundle import open_version
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.memory import at_rest, parse_smaps, running
from sparsefeed.workflows.serving.server import TritonServer
from tests.workflows.serving.feed import SPEC

SMAPS = """\
7f0000000000-7f0000002000 r--s 00000000 fe:00 123                        /bundles/b1/tables/post one.npy
Size:                  8 kB
Rss:                   8 kB
Pss:                   4 kB
Pss_Dirty:             0 kB
7f0000002000-7f0000003000 rw-p 00000000 00:00 0
Rss:                   4 kB
Pss:                   4 kB
7ffc00000000-7ffc00001000 rw-p 00000000 00:00 0                          [stack]
Pss:                  12 kB
"""


def test_a_bundles_files_are_added_up_by_table_ids_and_snapshot(bundle_root: Path) -> None:
    version = open_version(bundle_root, "b1")
    parts = at_rest(version)
    names = [table.name for table in SPEC.tables]
    assert [part.name for part in parts[:4]] == [f"table {name}" for name in names]
    assert {part.name for part in parts[4:]} == {
        *(f"ids {name}" for name in names), "snapshot member", "snapshot post", "dense.onnx", "rest",
    }  # fmt: skip
    assert sum(part.num_bytes for part in parts) == sum(
        p.stat().st_size for p in version.path.rglob("*") if p.is_file()
    )
    for part, table in zip(parts, SPEC.tables, strict=False):
        assert part.num_bytes == (version.tables / f"{table.name}.npy").stat().st_size
        assert (part.rows, part.row_format) == (64, "fp32")


def test_smaps_are_read_by_path_and_pss() -> None:
    assert list(parse_smaps(SMAPS)) == [("/bundles/b1/tables/post one.npy", 4096), ("", 4096), ("[stack]", 12288)]


def test_without_a_server_nothing_runs(bundle_root: Path, tmp_path: Path) -> None:
    assert running(tmp_path, open_version(bundle_root, "b1")) == []


@pytest.mark.triton
def test_each_process_of_a_server_tells_what_it_holds_of_the_bundle(
    server: TritonServer, repository: Path, bundle_root: Path
) -> None:
    with FeedClient(server.grpc_url, "b1") as client:
        client.rank("m6", [f"p{i}" for i in range(60)])
    processes = running(repository, open_version(bundle_root, "b1"))
    by_name = {process.name: process for process in processes}
    assert by_name["tritonserver"].process_id == server.process_id
    assert {f"feed_{step}_{bundle}" for step in ("transform", "hps", "dense") for bundle in ("b1", "b2")} < set(by_name)
    assert all(process.pss_bytes > 2**20 for process in processes)
    assert {"snapshot post", "ids post"} < set(by_name["feed_transform_b1"].parts)
    assert set(by_name["feed_hps_b1"].parts) >= {f"table {table.name}" for table in SPEC.tables}
    assert by_name["feed_transform_b2"].parts == {}  # it holds another bundle
