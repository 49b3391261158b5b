"""Compiling kernels for a GPU, or running them under Numba's simulator; dot products of bytes.

With the variable ``NUMBA_ENABLE_CUDASIM=1`` Numba runs kernels as plain Python, a thread for each
thread. That is how they are tested where there is no GPU.
"""

from __future__ import annotations

from typing import ClassVar

from numba import cuda
from numba.core import config

from ..jit import KernelCache, Locator

SIMULATED = bool(config.ENABLE_CUDASIM)

THREADS = 32 if SIMULATED else 256
"""Threads of a block, where a kernel takes any number: the simulator has to start each."""


def kernel(function):
    """``function`` as a kernel that is launched: ``function[blocks, threads, stream](...)``.

    It is compiled at its first launch, and kept on disk beside the processor's kernels.
    """
    compiled = cuda.jit(function)
    if not SIMULATED:
        compiled._cache = KernelCache(function, _Store)
    return compiled


def device(function):
    """``function`` as a part of kernels."""
    return cuda.jit(function, device=True)


if SIMULATED:

    def dp4a(codes, values, total):
        """``total`` + the sum of four products: unsigned bytes of ``codes``, signed of ``values``.

        Both are 32-bit words. On a GPU this is one instruction.
        """
        result = int(total)
        for shift in (0, 8, 16, 24):
            code = (int(codes) >> shift) & 255
            value = (int(values) >> shift) & 255
            result += code * (value - 256 if value > 127 else value)
        return result

else:
    from llvmlite import ir
    from numba.core import types
    from numba.cuda.dispatcher import CUDACache, CUDACacheImpl
    from numba.cuda.extending import intrinsic

    class _CacheFiles(CUDACacheImpl):
        _locator_classes: ClassVar = [Locator]

    class _Store(CUDACache):
        _impl_class = _CacheFiles

    @intrinsic
    def dp4a(_typing, codes, values, total):
        """``total`` + the sum of four products: unsigned bytes of ``codes``, signed of ``values``.

        Both are 32-bit words (PTX ISA, dp4a.u32.s32).
        """
        signature = types.int32(types.uint32, types.int32, types.int32)

        def generate(_context, builder, _signature, arguments):
            word = ir.IntType(32)
            kind = ir.FunctionType(word, [word] * 3)
            code = ir.InlineAsm(kind, "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", side_effect=False)
            return builder.call(code, arguments)

        return signature, generate
