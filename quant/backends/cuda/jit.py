"""Compiling kernels for a GPU, or running them under Numba's simulator.

With the variable ``NUMBA_ENABLE_CUDASIM=1`` Numba runs kernels as plain Python, a thread for each
thread. That is how they are tested where there is no GPU.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from numba import cuda
from numba.core import config

from ...kernels.jit import source_stamp
from ...kernels.kernel_cache import KernelCache, Locator

SIMULATED = bool(config.ENABLE_CUDASIM)

WARP = 32

THREADS = WARP if SIMULATED else 256
"""Threads of a block, where a kernel takes any number: the simulator has to start each."""

TENSOR_CORES = (8, 0)
"""The compute capability from which on tensor cores multiply bytes in the shape that is used."""

if SIMULATED:
    from .simulated import (
        dp4a,
        exchange,
        load2,
        load4,
        mma,
        read4,
        to_whole,
    )
else:
    import numba_cuda
    from numba.cuda.core import config as cuda_config
    from numba.cuda.dispatcher import CUDACache, CUDACacheImpl

    from .intrinsics import (
        dp4a,
        exchange,
        load2,
        load4,
        mma,
        read4,
        to_whole,
    )

    class _CacheFiles(CUDACacheImpl):
        _locator_classes: ClassVar = [Locator]

    class _Store(CUDACache):
        _impl_class = _CacheFiles

        def _index_key(self, signature, codegen):
            """As Numba's, but for the closure: what is pickled of intrinsics differs each time."""
            made_of = ingredients(self._py_func)
            return signature, codegen.magic_tuple(), numba_cuda.__version__, made_of

    # A grid of few blocks is no news to the person: one token is little work.
    cuda_config.CUDA_LOW_OCCUPANCY_WARNINGS = 0


__all__ = [
    "SIMULATED",
    "THREADS",
    "WARP",
    "device",
    "dp4a",
    "exchange",
    "has_tensor_cores",
    "kernel",
    "load2",
    "load4",
    "mma",
    "read4",
    "to_whole",
]


def kernel(function=None, launch_bounds=None):
    """``function`` as a kernel that is launched: ``function[blocks, threads, stream](...)``.

    It is compiled at its first launch, and kept on disk beside the processor's kernels.
    ``launch_bounds`` are the most threads of a block and how many blocks a multiprocessor should
    hold at least, which decides how many registers a thread gets.
    """
    if function is None:
        return partial(kernel, launch_bounds=launch_bounds)
    if SIMULATED:
        return cuda.jit(function)
    compiled = cuda.jit(function, launch_bounds=launch_bounds)
    compiled._cache = KernelCache(function, source_stamp, _Store)
    return compiled


def device(function):
    """``function`` as a part of kernels."""
    return cuda.jit(function, device=True)


def ingredients(function):
    """What a kernel was made of: its place in the source, and the values of its closure.

    >>> def make(bits):
    ...     def kernel():
    ...         return bits
    ...     return kernel
    >>> ingredients(make(4)) == ingredients(make(4)), ingredients(make(4)) == ingredients(make(8))
    (True, False)
    """
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    inner = tuple(ingredients(each.py_func) if hasattr(each, "py_func") else each for each in cells)
    return function.__code__.co_name, function.__code__.co_firstlineno, inner


def has_tensor_cores() -> bool:
    """Whether the GPU that will be used multiplies bytes on tensor cores."""
    return SIMULATED or bool(cuda.get_current_device().compute_capability >= TENSOR_CORES)
