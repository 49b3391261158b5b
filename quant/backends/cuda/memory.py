"""What lies on the device: matrices in the packed layout, rows in bytes, and whether they fit."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from ...cache import LANES, STORED, KeyValues
from ...errors import DeviceError
from ...qtensor import QuantTensor
from ...weights import Matrix
from .jit import SIMULATED
from .transfers import download, upload

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

    @property
    def packed(self) -> tuple[Any, Any, Any]:
        """Codes, scales and minimums, in the order in which kernels take them."""
        return self.codes, self.scales, self.minimums

    @property
    def flat(self) -> tuple[Any, Any, Any]:
        """The same in one dimension."""
        return self.codes.ravel(), self.scales.ravel(), self.minimums.ravel()


@dataclass(frozen=True)
class DeviceRows:
    """Rows of a buffer in bytes, for weights with groups of one size."""

    high: Any  # int32 [T, columns / 4]
    low: Any  # int32 [T, columns / 4]
    factors: Any  # float32 [T, groups]
    sums: Any  # int32 [T, groups]

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """All four, in the order in which kernels take them."""
        return self.high, self.low, self.factors, self.sums


def check_memory(needed: int) -> None:
    """Raise :class:`~quant.errors.DeviceError` with numbers unless so many bytes are free."""
    if SIMULATED:
        return
    context = cuda.current_context()
    free, total = context.get_memory_info()
    if needed + SPARE_BYTES > free:
        # What a session before this one had may wait to be freed.
        gc.collect()
        context.deallocations.clear()
        free, total = context.get_memory_info()
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


class DeviceMemory:
    """Twins on the device of a session's buffers, rings and weights.

    First all is noted (``keep``, ``note``, ``need_bytes``), then made by :meth:`allocate`, then
    found by the identity of the host's array. ``shared`` holds the matrices, which all sessions of
    a model have in common. T is ``tokens``, the longest chunk.
    """

    def __init__(self, tokens: int, shared: dict[int, DeviceMatrix]) -> None:
        self._tokens = tokens
        self._shared = shared
        self._matrices: dict[int, Matrix] = {}
        self._host: dict[int, Array] = {}
        self._twins: dict[int, Any] = {}
        self._columns: dict[tuple[int, int], int] = {}
        self._rows: dict[tuple[int, int], DeviceRows] = {}
        self._rings: list[KeyValues] = []

    def keep(self, *arrays: Array) -> None:
        """Note buffers that need a twin. Halves of the cache are kept as float16."""
        for array in arrays:
            if array.size:
                halves = array.dtype == np.uint16
                self._host[id(array)] = array.view(np.float16) if halves else array

    def keep_ring(self, ring: KeyValues) -> None:
        """Note a ring, which :meth:`read_back` and :meth:`take_up` copy."""
        self.keep(*arrays_of(ring))
        self._rings.append(ring)

    def note(self, matrix: Matrix) -> None:
        """Note a matrix."""
        self._matrices[id(matrix)] = matrix

    def need_bytes(self, buffer: Array, columns: int, group_size: int) -> None:
        """Note that rows of ``buffer`` will be turned into bytes in groups of a size."""
        key = id(buffer), group_size
        self._columns[key] = max(columns, self._columns.get(key, 0))

    def needed_bytes(self) -> int:
        """Bytes that :meth:`allocate` takes, beside what is there already."""
        weights = sum(
            matrix.nbytes for key, matrix in self._matrices.items() if key not in self._shared
        )
        buffers = sum(array.nbytes for array in self._host.values())
        rows = sum(
            2 * self._tokens * columns + 8 * self._tokens * columns // group_size
            for (_, group_size), columns in self._columns.items()
        )
        return weights + buffers + rows

    def allocate(self) -> None:
        """Make room for all that was noted, and copy it."""
        self._no_scales = cuda.to_device(np.zeros((1, 1), np.float32))
        for key, array in self._host.items():
            self._twins[key] = cuda.to_device(array)
        for (buffer, size), columns in self._columns.items():
            self._rows[buffer, size] = rows_in_bytes(self._tokens, columns, size)
        for matrix in self._matrices.values():
            self.matrix(matrix)

    def on(self, array: Array) -> Any:
        """The twin of a buffer."""
        return self._twins[id(array)]

    def rows(self, buffer: Array, group_size: int) -> DeviceRows:
        """Rows of a buffer as bytes."""
        return self._rows[id(buffer), group_size]

    def parts(self, slots: KeyValues) -> tuple[Any, ...]:
        """Keys, values and their scales."""
        return tuple(
            self.on(array) if array.size else self._no_scales for array in arrays_of(slots)
        )

    def parts_of_each(self, ring: KeyValues) -> list[tuple[Any, ...]]:
        """Keys, values and their scales of each sequence."""
        if ring.values.ndim == 3:
            return [self.parts(ring)]
        arrays = arrays_of(ring)
        return [
            tuple(self.on(each)[number] if each.size else self._no_scales for each in arrays)
            for number in range(len(ring.values))
        ]

    def copy(self, source: int, target: int, slots: int, stream: Any) -> None:
        """Copy the first ``slots`` slots of one sequence's rings to another's, on the device."""
        for ring in self._rings:
            blocks = slots // LANES, slots, slots, slots
            for array, count in zip(arrays_of(ring), blocks, strict=True):
                if not array.size:
                    continue
                twin = self.on(array)
                # A head's slots lie side by side.
                for head in range(twin.shape[1]):
                    twin[target, head, :count].copy_to_device(
                        twin[source, head, :count], stream=stream
                    )

    def matrix(self, matrix: Matrix) -> DeviceMatrix:
        """The twin of a matrix."""
        if id(matrix) not in self._shared:
            self._shared[id(matrix)] = to_device(matrix)
        return self._shared[id(matrix)]

    def to_device(self, array: Array, rows: int, stream: Any) -> None:
        """Copy the first ``rows`` of a buffer to its twin."""
        upload(array, self.on(array), rows, stream)

    def to_host(self, array: Array, rows: int, stream: Any) -> None:
        """Copy the first ``rows`` of a buffer back from its twin, and wait for them."""
        download(self.on(array), array, rows, stream)

    def read_back(self) -> None:
        """Copy the rings to the host's cache."""
        for array in self._ring_arrays():
            self.on(array).copy_to_host(self._host[id(array)])

    def take_up(self) -> None:
        """Copy the host's cache to the rings."""
        for array in self._ring_arrays():
            self.on(array).copy_to_device(self._host[id(array)])

    def _ring_arrays(self) -> list[Array]:
        return [array for ring in self._rings for array in arrays_of(ring) if array.size]
