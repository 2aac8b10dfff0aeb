from __future__ import annotations

import stat
from pathlib import Path

import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from sparsefeed.errors import ServeError
from sparsefeed.workflows.serving.client import FeedClient
from sparsefeed.workflows.serving.control import ModelControl
from sparsefeed.workflows.serving.key import FILE_VARIABLE, HEADER, PROTOCOLS, VARIABLE, control_key, new_key
from sparsefeed.workflows.serving.server import TritonServer

KEY = "0123456789abcdef_-"
# A method of each group that the key closes, and what it is called with.
CLOSED = {
    "model-repository": ("get_model_repository_index", "unload_model"),
    "shared-memory": ("get_system_shared_memory_status", "unregister_system_shared_memory"),
    "logging": ("get_log_settings", "update_log_settings"),
    "trace": ("get_trace_settings", "update_trace_settings"),
}
ARGUMENTS = {"unload_model": ("feed_ranker_b1",), "update_log_settings": ({"log_verbose_level": 3},)}


def test_a_key_is_made_once_and_its_owner_alone_reads_it(tmp_path: Path) -> None:
    file = tmp_path / "new" / "control.key"
    made = control_key(file, {})
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert control_key(file, {}) == made == file.read_text().strip()
    assert len(made) >= 32
    assert made != control_key(tmp_path / "other", {})


def test_the_environment_names_the_key_or_its_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    file.chmod(0o600)
    unused = tmp_path / "unused"
    assert control_key(unused, {FILE_VARIABLE: str(file)}) == KEY
    assert control_key(unused, {VARIABLE: KEY * 2, FILE_VARIABLE: str(file)}) == KEY * 2
    assert not unused.exists()


def test_a_file_that_others_can_read_is_no_secret(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o640)
    with pytest.raises(ServeError, match=r"mode 0640 lets others read the key; chmod 600 it"):
        control_key(file, {})


@pytest.mark.parametrize("text", ["", "short", "with blanks in it, long", "0123456789abcdef:x=", "x" * 257])
def test_what_cannot_be_a_key_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    file.chmod(0o600)
    for environment in ({}, {VARIABLE: text}):
        with pytest.raises(ServeError, match="a key is 16 to 256 of") as caught:
            control_key(file, environment)
        assert not text or text not in str(caught.value)
    with pytest.raises(ServeError, match="no key can be read"):
        control_key(file, {FILE_VARIABLE: str(tmp_path / "gone")})


@pytest.mark.triton
@pytest.mark.parametrize(("protocol", "method"), [(p, m) for p, methods in CLOSED.items() for m in methods])
def test_what_controls_the_server_is_closed_without_the_key_and_with_another(
    server: TritonServer, protocol: str, method: str
) -> None:
    assert set(CLOSED) == set(PROTOCOLS)
    with triton.InferenceServerClient(server.grpc_url) as client:
        for headers in ({}, {HEADER: new_key()}):
            with pytest.raises(InferenceServerException, match="protocol is restricted"):
                getattr(client, method)(*ARGUMENTS.get(method, ()), headers=headers)
    with server.control() as control:
        assert control.ready() == ("b1", "b2")


@pytest.mark.triton
def test_a_client_without_the_key_asks_and_measures_but_does_not_control(server: TritonServer) -> None:
    with FeedClient(server.grpc_url, "b1") as client, ModelControl(server.grpc_url) as stranger:
        assert client.bundles() == ("b1", "b2")
        assert client.rank("m6", ["p6"]).bundle == "b1"
        assert stranger.statistics("b1")["feed_dense"]["success"]["count"] > 0
        for forbidden in (stranger.ready, lambda: stranger.load("b1"), lambda: stranger.unload("b1")):
            with pytest.raises(ServeError, match=f"give the server's key .{VARIABLE}"):
                forbidden()
        assert client.rank("m6", ["p6"]).bundle == "b1"
