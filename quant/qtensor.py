"""Packed weights: the one layout, on disk and in memory, for every instruction set.

Rows are taken 16 at a time (a *row block*; missing rows are zero). Along the columns a block is a
run of 64-byte *lines*::

    int4: a line holds 16 rows x 8 columns          int8: a line holds 16 rows x 4 columns

      byte   0    1    2    3    4  ...  63           byte   0    1    2    3    4  ...  63
      row    0    0    0    0    1  ...  15           row    0    0    0    0    1  ...  15
      low    k   k+1  k+2  k+3   k  ... k+3           code   k   k+1  k+2  k+3   k  ... k+3
      high  k+4  k+5  k+6  k+7  k+4 ... k+7

so one instruction multiplies four columns of 16 rows with four activations. Codes are unsigned: 0
to 15, or 0 to 255. Each row has for each group of columns a float16 scale, and with asymmetric
weights a float16 minimum, 16 rows side by side::

    symmetric     weight = (code - 8) * scale     (int4)      (code - 128) * scale  (int8)
    asymmetric    weight = code * scale + minimum
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import SpecError

ROW_BLOCK = 16
LINE = 64

HALF_MAX = 65504.0
"""The largest number that float16 holds."""

Codes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class QuantSpec:
    """How weights are quantized: bits (4 or 8), columns a group (32, 64, 128), symmetric or not."""

    bits: int = 4
    group_size: int = 64
    symmetric: bool = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise SpecError(f"Weights can have 4 or 8 bits, not {self.bits!r}.")
        if type(self.group_size) is not int or self.group_size not in (32, 64, 128):
            raise SpecError(f"A group can have 32, 64 or 128 columns, not {self.group_size!r}.")
        if type(self.symmetric) is not bool:
            raise SpecError(f"Weights are symmetric or not; {self.symmetric!r} says neither.")

    @property
    def zero(self) -> int:
        """The code that stands for 0.0: 8 or 128 when symmetric; 0 where minimums are added."""
        return (1 << (self.bits - 1)) if self.symmetric else 0

    @property
    def line_columns(self) -> int:
        """Columns of a 64-byte line: 8 for int4, 4 for int8."""
        return 32 // self.bits

    @property
    def bits_per_weight(self) -> float:
        """Bits a weight takes, scales and minimums included.

        They are 4.5 for Q4_0's 4 bits and groups of 32.
        """
        return self.bits + (16 if self.symmetric else 32) / self.group_size


@dataclass(frozen=True)
class QuantTensor:
    """A matrix of ``rows x columns`` packed weights.

    ``codes`` is uint8 [row blocks, lines, 64]; ``scales`` and ``minimums`` (``None`` when
    symmetric) are float16 [row blocks, groups, 16]. Kernels are given their addresses and trust
    these shapes, so :class:`~quant.errors.SpecError` is raised for any other.
    """

    spec: QuantSpec
    rows: int
    columns: int
    codes: Codes
    scales: Halves
    minimums: Halves | None

    def __post_init__(self) -> None:
        check_columns(self.columns, self.spec)
        codes, scales = packed_shapes(self.rows, self.columns, self.spec)
        _check_array("codes", self.codes, codes, np.uint8)
        _check_array("scales", self.scales, scales, np.float16)
        if self.spec.symmetric != (self.minimums is None):
            raise SpecError("Minimums belong to asymmetric weights, and to those alone.")
        if self.minimums is not None:
            _check_array("minimums", self.minimums, scales, np.float16)

    @property
    def shape(self) -> tuple[int, int]:
        return (self.rows, self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and minimums."""
        return (
            self.codes.nbytes
            + self.scales.nbytes
            + (self.minimums.nbytes if self.minimums is not None else 0)
        )

    def unpack(self) -> Codes:
        """The codes as uint8 [rows, columns]."""
        return unpack_codes(self.codes, self.spec.bits)[: self.rows]

    def dequantize(self) -> Floats:
        """The weights as float32 [rows, columns]."""
        codes = self.unpack().astype(np.float32)
        scales = self._rows_of(self.scales)
        if self.minimums is None:
            return (codes - np.float32(self.spec.zero)) * scales
        return codes * scales + self._rows_of(self.minimums)

    def _rows_of(self, halves: Halves) -> Floats:
        by_row = halves.transpose(0, 2, 1).reshape(-1, halves.shape[1])[: self.rows]
        return np.repeat(by_row.astype(np.float32), self.spec.group_size, axis=1)


def pack(codes: Codes, scales: Halves, minimums: Halves | None, spec: QuantSpec) -> QuantTensor:
    """Pack codes uint8 [rows, columns] with scales and minimums float16 [rows, groups].

    Raises :class:`~quant.errors.SpecError` if the group does not divide the columns, a code has too
    many bits, or minimums are there for a symmetric spec (or missing for an asymmetric one).

    >>> import numpy as np
    >>> spec = QuantSpec(bits=4, group_size=32, symmetric=True)
    >>> codes = np.arange(32, dtype=np.uint8).reshape(1, 32) % 16
    >>> pack(codes, np.ones((1, 1), np.float16), None, spec).codes[0, 0, :4].tolist()
    [64, 81, 98, 115]
    """
    rows, columns = codes.shape
    check_columns(columns, spec)
    if codes.size and int(codes.max()) >> spec.bits:
        raise SpecError(f"A code of {int(codes.max())} does not fit into {spec.bits} bits.")
    return QuantTensor(
        spec,
        rows,
        columns,
        _pack_codes(codes, spec),
        _pack_rows(scales),
        None if minimums is None else _pack_rows(minimums),
    )


def _check_array(
    part: str, array: npt.NDArray[Any], shape: tuple[int, ...], dtype: npt.DTypeLike
) -> None:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise SpecError(
            f"The {part} of a packed matrix are {array.dtype} {array.shape}, not {shape}."
        )


def check_columns(columns: int, spec: QuantSpec) -> None:
    """Raise :class:`~quant.errors.SpecError` unless whole groups fill the columns."""
    if columns % spec.group_size:
        raise SpecError(f"Groups of {spec.group_size} do not divide {columns} columns.")


def packed_shapes(
    rows: int, columns: int, spec: QuantSpec
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of ``codes`` and of ``scales`` for a matrix of ``rows x columns``."""
    blocks = -(-rows // ROW_BLOCK)
    return (
        (blocks, columns // spec.line_columns, LINE),
        (blocks, columns // spec.group_size, ROW_BLOCK),
    )


def _blocks(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[rows, n] to [row blocks, 16, n], with zero rows at the end."""
    rows, n = values.shape
    missing = -rows % ROW_BLOCK
    if missing:
        values = np.concatenate([values, np.zeros((missing, n), values.dtype)])
    return values.reshape(-1, ROW_BLOCK, n)


def _pack_rows(values: Halves) -> Halves:
    return np.ascontiguousarray(_blocks(np.asarray(values, np.float16)).transpose(0, 2, 1))


def _pack_codes(codes: Codes, spec: QuantSpec) -> Codes:
    blocks = _blocks(codes)
    lines = codes.shape[1] // spec.line_columns
    if spec.bits == 8:
        parts = blocks.reshape(-1, ROW_BLOCK, lines, 4)
    else:
        halves = blocks.reshape(-1, ROW_BLOCK, lines, 2, 4)
        parts = halves[:, :, :, 0] | (halves[:, :, :, 1] << 4)
    return np.ascontiguousarray(parts.transpose(0, 2, 1, 3)).reshape(-1, lines, LINE)


def unpack_codes(packed: Codes, bits: int) -> Codes:
    """Lines uint8 [row blocks, lines, 64] to codes uint8 [16 * row blocks, columns]."""
    blocks, lines, _ = packed.shape
    parts = packed.reshape(blocks, lines, ROW_BLOCK, 4).transpose(0, 2, 1, 3)
    if bits == 4:
        parts = np.stack([parts & 15, parts >> 4], axis=3)
    return parts.reshape(blocks * ROW_BLOCK, -1)
