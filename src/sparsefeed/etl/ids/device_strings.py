"""A string column in device memory, as Arrow lays it out, and what counts as lying there.

Apart from `device`, so that a program without a GPU asks without importing CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from sparsefeed.errors import IdError

__all__ = ["DeviceArray", "DeviceStrings", "is_on_device"]

DeviceArray: TypeAlias = Any  # CuPy, numba, torch: whatever has __cuda_array_interface__


@dataclass(frozen=True, eq=False)
class DeviceStrings:
    """n strings; nothing is copied. The caller proves that the offsets lie in `data`: kernels check no bounds.

    Attributes:
        data: uint8: UTF-8 bytes.
        offsets: int32 or int64 [n + 1]: string i is data[offsets[i]:offsets[i + 1]].
        mask: uint8 [at least n / 8]: bit i (the lowest of a byte first) is 0 where string i is null; None: none is.
    """

    data: DeviceArray
    offsets: DeviceArray
    mask: DeviceArray | None = None

    def __len__(self) -> int:
        return int(self.offsets.shape[0]) - 1

    @classmethod
    def upload(cls, array: pa.Array) -> DeviceStrings:
        """Copy an Arrow array (string, large_string, binary, large_binary; sliced or not) to the device.

        Raises:
            IdError: an array of another type.
        """
        from numba import cuda

        kind = array.type
        if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
            offset_type: type[np.signedinteger[Any]] = np.int64
        elif pa.types.is_string(kind) or pa.types.is_binary(kind):
            offset_type = np.int32
        else:
            raise IdError(
                f"ids: got a column of {kind}; allowed: string, large_string, binary or large_binary; "
                "cast it before it is uploaded"
            )
        _, offset_buffer, data_buffer = array.buffers()
        # An array without strings may have no buffers at all.
        offsets = np.frombuffer(offset_buffer or bytes(8), offset_type)[array.offset : array.offset + len(array) + 1]
        data = np.frombuffer(data_buffer or b"", np.uint8)
        first, last = int(offsets[0]), int(offsets[-1])
        mask = None
        if array.null_count:
            valid = array.is_valid().to_numpy(zero_copy_only=False)
            mask = cuda.to_device(np.packbits(valid, bitorder="little"))
        begins = offsets - offset_type(first) if first else offsets  # a copy takes as long as the upload
        return cls(cuda.to_device(data[first:last]), cuda.to_device(begins), mask)


def is_on_device(values: Any) -> bool:
    """Whether ids lie in device memory."""
    # Of the type: a cuDF column of strings has the attribute too, and raises when it is read. The other is numba's.
    if not any(hasattr(type(values), name) for name in ("__cuda_array_interface__", "__cuda_ndarray__")):
        return isinstance(values, DeviceStrings)
    return bool(getattr(values, "is_cuda", True))  # torch's tensors have the attribute wherever they lie
