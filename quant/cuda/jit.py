"""Compiling kernels for a GPU, or running them under Numba's simulator.

With the variable ``NUMBA_ENABLE_CUDASIM=1`` Numba runs kernels as plain Python, a thread for each
thread. That is how they are tested where there is no GPU.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from numba import cuda
from numba.core import config

from ..jit import KernelCache, Locator

SIMULATED = bool(config.ENABLE_CUDASIM)

THREADS = 32 if SIMULATED else 256
"""Threads of a block, where a kernel takes any number: the simulator has to start each."""

TENSOR_CORES = (8, 0)
"""The compute capability from which on tensor cores multiply bytes in the shape that is used."""

if SIMULATED:
    from .simulated import dp4a, load2, load4, mma, to_whole
else:
    from numba.cuda.dispatcher import CUDACache, CUDACacheImpl

    from .intrinsics import dp4a, load2, load4, mma, to_whole

    class _CacheFiles(CUDACacheImpl):
        _locator_classes: ClassVar = [Locator]

    class _Store(CUDACache):
        _impl_class = _CacheFiles


__all__ = [
    "SIMULATED",
    "THREADS",
    "device",
    "dp4a",
    "has_tensor_cores",
    "kernel",
    "load2",
    "load4",
    "mma",
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
    compiled._cache = KernelCache(function, _Store)
    return compiled


def device(function):
    """``function`` as a part of kernels."""
    return cuda.jit(function, device=True)


def has_tensor_cores() -> bool:
    """Whether the GPU that will be used multiplies bytes on tensor cores."""
    return SIMULATED or bool(cuda.get_current_device().compute_capability >= TENSOR_CORES)
