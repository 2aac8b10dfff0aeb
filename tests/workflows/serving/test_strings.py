from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import serialize_byte_tensor

from sparsefeed.workflows.serving.strings import GarbledStrings, read_strings


def encoded(texts: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(struct.pack("<I", len(text)) + text for text in texts), np.uint8)


@given(st.lists(st.binary(max_size=20), max_size=30))
def test_what_the_client_library_wrote_is_read_back(texts: list[bytes]) -> None:
    written = serialize_byte_tensor(np.array(texts, object))
    raw = written.item() if written.size else b""
    assert encoded(texts).tobytes() == raw
    read = read_strings(np.frombuffer(raw, np.uint8)).reshape([len(texts)])
    assert type(read) is np.ndarray
    assert read.dtype == object
    assert read.tolist() == texts


@given(st.binary(max_size=60))
def test_no_bytes_break_it(raw: bytes) -> None:
    read = read_strings(raw)
    if isinstance(read, GarbledStrings):
        assert "its length says" in read.cause
    else:
        assert encoded(read.reshape(read.size).tolist()).tobytes() == raw


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"\x02\0\0\0a", "string 0 has 1 bytes left, but its length says 2"),
        (b"\x01\0\0\0a\x01\0", "string 1 has 0 bytes left"),
        (b"\xff\xff\xff\xffabc", "string 0 has 3 bytes left, but its length says 4294967295"),
    ],
)
def test_a_length_beyond_the_end_is_named(raw: bytes, cause: str) -> None:
    read = read_strings(raw)
    assert isinstance(read, GarbledStrings)
    assert cause in read.cause
    assert isinstance(read.reshape([1]), GarbledStrings)  # as the backend asks


def test_another_number_of_strings_than_the_shape_says_is_garbled() -> None:
    read = read_strings(encoded([b"a", b"b", b"c"]))
    found = read.reshape([1])
    assert isinstance(found, GarbledStrings)
    assert found.cause == "holds 3 strings, but its shape [1] says 1"
    assert read.reshape([3, 1]).shape == (3, 1)
