"""Whether there is a GPU to compute on, without importing what one needs."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

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


def describe() -> Device:
    """The GPU that will be used; raises :class:`~quant.errors.DeviceError` where there is none."""
    check_device()
    from numba import cuda

    device: Any = cuda.get_current_device()
    free, total = cuda.current_context().get_memory_info()
    version = cuda.runtime.get_version()
    name = device.name.decode() if isinstance(device.name, bytes) else str(device.name)
    return Device(
        name,
        total,
        free,
        ".".join(map(str, version)),
        int(device.MULTIPROCESSOR_COUNT),
        ".".join(map(str, device.compute_capability)),
    )
