"""Id lookups in device memory: the keys and rows of the CPU, bit for bit, without a copy through the host.

One thread per id. The arithmetic is that of `xxh64` and `probe.row_of_key`, which numba compiles for the CPU and the
GPU alike; only the launches are written here.

    lookups = DeviceMap.of(id_map)                        # uploads its arrays, once
    rows = lookups.lookup(keys)                           # CuPy, numba, torch: any __cuda_array_interface__
    rows = lookups.encode(DeviceStrings(data, offsets))   # the buffers of a string column

Results are numba device arrays, which `cupy.asarray` and `torch.as_tensor` take as they are. Kernels run on
numba's default stream, which is CuPy's too unless told otherwise, and a call returns before they end.
Written for numba's own CUDA target (to 0.68) and for the `numba-cuda` package. Run on an H100 with the latter
(tests/gpu; docs/howto/gpu.md), compiled to PTX for compute capability 8.0 and 9.0 and run under numba's simulator.
A call takes Python 0.2 to 0.4 ms to launch, however few the ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numba import cuda, njit
from numpy.typing import NDArray

from sparsefeed.errors import IdError
from sparsefeed.etl.ids.device_strings import DeviceArray, DeviceStrings
from sparsefeed.etl.ids.exceptions import Exceptions
from sparsefeed.etl.ids.probe import NULL_ROW, Probe, Tail, row_of_key
from sparsefeed.etl.ids.xxh64 import xxh64, xxh64_of_word
from sparsefeed.etl.kernels.launch import launch

if TYPE_CHECKING:
    from sparsefeed.etl.ids.id_map import IdMap

__all__ = ["DeviceMap", "Listed", "hash_ints", "hash_strings", "key_of_string", "row_told_apart"]

_INTS = tuple(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))


class Listed(NamedTuple):
    """The exceptions of an id map as kernels take them, one entry per string.

    Attributes:
        keys: uint64 [entries], ascending.
        rows: int64 [entries].
        other_rows: int64 [entries]: the tail's row for a string of that key which is not listed.
        offsets: int64 [entries + 1]: where each string begins in `data`.
        data: uint8: UTF-8 bytes.
    """

    keys: NDArray[np.uint64]
    rows: NDArray[np.int64]
    other_rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    data: NDArray[np.uint8]

    @classmethod
    def of(cls, exceptions: Exceptions, tail: Tail) -> Listed:
        """Lay them out, in host memory."""
        entries = [
            (key, string, row) for key, rows in sorted(exceptions.by_key.items()) for string, row in rows.items()
        ]
        return cls(
            np.array([key for key, _, _ in entries], np.uint64),
            np.array([row for _, _, row in entries], np.int64),
            np.array([tail.of_key(key) for key, _, _ in entries], np.int64),
            np.cumsum([0, *(len(string) for _, string, _ in entries)], dtype=np.int64),
            np.frombuffer(b"".join(string for _, string, _ in entries), np.uint8),
        )


@dataclass(frozen=True, eq=False)
class DeviceMap:
    """What the lookups of an id map read, in device memory; as immutable as the map.

    Attributes:
        probe: what a lookup by key reads.
        listed: what a lookup by string reads besides.
    """

    probe: Probe
    listed: Listed

    @classmethod
    def of(cls, id_map: IdMap) -> DeviceMap:
        """Upload function, fingerprints, overlay and exceptions: a little over `id_map.lookup_bytes` bytes."""
        return cls(_uploaded(id_map.probe), _uploaded(Listed.of(id_map.exceptions, id_map.tail)))

    def lookup(
        self, keys: DeviceArray, valid: DeviceArray | None = None, out: DeviceArray | None = None
    ) -> DeviceArray:
        """Rows of keys: int64 [n], as `IdMap.lookup` gives them.

        Args:
            keys: uint64 [n].
            valid: bool [n]; row 1 where not; None: all are.
            out: int64 [n], written and returned; None: a new array.

        Raises:
            IdError: an array that is not on the device, or of another type or length.
        """
        taken = _taken(keys, "keys", ("uint64",))
        given = cuda.device_array(0, np.bool_) if valid is None else _taken(valid, "valid", ("bool",), len(taken))
        rows = _rows_or_new(out, len(taken))
        launch(_rows_of_keys, len(taken), taken, given, self.probe, rows)
        return rows if out is None else out

    def encode(self, ids: DeviceStrings | DeviceArray, out: DeviceArray | None = None) -> DeviceArray:
        """Rows of strings or integers: int64 [n], as `IdMap.encode` gives them.

        Args:
            ids: n strings, or integers [n]; null and empty strings are row 1.
            out: int64 [n], written and returned; None: a new array.

        Raises:
            IdError: an array that is not on the device, or of another type or length.
        """
        read: tuple[Any, ...]
        if isinstance(ids, DeviceStrings):
            kernel, read = _rows_of_strings, (*_buffers(ids), self.probe, self.listed)
        else:
            kernel, read = _rows_of_ints, (_taken(ids, "ids", _INTS), self.probe)
        rows = _rows_or_new(out, len(ids))
        launch(kernel, len(ids), *read, rows)
        return rows if out is None else out


def hash_strings(strings: DeviceStrings, seed: int) -> tuple[DeviceArray, DeviceArray]:
    """Keys of strings, as `keys.hash_strings` gives them: uint64 [n], 0 where not valid, and valid, bool [n].

    Raises:
        IdError: buffers that are not on the device or of another type.
    """
    buffers, num = _buffers(strings), len(strings)
    keys, valid = cuda.device_array(num, np.uint64), cuda.device_array(num, np.bool_)
    launch(_keys_of_strings, num, *buffers, np.uint64(seed), keys, valid)
    return keys, valid


def hash_ints(values: DeviceArray, seed: int) -> DeviceArray:
    """Keys of integers [n], as `keys.hash_ints` gives them: uint64 [n].

    Raises:
        IdError: values that are not on the device or not integers.
    """
    taken = _taken(values, "ids", _INTS)
    keys = cuda.device_array(len(taken), np.uint64)
    launch(_keys_of_ints, len(taken), taken, np.uint64(seed), keys)
    return keys


def _uploaded(value: Any) -> Any:
    """Copy the arrays of a named tuple, and of those in it, to the device."""
    if isinstance(value, tuple):
        return type(value)(*map(_uploaded, value))  # type: ignore[call-arg]
    return cuda.to_device(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _rows_or_new(out: DeviceArray | None, num: int) -> DeviceArray:
    return cuda.device_array(num, np.int64) if out is None else _taken(out, "out", ("int64",), num)


def _buffers(strings: DeviceStrings) -> tuple[DeviceArray, DeviceArray, DeviceArray]:
    mask = strings.mask
    return (
        _taken(strings.data, "data", ("uint8",)),
        _taken(strings.offsets, "offsets", ("int32", "int64")),
        cuda.device_array(0, np.uint8) if mask is None else _taken(mask, "mask", ("uint8",)),
    )


def _taken(array: DeviceArray, name: str, dtypes: tuple[str, ...], length: int | None = None) -> DeviceArray:
    """View an array as numba's, or say what is wrong with it."""
    if not getattr(array, "__cuda_ndarray__", False):  # numba's own have it, the simulator's too
        if not hasattr(array, "__cuda_array_interface__"):
            raise IdError(
                f"ids: {name} is a {type(array).__name__} in host memory; allowed: arrays with "
                "__cuda_array_interface__ (CuPy, numba, torch); copy it to the device, or ask the IdMap itself"
            )
        array = cuda.as_cuda_array(array)
    if array.ndim != 1 or array.dtype.name not in dtypes:
        raise IdError(
            f"ids: {name} is {array.dtype} of shape {tuple(array.shape)}; allowed: one dimension of "
            f"{' or '.join(dtypes)}; cast it on the device"
        )
    if length is not None and len(array) != length:
        raise IdError(f"ids: {name} has {len(array)} entries for {length} ids; give one per id")
    return array


# What one thread does. numba compiles it for the CPU as well, where tests run it over many ids.


@njit(nogil=True)
def key_of_string(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    mask: NDArray[np.uint8],
    i: int,
    seed: np.uint64,
) -> tuple[bool, np.uint64]:
    """Find whether string i is an id, and its key (else 0)."""
    first, last = np.int64(offsets[i]), np.int64(offsets[i + 1])
    is_null = len(mask) > 0 and (mask[i >> 3] >> (i & 7)) & 1 == 0
    if is_null or first == last:
        return False, np.uint64(0)
    return True, xxh64(data, first, last, seed)


@njit(nogil=True)
def row_told_apart(key: np.uint64, row: int, data: NDArray[np.uint8], first: int, last: int, listed: Listed) -> int:
    """Find the row of the string data[first:last] among the exceptions; `row` where its key is not listed."""
    entry, stop = 0, len(listed.keys)
    while entry < stop:  # the first entry that is not below the key
        middle = (entry + stop) // 2
        if listed.keys[middle] < key:
            entry = middle + 1
        else:
            stop = middle
    while entry < len(listed.keys) and listed.keys[entry] == key:
        row = listed.other_rows[entry]
        at, start = first, listed.offsets[entry]
        if listed.offsets[entry + 1] - start == last - first:
            while at < last and data[at] == listed.data[start + at - first]:
                at += 1
            if at == last:
                return int(listed.rows[entry])
        entry += 1
    return row


@cuda.jit
def _keys_of_strings(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    mask: NDArray[np.uint8],
    seed: np.uint64,
    keys: NDArray[np.uint64],
    valid: NDArray[np.bool_],
) -> None:
    i = cuda.grid(1)
    if i < len(keys):
        valid[i], keys[i] = key_of_string(data, offsets, mask, i, seed)


@cuda.jit
def _keys_of_ints(values: NDArray[np.integer[Any]], seed: np.uint64, keys: NDArray[np.uint64]) -> None:
    i = cuda.grid(1)
    if i < len(keys):
        keys[i] = xxh64_of_word(np.uint64(values[i]), seed)


@cuda.jit
def _rows_of_keys(keys: NDArray[np.uint64], valid: NDArray[np.bool_], probe: Probe, rows: NDArray[np.int64]) -> None:
    i = cuda.grid(1)
    if i < len(rows):
        is_null = len(valid) > 0 and not valid[i]
        rows[i] = NULL_ROW if is_null else row_of_key(keys[i], probe)


@cuda.jit
def _rows_of_ints(values: NDArray[np.integer[Any]], probe: Probe, rows: NDArray[np.int64]) -> None:
    i = cuda.grid(1)
    if i < len(rows):
        rows[i] = row_of_key(xxh64_of_word(np.uint64(values[i]), probe.key_seed), probe)


@cuda.jit
def _rows_of_strings(
    data: NDArray[np.uint8],
    offsets: NDArray[np.signedinteger[Any]],
    mask: NDArray[np.uint8],
    probe: Probe,
    listed: Listed,
    rows: NDArray[np.int64],
) -> None:
    i = cuda.grid(1)
    if i < len(rows):
        is_id, key = key_of_string(data, offsets, mask, i, probe.key_seed)
        row = np.int64(NULL_ROW)
        if is_id:
            row = row_of_key(key, probe)
            row = row_told_apart(key, row, data, np.int64(offsets[i]), np.int64(offsets[i + 1]), listed)
        rows[i] = row
