"""What lies on the device: matrices in the packed layout, rows in bytes, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from ..cache import STORED, KeyValues
from ..errors import DeviceError
from ..qtensor import QuantTensor
from ..weights import Matrix
from .jit import SIMULATED

Array = npt.NDArray[Any]

SPARE_BYTES = 256 << 20
"""Memory of the device that is left to its driver, to graphs and to other programs."""


@dataclass(frozen=True)
class DeviceMatrix:
    """A matrix on the device: words and float16 if packed, else ``floats`` [rows, columns]."""

    rows: int
    columns: int
    codes: Any = None  # uint32 [row blocks, lines, 16]
    scales: Any = None  # float16 [row blocks, groups, 16]
    minimums: Any = None  # float16 [row blocks, groups, 16], or [1, 1, 1] where symmetric
    floats: Any = None  # float32 [rows, columns]


@dataclass(frozen=True)
class DeviceRows:
    """Rows of a buffer in bytes, for weights with groups of one size."""

    high: Any  # int32 [T, columns / 4]
    low: Any  # int32 [T, columns / 4]
    factors: Any  # float32 [T, groups]
    sums: Any  # int32 [T, groups]


def check_memory(needed: int) -> None:
    """Raise :class:`~quant.errors.DeviceError` with numbers unless so many bytes are free."""
    if SIMULATED:
        return
    free, total = cuda.current_context().get_memory_info()
    if needed + SPARE_BYTES > free:
        raise DeviceError(
            f"The GPU has {free / 1e9:.1f} of {total / 1e9:.1f} GB free, and this model needs "
            f"{(needed + SPARE_BYTES) / 1e9:.1f} GB there; take a smaller context, --kv int8, or "
            "keep layers on the processor with --gpu-layers."
        )


def rows_in_bytes(tokens: int, columns: int, group_size: int) -> DeviceRows:
    """Room for rows of ``columns``."""
    words, groups = (tokens, columns // 4), (tokens, columns // group_size)
    return DeviceRows(
        cuda.device_array(words, np.int32),
        cuda.device_array(words, np.int32),
        cuda.device_array(groups, np.float32),
        cuda.device_array(groups, np.int32),
    )


def arrays_of(ring: KeyValues) -> tuple[Array, Array, Array, Array]:
    """Keys, values and their scales, which may be empty."""
    return ring.keys, ring.values, ring.key_scales, ring.value_scales


def kind_of(ring: KeyValues) -> str:
    """The cache's element type, as it is named."""
    return next(kind for kind, dtype in STORED.items() if dtype == ring.values.dtype)


def to_device(matrix: Matrix) -> DeviceMatrix:
    """The twin of a matrix. Its pages are read from the file here, and needed no more after."""
    rows, columns = matrix.shape
    if not isinstance(matrix, QuantTensor):
        return DeviceMatrix(rows, columns, floats=cuda.to_device(matrix))
    blocks, lines, _ = matrix.codes.shape
    minimums = matrix.minimums
    if minimums is None:
        minimums = np.zeros((1, 1, 1), np.float16)
    words = matrix.codes.reshape(blocks, -1).view(np.uint32).reshape(blocks, lines, 16)
    return DeviceMatrix(
        rows,
        columns,
        cuda.to_device(words),
        cuda.to_device(matrix.scales),
        cuda.to_device(minimums),
    )
