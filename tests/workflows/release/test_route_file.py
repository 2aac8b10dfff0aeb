from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparsefeed.errors import ReleaseError
from sparsefeed.workflows.release.routing import route_file
from sparsefeed.workflows.release.routing.route_file import CAPACITY_BYTES, RouteFile
from sparsefeed.workflows.release.routing.routes import Routes
from tests.children import ask_child


@pytest.fixture
def file(tmp_path: Path) -> RouteFile:
    made = RouteFile(tmp_path / "routes.json")
    made.create(Routes(0, "b0"))
    return made


def nth(number: int) -> Routes:
    return Routes(number, f"b{number}", decision={"why": "x" * (number % 3) * 5000})


def test_every_replacement_is_seen_by_a_reader_that_has_read_before(file: RouteFile) -> None:
    reader = RouteFile(file.path)
    for number in range(1, 100):
        file.replace(nth(number))
        assert reader.read() == nth(number)
    assert json.loads(file.path.read_text())["stable"] == "b99"


def test_unchanged_routes_are_one_stat(file: RouteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    first = file.read()
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
    assert file.read() is first


def test_a_replacement_takes_no_block_and_no_name_that_was_not_there(file: RouteFile) -> None:
    def used() -> tuple[int, set[Path]]:
        paths = set(file.path.parent.iterdir())
        return sum(path.stat().st_blocks for path in paths), paths

    before = used()
    for number in range(1, 20):
        file.replace(nth(number))
        assert used() == before


def test_where_names_cannot_be_exchanged_the_spare_is_renamed(file: RouteFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_file, "_exchange", lambda *_: False)
    reader = RouteFile(file.path)
    for number in range(1, 10):
        file.replace(nth(number))
        assert reader.read() == nth(number)
        assert file.spare.stat().st_size == CAPACITY_BYTES


def test_a_reader_beside_a_writer_sees_whole_routes_in_order(file: RouteFile) -> None:
    seen: list[Routes] = []
    ended = threading.Event()

    def read() -> None:
        reader = RouteFile(file.path)
        while not ended.is_set():
            routes = reader.read()
            if not seen or routes != seen[-1]:
                seen.append(routes)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(1, 300):
        file.replace(nth(number))
    ended.set()
    thread.join()
    assert all(routes == nth(routes.revision) or routes == Routes(0, "b0") for routes in seen)
    assert [routes.revision for routes in seen] == sorted({routes.revision for routes in seen})
    assert len(seen) > 10


def test_more_than_fits_is_refused_and_the_old_routes_stay(file: RouteFile) -> None:
    many = Routes(1, "b1", pinned={f"member-{i}-{'x' * 200}": "b1" for i in range(500)})
    with pytest.raises(ReleaseError, match="65,535 fit; pin fewer members"):
        file.replace(many)
    assert file.read() == Routes(0, "b0")


def test_a_file_edited_by_hand_is_refused_with_the_key_and_the_ones_before_come_back(file: RouteFile) -> None:
    file.replace(nth(1))
    file.path.write_text(file.path.read_text().replace('"stable"', '"stabel"'))
    with pytest.raises(ReleaseError, match=r'routes.json: "stabel" is not a key; did you mean "stable"'):
        RouteFile(file.path).read()
    assert file.restore() == Routes(0, "b0")
    assert RouteFile(file.path).read() == Routes(0, "b0")
    file.path.write_bytes(b"\xff\xfe")
    with pytest.raises(ReleaseError, match="not UTF-8"):
        RouteFile(file.path).read()


def test_a_file_edited_by_hand_and_good_is_read_and_gets_its_room_back(file: RouteFile) -> None:
    file.path.write_text(nth(5).dump())
    assert file.read() == nth(5)
    file.replace(nth(6))
    assert file.spare.stat().st_size == CAPACITY_BYTES


def test_a_writer_killed_at_any_step_leaves_the_old_routes_or_the_new(file: RouteFile) -> None:
    for number, step in enumerate(["routes written", "routes in place"], 1):

        def die(done: int, total: int, what: str, step: str = step) -> None:
            if what == step:
                os.kill(os.getpid(), 9)

        code, _ = ask_child(lambda number=number, die=die: file.replace(nth(number), die))  # type: ignore[misc]
        assert code == -9
        assert RouteFile(file.path).read().revision == (0, 2)[number - 1]
    file.replace(nth(3))
    assert RouteFile(file.path).read() == nth(3)


FULL = """
import errno, sys
from pathlib import Path
from sparsefeed.workflows.release.routing.route_file import RouteFile
from sparsefeed.workflows.release.routing.routes import Routes
folder = Path(sys.argv[1])
file = RouteFile(folder / "routes.json")
file.create(Routes(0, "b0"))
try:
    with (folder / "fill").open("wb", buffering=0) as fill:
        while True:
            fill.write(bytes(4096))
except OSError as error:
    assert error.errno == errno.ENOSPC
try:
    (folder / "more").write_bytes(b"x" * 4096)
except OSError:
    pass
else:
    raise SystemExit("the disk is not full")
for number in range(1, 50):
    file.replace(Routes(number, f"b{number}"))
    assert RouteFile(file.path).read().stable == f"b{number}"
print("replaced 49 times")
"""


def test_a_full_disk_takes_every_replacement(tmp_path: Path) -> None:
    shell = 'mount -t tmpfs -o size=512k none "$0" && exec "$1" -c "$2" "$0"'
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, str(tmp_path), sys.executable, FULL],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system of one's own can be mounted here: {done.stderr.strip()[:200]}")
    assert done.stdout == "replaced 49 times\n", done.stderr
