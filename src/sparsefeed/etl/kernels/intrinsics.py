"""Machine operations numba has no word for: unaligned 8-byte loads and stores, and a cache prefetch.

They take (array, index), check no bounds and keep nothing: the caller proves that the bytes are there
(a prefetch may point anywhere). They exist inside compiled functions only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["load_uint64", "prefetch", "store_uint64"]

_Codegen = Callable[[Any, Any, Any, Any], Any]


def _address(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, args[0])
    return builder.gep(array.data, [args[1]])


@intrinsic
def load_uint64(typing_context: Any, array: Any, index: Any) -> tuple[Any, _Codegen]:
    """Load the eight bytes of a uint8 array from `index` on as a little-endian uint64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(_address(context, builder, signature, args), cgutils.intp_t.as_pointer())
        return builder.load(pointer, align=1)

    return types.uint64(array, index), codegen


@intrinsic
def store_uint64(typing_context: Any, array: Any, index: Any, word: Any) -> tuple[Any, _Codegen]:
    """Store a uint64 as the eight bytes of a uint8 array from `index` on, little endian."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.bitcast(_address(context, builder, signature, args), cgutils.intp_t.as_pointer())
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, index, types.uint64), codegen


@intrinsic
def prefetch(typing_context: Any, array: Any, index: Any) -> tuple[Any, _Codegen]:
    """Ask for the cache line of `array[index]` (contiguous, one dimension); wait for nothing."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer_type, word = cgutils.voidptr_t, ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [pointer_type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer_type], function_type)
        pointer = builder.bitcast(_address(context, builder, signature, args), pointer_type)
        read, keep_in_all_levels, data = word(0), word(3), word(1)
        builder.call(function, [pointer, read, keep_in_all_levels, data])
        return context.get_dummy_value()

    return types.void(array, index), codegen
