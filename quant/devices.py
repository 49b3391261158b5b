"""Whether there is a GPU to compute on, without importing what one needs."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from .errors import DeviceError


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

    if not cuda.is_available():
        return (
            "No NVIDIA GPU was found, or its driver does not work; see nvidia-smi, or use "
            "--device cpu."
        )
    return None


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
        target.copy_to_device(source)
        cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * size / 1e9 / statistics.median(seconds)


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
    version = ".".join(map(str, cuda.runtime.get_version()))
    capability = ".".join(map(str, device.compute_capability))
    return Device(name, total, free, version, int(device.MULTIPROCESSOR_COUNT), capability)
