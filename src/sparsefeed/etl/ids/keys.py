"""Keys of ids: XXH64 of a string's UTF-8 bytes, computed from Arrow's buffers without a Python object.

The value is that of the `xxhash` library and of cuDF's `hash_values(method="xxhash64")`, so CPU and GPU
agree (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md). A dictionary-encoded array is hashed
once per dictionary value and then gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.xxh64 import xxh64, xxh64_of_word
from sparsefeed.etl.kernels.threads import over_slices

__all__ = [
    "Ints",
    "Strings",
    "arrow_strings",
    "checked_keys",
    "checked_valid",
    "hash_ints",
    "hash_strings",
    "hash_words",
    "over_strings",
    "words_of",
]

_MIN_SLICE = 1 << 16  # strings per thread below which starting a thread costs more than it saves

Strings: TypeAlias = "pa.Array | pa.ChunkedArray | Sequence[str | bytes | None] | NDArray[Any]"
Ints: TypeAlias = "NDArray[np.integer[Any]]"
_Columns: TypeAlias = "tuple[NDArray[Any], ...]"


def hash_strings(values: Strings, seed: int) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Keys of strings: XXH64 of the UTF-8 bytes.

    Args:
        values: n strings: an Arrow array or chunked array (string, large_string, binary, large_binary, or a
            dictionary of one of them; sliced or not), a pandas or polars Series, or a list or object array of str,
            bytes or None.
        seed: the spec's `key_seed`, in [0, 2^64).

    Returns:
        keys: uint64 [n], 0 where not valid.
        valid: bool [n], False for a null or empty string (row 1 of every table).

    Raises:
        IdError: values of another type.
    """

    def of_buffers(data: NDArray[np.uint8], offsets: NDArray[Any]) -> _Columns:
        num = len(offsets) - 1
        keys, valid = np.empty(num, np.uint64), np.empty(num, np.bool_)
        over_slices(
            lambda start, stop: _hash_ranges(data, offsets, np.uint64(seed), start, stop, keys, valid), num, _MIN_SLICE
        )
        return keys, valid

    keys, valid = over_strings(values, of_buffers, (np.uint64(0), np.False_))
    return keys, valid


def hash_bytes(strings: Sequence[bytes], seed: int) -> NDArray[np.uint64]:
    """Keys of a request's few strings, as `hash_strings` gives them, without Arrow, which costs more than the hashes.

    Args:
        strings: [n].
        seed: the spec's `key_seed`, in [0, 2^64).

    Returns:
        uint64 [n]; 0 for an empty string.
    """
    num = len(strings)
    offsets = np.fromiter(accumulate(map(len, strings), initial=0), np.int64, num + 1)
    keys, valid = np.empty(num, np.uint64), np.empty(num, np.bool_)
    _hash_ranges(np.frombuffer(b"".join(strings), np.uint8), offsets, np.uint64(seed), 0, num, keys, valid)
    return keys


def hash_ints(values: Ints, seed: int) -> NDArray[np.uint64]:
    """Keys of integers: XXH64 of the eight bytes of each as int64 (uint64 stays as it is), little endian.

    Args:
        values: integers [n] of any width.
        seed: the spec's `key_seed`, in [0, 2^64).

    Returns:
        uint64 [n].

    Raises:
        IdError: values that are not integers.
    """
    words = words_of(values)
    keys = np.empty(len(words), np.uint64)
    over_slices(
        lambda start, stop: hash_words(words[start:stop], np.uint64(seed), keys[start:stop]), len(words), _MIN_SLICE
    )
    return keys


def checked_keys(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Keys as kernels take them: uint64 [n], contiguous; IdError for what was not hashed or not numpy's."""
    if not isinstance(keys, np.ndarray) or keys.dtype.kind != "u" or keys.dtype.itemsize != 8 or keys.ndim != 1:
        kind = f"{keys.dtype} {list(keys.shape)}" if isinstance(keys, np.ndarray) else type(keys).__name__
        raise IdError(f"ids: keys are {kind}; allowed: a numpy array of uint64 [n], as hash_strings or hash_ints give")
    return np.ascontiguousarray(keys, np.uint64)


def checked_valid(valid: NDArray[np.bool_], num: int) -> NDArray[np.bool_]:
    """Which keys are valid, bool [num]; IdError for anything else."""
    valid = np.asarray(valid)
    if valid.dtype != np.bool_ or valid.shape != (num,):
        raise IdError(f"ids: valid is {valid.dtype} {list(valid.shape)}; allowed: bool [{num}]")
    return valid


def words_of(values: Ints) -> NDArray[np.uint64]:
    """Integers as the 64 bits that are hashed, uint64 [n]; IdError for values that are not integers."""
    values = np.asarray(values)
    if values.dtype.kind not in "iu" or values.ndim != 1:
        raise IdError(
            f"ids: got numbers of {values.dtype} {list(values.shape)}; allowed: integers [n]; "
            "cast them, and leave nulls out, before they are hashed"
        )
    wide = values.astype(np.uint64 if values.dtype.kind == "u" else np.int64, copy=False)
    return np.ascontiguousarray(wide).view(np.uint64)


def over_strings(
    values: Strings, of_buffers: Callable[[NDArray[np.uint8], NDArray[Any]], _Columns], absent: tuple[Any, ...]
) -> _Columns:
    """Compute columns of any layout of strings from plain buffers: chunks one by one, a dictionary's values once.

    Args:
        values: as `hash_strings` takes them.
        of_buffers: of n strings data[offsets[i]:offsets[i + 1]] (uint8; int32 or int64 [n + 1]) gives arrays [n].
        absent: what each array holds for a null.

    Returns:
        Arrays [n] of the dtypes of `absent`.

    Raises:
        IdError: values of another type.
    """
    array = arrow_strings(values)
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    parts: list[_Columns] = []
    dictionary: pa.Array | None = None  # of the chunk before: files and slices share one
    of_values: _Columns = ()
    for chunk in chunks:
        if not pa.types.is_dictionary(chunk.type):
            parts.append(_of_array(chunk, of_buffers, absent))
        elif len(chunk) < len(chunk.dictionary) // 4:
            parts.append(_of_array(chunk.cast(chunk.type.value_type), of_buffers, absent))
        else:
            if dictionary is None or not _is_same(dictionary, chunk.dictionary):
                dictionary, of_values = chunk.dictionary, _of_array(chunk.dictionary, of_buffers, absent)
            # One more entry, which null codes point to.
            codes = chunk.indices.cast(pa.int64()).fill_null(len(dictionary)) if chunk.null_count else chunk.indices
            places = codes.to_numpy(zero_copy_only=False)
            parts.append(
                tuple(np.append(column, value)[places] for column, value in zip(of_values, absent, strict=True))
            )
    if len(parts) == 1:
        return parts[0]
    return tuple(
        np.concatenate([np.empty(0, value.dtype), *columns]) for value, *columns in zip(absent, *parts, strict=True)
    )


def _is_same(a: pa.Array, b: pa.Array) -> bool:
    """Whether two arrays are the same memory."""
    if len(a) != len(b) or a.offset != b.offset or a.type != b.type:
        return False
    return [x and x.address for x in a.buffers()] == [x and x.address for x in b.buffers()]


def _of_array(
    array: pa.Array, of_buffers: Callable[[NDArray[np.uint8], NDArray[Any]], _Columns], absent: tuple[Any, ...]
) -> _Columns:
    if str(array.type) in ("string_view", "binary_view"):  # pyarrow 14, which cuDF 24.02 needs, does not know them
        array = array.cast(pa.large_binary())
    kind = array.type
    if len(array) == 0 or pa.types.is_null(kind):
        return tuple(np.full(len(array), value, value.dtype) for value in absent)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        offset_type: Any = np.int32
    elif pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        offset_type = np.int64
    else:
        raise IdError(
            f"ids: got a column of {kind}; allowed: string, large_string, binary, large_binary or a dictionary of "
            "them; integers that are to be hashed as integers come as a numpy array, those of logs are cast to string "
            "where the logs are written"
        )
    _, offset_buffer, data_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, offset_type)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    if offsets[0] < 0 or offsets[-1] > len(data):  # kernels check no bounds
        raise IdError(
            f"ids: got a column of {kind} whose offsets, {offsets[0]} to {offsets[-1]}, lie outside its {len(data)} "
            "bytes; allowed: valid Arrow arrays; over 2 GiB of text need large_string"
        )
    columns = of_buffers(data, offsets)
    if array.null_count:
        null = array.is_null().to_numpy(zero_copy_only=False)
        for column, value in zip(columns, absent, strict=True):
            column[null] = value
    return columns


def arrow_strings(values: Strings) -> pa.Array | pa.ChunkedArray:
    """Turn what `hash_strings` takes into an Arrow array: binary of lists and object arrays, str as its UTF-8 bytes.

    Raises:
        IdError: values of another type.
    """
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        if hasattr(values, "to_arrow"):  # polars
            return values.to_arrow()
        if hasattr(values, "dtype") and not isinstance(values, np.ndarray):  # pandas
            return pa.array(values, from_pandas=True)
        if isinstance(values, np.ndarray):
            if values.dtype.kind not in "OUS" or values.ndim != 1:
                raise TypeError(f"{values.dtype} {list(values.shape)}")
            values = values.tolist()
        if not isinstance(values, list | tuple):
            raise TypeError(f"one {type(values).__name__}")
        return pa.array(values, pa.large_binary())
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, TypeError, UnicodeEncodeError) as error:
        raise IdError(
            f"ids: got {type(values).__name__} that is not all strings ({error}); allowed: str, bytes or None, in a "
            "list, an object array, an Arrow array or a Series; integers come as a numpy array"
        ) from error


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
        keys[i] = xxh64(data, first, last, seed) if last > first else np.uint64(0)


@njit(nogil=True, cache=True)
def hash_words(words: NDArray[np.uint64], seed: np.uint64, keys: NDArray[np.uint64]) -> None:
    """Write the keys of integers given as their 64 bits."""
    for i in range(len(words)):
        keys[i] = xxh64_of_word(words[i], seed)
