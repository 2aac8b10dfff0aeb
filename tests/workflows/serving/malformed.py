"""Requests that no well-meaning client sends, drawn at random, as raw messages of Triton's gRPC."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from sparsefeed.workflows.serving.request import STEPS, ranker_name, step_name

__all__ = ["malformed", "well_formed"]

_TYPES = ("BYTES", "INT64", "INT32", "FP32", "FP64", "BOOL", "UINT8", "FP16", "BF16", "", "BYTE", "bytes", "\u00e9")
_SIZES = {"INT64": 8, "INT32": 4, "FP32": 4, "FP64": 8, "BOOL": 1, "UINT8": 1, "FP16": 2, "BF16": 2}
_DIMENSIONS = (0, 1, 1, 1, 2, 3, -1, -(2**63), 2**31, 2**62, 1001, 7)
# What the steps pass on to each other; a client can send it to a step as well.
_BETWEEN = {
    "feed_hps": ("KEYS", "NUMKEYS"),
    "feed_dense": ("OUTPUT0", "member_dense", "candidate_dense", "len_interests", "len_liked"),
}


def well_formed(bundle: str, member: bytes = b"m6", posts: tuple[bytes, ...] = (b"p6", b"p7", b"p8")) -> Any:
    """A request that has an answer."""
    request = pb.ModelInferRequest(model_name=ranker_name(bundle))
    for name, texts in (("member_id", (member,)), ("post_ids", posts)):
        _add(request, name, "BYTES", [len(texts)], b"".join(map(_text, texts)))
    return request


def malformed(bundle: str, count: int, seed: int) -> Iterator[tuple[str, Any]]:
    """Draw requests, each with the name of what is wrong with it; every kind comes in turn."""
    draw = random.Random(seed)
    kinds = list(_KINDS.items())
    for i in range(count):
        name, make = kinds[i % len(kinds)]
        yield name, make(draw, bundle)


def _text(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def _add(request: Any, name: str, datatype: str, shape: list[int], raw: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(raw)


def _bytes(draw: random.Random, most: int = 40) -> bytes:
    return draw.randbytes(draw.randrange(most))


def _wrong_type(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    tensor = draw.choice(request.inputs)
    tensor.datatype = draw.choice([name for name in _TYPES if name != "BYTES"])
    i = list(request.inputs).index(tensor)
    if draw.random() < 0.5 and tensor.datatype in _SIZES:  # as long as the type says
        request.raw_input_contents[i] = draw.randbytes(_SIZES[tensor.datatype] * tensor.shape[0])
    return request


def _wrong_shape(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    tensor = draw.choice(request.inputs)
    before = list(tensor.shape)
    while list(tensor.shape) == before:
        del tensor.shape[:]
        tensor.shape.extend(draw.choice(_DIMENSIONS) for _ in range(draw.randrange(6)))
    return request


def _not_utf8(draw: random.Random, bundle: str) -> Any:
    bad = draw.choice([b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\x80", b"a\xfe"]) + b"x"
    if draw.random() < 0.5:
        return well_formed(bundle, member=bad)
    return well_formed(bundle, posts=(b"p1", bad))


def _missing(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    for i in draw.choice([(0,), (1,), (1, 0)]):
        del request.inputs[i]
        del request.raw_input_contents[i]
    return request


def _duplicate(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    i = draw.randrange(2)
    request.inputs.add().CopyFrom(request.inputs[i])
    request.raw_input_contents.append(request.raw_input_contents[i])
    return request


def _stranger(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    name = draw.choice(["", "member", "KEYS", "x" * draw.randrange(1, 5000), "\u0000", "post_ids "])
    _add(request, name, "BYTES", [1], _text(_bytes(draw)))
    return request


def _garbled_strings(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    i = draw.randrange(2)
    raw = request.raw_input_contents[i]
    request.raw_input_contents[i] = draw.choice(
        [
            b"",
            raw[: draw.randrange(len(raw))],
            raw + draw.randbytes(draw.randrange(1, 9)),
            struct.pack("<I", 2**32 - 1) + raw[4:],
            struct.pack("<I", 2**31) + raw[4:],
            draw.randbytes(len(raw)),
        ]
    )
    return request


def _contents_mixed_up(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    kind = draw.randrange(4)
    if kind == 0:
        del request.raw_input_contents[draw.randrange(2)]
    elif kind == 1:
        request.raw_input_contents.append(_bytes(draw))
    elif kind == 2:
        request.inputs[0].contents.bytes_contents.append(b"m6")  # beside the raw contents
    else:
        del request.raw_input_contents[:]
        request.inputs[0].contents.int_contents.append(draw.randrange(100))
        request.inputs[1].contents.fp32_contents.append(draw.random())
    return request


def _too_long(draw: random.Random, bundle: str) -> Any:
    if draw.random() < 0.5:
        return well_formed(bundle, member=b"m" * draw.randrange(1025, 1_000_000))
    return well_formed(bundle, posts=(b"p" * draw.randrange(1025, 200_000),))


def _too_many(draw: random.Random, bundle: str) -> Any:
    return well_formed(bundle, posts=(b"p6",) * draw.randrange(1001, 20_000))


def _too_much(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    _add(request, "overrides", "BYTES", [1], _text(b" " * draw.randrange(4_200_000, 4_500_000)))
    return request


def _overrides(draw: random.Random, bundle: str) -> Any:
    deep = draw.randrange(1, 100_000)
    texts = [
        _bytes(draw, 200) or b"{",
        b"[" * deep,
        b'{"member":' * deep,
        b'{"member": {"age": 1e999}}',
        b'{"member": {"age": ' + b"9" * draw.randrange(400, 6000) + b"}}",
        b'{"posts": {"p6": {"hashtags": ["\\ud800"]}}}',
        b'{"posts": {"p6": {"creator_id": 3}}}',
        b'{"posts": {"p99": {}}}',
        b'{"member": null}',
        b'{"member": {"' + b"\xc3\xa9" * draw.randrange(4000) + b'": 1}}',
        b'{"posts": {"' + b"\xf0\x9f\x98\x80" * draw.randrange(9000) + b'": 1}}',
        json.dumps({"member": {draw.choice(["age", "liked", "x"]): draw.choice(["", {}, [[1]], True])}}).encode(),
    ]
    request = well_formed(bundle)
    _add(request, "overrides", "BYTES", [1], _text(draw.choice(texts)))
    return request


def _no_such_model(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    if draw.random() < 0.5:
        request.model_name = draw.choice(["", "feed_ranker_b9", "../" * 9, "x" * 5000, "feed_ranker_"])
    else:
        request.model_version = draw.choice(["0", "7", "-1", "latest", "9" * 40])
    return request


def _no_such_output(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    request.outputs.add(name=draw.choice(["", "OUTPUT0", "KEYS", "x" * 3000]))
    return request


def _shared_memory(draw: random.Random, bundle: str) -> Any:
    request = well_formed(bundle)
    del request.raw_input_contents[:]
    tensor = draw.choice(request.inputs)
    tensor.parameters["shared_memory_region"].string_param = draw.choice(["", "region", "/dev/shm/x"])
    tensor.parameters["shared_memory_byte_size"].int64_param = draw.choice([0, 8, 2**62, -1])
    tensor.parameters["shared_memory_offset"].int64_param = draw.choice([0, 2**62, -8])
    return request


def _parameters(draw: random.Random, bundle: str) -> Any:
    # Each with the wrong type of value; what Triton does not know it passes over.
    request = _missing(draw, bundle)
    for name in draw.sample(["sequence_id", "sequence_start", "priority", "timeout", "binary_data_output", "x"], 3):
        kind, values = draw.choice(
            [("string_param", ["", "a", "-1"]), ("int64_param", [-1, 0, 2**62]), ("bool_param", [True])]
        )
        setattr(request.parameters[name], kind, draw.choice(values))
    request.id = "\u00e9" * draw.randrange(300)  # which Triton's own message repeats, within 8 KiB of headers
    return request


def _to_a_step(draw: random.Random, bundle: str) -> Any:
    step = draw.choice(list(_BETWEEN))
    request = pb.ModelInferRequest(model_name=step_name(step, bundle))
    for name in draw.sample(_BETWEEN[step], draw.randrange(1, len(_BETWEEN[step]) + 1)):
        datatype = {"KEYS": "INT64", "NUMKEYS": "INT32"}.get(name, "FP32")
        datatype = "INT64" if name.startswith("len_") else datatype
        rank = 2 if name in ("KEYS", "NUMKEYS", "member_dense", "candidate_dense") else 1
        shape = [draw.choice([1, 1, 2, 5])] * (rank - 1) + [draw.choice([0, 1, 2, 4, 9])]
        count = 1
        for dimension in shape:
            count *= dimension
        raw = draw.randbytes(_SIZES[datatype] * count)
        _add(request, name, datatype, shape, raw if draw.random() < 0.8 else bytes(len(raw)))
    return request


def _nothing(draw: random.Random, bundle: str) -> Any:
    return pb.ModelInferRequest(model_name=draw.choice([ranker_name(bundle), *(step_name(s, bundle) for s in STEPS)]))


_KINDS: dict[str, Callable[[random.Random, str], Any]] = {
    made.__name__.removeprefix("_"): made
    for made in (
        _wrong_type,
        _wrong_shape,
        _not_utf8,
        _missing,
        _duplicate,
        _stranger,
        _garbled_strings,
        _contents_mixed_up,
        _too_long,
        _too_many,
        _too_much,
        _overrides,
        _no_such_model,
        _no_such_output,
        _shared_memory,
        _parameters,
        _to_a_step,
        _nothing,
    )
}
