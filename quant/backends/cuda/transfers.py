"""A few bytes to the device and back, without what Numba's arrays ask each time.

A token needs its id and its position there, and one id back: at a thousand tokens a second every
tenth of a millisecond counts.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

from ...errors import DeviceError
from .jit import SIMULATED

Array = npt.NDArray[Any]


def upload(source: Array, twin: Any, rows: int, stream: Any) -> None:
    """The first ``rows`` of a C-contiguous array to its twin; ``source`` may change afterwards."""
    if SIMULATED:
        twin[:rows].copy_to_device(source[:rows], stream=stream)
        return
    from cuda.bindings import driver  # there only beside numba-cuda

    size = rows * source.strides[0]
    checked(driver.cuMemcpyHtoDAsync(_address(twin), source.ctypes.data, size, int(stream)))


def download(twin: Any, target: Array, rows: int, stream: Any) -> None:
    """The first ``rows`` of a twin to its C-contiguous array, and wait for them."""
    if SIMULATED:
        twin[:rows].copy_to_host(target[:rows], stream=stream)
        return
    from cuda.bindings import driver

    size = rows * target.strides[0]
    checked(driver.cuMemcpyDtoHAsync(target.ctypes.data, _address(twin), size, int(stream)))
    checked(driver.cuStreamSynchronize(int(stream)))


def checked(result: tuple[Any, ...]) -> Any:
    """What a call of the driver gave; raises :class:`~quant.errors.DeviceError` if it refused."""
    status, *values = result
    if int(status) != 0:
        raise DeviceError(f"The GPU's driver refused: {status!s}.")
    return values[0] if values else None


def _address(twin: Any) -> int:
    return int(twin.device_ctypes_pointer.value)
