"""Whether there is a GPU to compute on, without importing what one needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from ..errors import DeviceError

CAPABILITY = (6, 1)
"""The compute capability from which on there are dot products of bytes."""

DRIVER = (12, 0)
"""The CUDA version that a driver has to know: that of the compiler's code."""

COPIES = 20
"""Copies that are timed together: starting one from Python takes as long as the copy."""


@dataclass(frozen=True)
class Device:
    """A GPU: bytes of memory, the driver's CUDA version, multiprocessors, compute capability."""

    name: str
    memory_bytes: int
    free_bytes: int
    driver: str
    multiprocessors: int
    capability: str


def missing() -> str | None:
    """What is missing for the ``cuda`` backend, as one sentence; None if nothing is."""
    if find_spec("numba_cuda") is None:
        return (
            "The compiler for GPUs is not installed; install it with: "
            "pip install 'mistral-chat[cuda]'."
        )
    from numba import cuda
    from numba.core import config

    if not cuda.is_available():
        return (
            "No NVIDIA GPU was found, or its driver does not work; see nvidia-smi, or use "
            "--device cpu."
        )
    return None if config.ENABLE_CUDASIM else _too_old(cuda)


def _too_old(cuda: Any) -> str | None:
    """What is too old for the kernels, as one sentence; None if nothing is."""
    capability = tuple(cuda.get_current_device().compute_capability)
    if capability < CAPABILITY:
        return (
            f"The GPU's compute capability is {_dotted(capability)}, and {_dotted(CAPABILITY)} is "
            "needed; use --device cpu."
        )
    version = tuple(cuda.cudadrv.driver.driver.get_version())
    if version < DRIVER:
        return (
            f"The GPU's driver is for CUDA {_dotted(version)}, and {_dotted(DRIVER)} is needed; "
            "install a newer driver, or use --device cpu."
        )
    return None


def _dotted(numbers: Sequence[int]) -> str:
    return ".".join(map(str, numbers))


def check_device() -> None:
    """Raise :class:`~quant.errors.DeviceError` unless there is a GPU to compute on."""
    sentence = missing()
    if sentence is not None:
        raise DeviceError(sentence)


def chosen(device: str) -> str:
    """The backend for a device: itself, or for ``auto`` the GPU where there is one.

    >>> chosen("cpu")
    'cpu'
    """
    if device == "auto":
        return "cpu" if missing() is not None else "cuda"
    return device


def copy_bandwidth(size: int = 1 << 30) -> float:
    """GB/s at which the GPU copies ``size`` bytes of its memory, read and written; median of nine.

    Raises :class:`~quant.errors.DeviceError` where there is none.
    """
    check_device()
    from numba import cuda

    source = cuda.to_device(np.zeros(size // 4, np.float32))
    target = cuda.device_array(size // 4, np.float32)
    target.copy_to_device(source)
    seconds = []
    for _ in range(9):
        cuda.synchronize()
        start = time.perf_counter()
        for _ in range(COPIES):
            target.copy_to_device(source)
        cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * COPIES * size / 1e9 / statistics.median(seconds)


def describe() -> Device:
    """The GPU that will be used; raises :class:`~quant.errors.DeviceError` where there is none."""
    check_device()
    from numba import cuda
    from numba.core import config

    if config.ENABLE_CUDASIM:
        return Device("Numba's simulator", 0, 0, "none", 0, "none")
    device: Any = cuda.get_current_device()
    free, total = cuda.current_context().get_memory_info()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    version = _dotted(cuda.cudadrv.driver.driver.get_version())
    capability = _dotted(device.compute_capability)
    return Device(name, total, free, version, int(device.MULTIPROCESSOR_COUNT), capability)
