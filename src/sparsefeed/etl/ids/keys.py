"""Keys of ids: XXH64 of a string's UTF-8 bytes, computed from Arrow's buffers without a Python object.

The value is that of the `xxhash` library and of cuDF's `hash_values(method="xxhash64")`, so CPU and GPU
agree (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md). A dictionary-encoded array is hashed
once per dictionary value and then gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.kernels.intrinsics import load_uint64
from sparsefeed.etl.kernels.threads import over_slices

__all__ = ["Strings", "hash_ints", "hash_strings"]

_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)
_MIN_SLICE = 1 << 16  # strings per thread below which starting a thread costs more than it saves

Strings: TypeAlias = "pa.Array | pa.ChunkedArray | Sequence[str | bytes | None] | NDArray[Any]"


def hash_strings(values: Strings, seed: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Keys of strings: XXH64 of the UTF-8 bytes.

    Args:
        values: n strings: an Arrow array or chunked array (string, large_string, binary, large_binary, or a
            dictionary of one of them; sliced or not), or a list or object array of str, bytes or None.
        seed: the spec's `key_seed`, in [0, 2^64).

    Returns:
        keys: uint64 [n], 0 where not valid.
        valid: bool [n], False for a null or empty string (row 1 of every table).

    Raises:
        IdError: values of another type.
    """
    if isinstance(values, pa.ChunkedArray):
        parts = [hash_strings(chunk, seed) for chunk in values.chunks]
        if len(parts) == 1:
            return parts[0]
        empty_keys, empty_valid = np.empty(0, np.uint64), np.empty(0, np.bool_)
        return np.concatenate([empty_keys, *(k for k, _ in parts)]), np.concatenate(
            [empty_valid, *(v for _, v in parts)]
        )
    array = values if isinstance(values, pa.Array) else _arrow(values)
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _hash_dictionary(array, seed)
    if pa.types.is_null(kind):
        return np.zeros(len(array), np.uint64), np.zeros(len(array), np.bool_)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _hash_buffers(array, np.int32, seed)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _hash_buffers(array, np.int64, seed)
    raise IdError(
        f"ids: got a column of {kind}; allowed: string, large_string, binary, large_binary or a dictionary of them; "
        "cast integers and others to string where the logs are written"
    )


def hash_ints(values: NDArray[np.integer[Any]], seed: int) -> NDArray[np.uint64]:
    """Keys of integers: XXH64 of the eight bytes of each as int64 (uint64 stays as it is), little endian.

    Args:
        values: integers [n] of any width.
        seed: the spec's `key_seed`, in [0, 2^64).

    Returns:
        uint64 [n].

    Raises:
        IdError: values that are not integers.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "iu":
        raise IdError(f"ids: got numbers of {values.dtype}; allowed: integers; cast them before they are hashed")
    wide = np.ascontiguousarray(values.astype(np.uint64 if values.dtype.kind == "u" else np.int64, copy=False))
    keys = np.empty(len(wide), np.uint64)
    _hash_words(wide.view(np.uint64), np.uint64(seed), keys)
    return keys


def _arrow(values: Any) -> pa.Array:
    """Turn a list of str, bytes and None into one binary array; str becomes its UTF-8 bytes."""
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    try:
        return pa.array(plain, pa.large_binary())
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, UnicodeEncodeError) as error:
        raise IdError(
            f"ids: got {type(values).__name__} that is not all strings ({error}); allowed: str, bytes or None"
        ) from error


def _hash_dictionary(array: pa.DictionaryArray, seed: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    dictionary_keys, dictionary_valid = hash_strings(array.dictionary, seed)
    # One more entry, which null codes point to.
    codes = array.indices.cast(pa.int64()).fill_null(len(dictionary_keys)) if array.null_count else array.indices
    positions = codes.to_numpy(zero_copy_only=False)
    return np.append(dictionary_keys, np.uint64(0))[positions], np.append(dictionary_valid, False)[positions]


def _hash_buffers(
    array: pa.Array, offset_type: type[np.signedinteger[Any]], seed: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    num = len(array)
    keys, valid = np.empty(num, np.uint64), np.empty(num, np.bool_)
    if num == 0:
        return keys, valid
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, offset_type)[array.offset : array.offset + num + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    over_slices(
        lambda start, stop: _hash_ranges(data, offsets, np.uint64(seed), start, stop, keys, valid), num, _MIN_SLICE
    )
    if array.null_count:
        valid &= array.is_valid().to_numpy(zero_copy_only=False)
        keys[~valid] = 0
    return keys, valid


@njit(nogil=True, cache=True)
def _rotate(word: np.uint64, bits: int) -> np.uint64:
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@njit(nogil=True, cache=True)
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return np.uint64(_rotate(lane + word * _PRIME_2, 31) * _PRIME_1)


@njit(nogil=True, cache=True)
def _merge(state: np.uint64, lane: np.uint64) -> np.uint64:
    return np.uint64((state ^ _round(np.uint64(0), lane)) * _PRIME_1 + _PRIME_4)


@njit(nogil=True, cache=True)
def _word(state: np.uint64, word: np.uint64) -> np.uint64:
    return np.uint64(_rotate(state ^ _round(np.uint64(0), word), 27) * _PRIME_1 + _PRIME_4)


@njit(nogil=True, cache=True)
def _avalanche(state: np.uint64) -> np.uint64:
    state = (state ^ (state >> np.uint64(33))) * _PRIME_2
    state = (state ^ (state >> np.uint64(29))) * _PRIME_3
    return state ^ (state >> np.uint64(32))


@njit(nogil=True, cache=True)
def _xxh64(data: NDArray[np.uint8], start: int, stop: int, seed: np.uint64) -> np.uint64:
    at = start
    if stop - start >= 32:
        lane_1 = seed + _PRIME_1 + _PRIME_2
        lane_2 = seed + _PRIME_2
        lane_3 = seed
        lane_4 = seed - _PRIME_1
        while at + 32 <= stop:
            lane_1 = _round(lane_1, load_uint64(data, at))
            lane_2 = _round(lane_2, load_uint64(data, at + 8))
            lane_3 = _round(lane_3, load_uint64(data, at + 16))
            lane_4 = _round(lane_4, load_uint64(data, at + 24))
            at += 32
        state = _rotate(lane_1, 1) + _rotate(lane_2, 7) + _rotate(lane_3, 12) + _rotate(lane_4, 18)
        state = _merge(_merge(_merge(_merge(state, lane_1), lane_2), lane_3), lane_4)
    else:
        state = seed + _PRIME_5
    state += np.uint64(stop - start)
    while at + 8 <= stop:
        state = _word(state, load_uint64(data, at))
        at += 8
    if at + 4 <= stop:
        half = np.uint64(0)
        for i in range(4):
            half |= np.uint64(data[at + i]) << np.uint64(8 * i)
        state = _rotate(state ^ (half * _PRIME_1), 23) * _PRIME_2 + _PRIME_3
        at += 4
    while at < stop:
        state = _rotate(state ^ (np.uint64(data[at]) * _PRIME_5), 11) * _PRIME_1
        at += 1
    return np.uint64(_avalanche(state))


@njit(nogil=True, cache=True)
def _hash_ranges(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    seed: np.uint64,
    start: int,
    stop: int,
    keys: NDArray[np.uint64],
    valid: NDArray[np.bool_],
) -> None:
    for i in range(start, stop):
        first, last = np.int64(offsets[i]), np.int64(offsets[i + 1])
        valid[i] = last > first
        keys[i] = _xxh64(data, first, last, seed) if last > first else np.uint64(0)


@njit(nogil=True, cache=True)
def _hash_words(words: NDArray[np.uint64], seed: np.uint64, keys: NDArray[np.uint64]) -> None:
    for i in range(len(words)):
        keys[i] = _avalanche(_word(seed + _PRIME_5 + np.uint64(8), words[i]))
