"""A grid for each group of a row's weights, and the codes on it: what every method ends in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..errors import SpecError
from ..qtensor import Codes, Floats, QuantSpec, QuantTensor, check_columns, pack

SEARCH_STEPS = 16
"""Sizes of a grid that the search tries, from its whole span to half of it."""

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Grids:
    """Scales and minimums float32 [rows, groups], each a number that float16 holds."""

    spec: QuantSpec
    scales: Floats
    minimums: Floats  # zeros where symmetric

    def pack(self, codes: Codes) -> QuantTensor:
        """Codes uint8 [rows, columns] on these grids as a packed tensor."""
        minimums = None if self.spec.symmetric else self.minimums.astype(np.float16)
        return pack(codes, self.scales.astype(np.float16), minimums, self.spec)

    def encode(self, weights: Floats) -> tuple[QuantTensor, float, float]:
        """Weights float32 [rows, columns] rounded to the grids.

        Also the sums ``|weights - dequantized| ** 2`` and ``|weights| ** 2``, which add up over
        rows.
        """
        from ..kernels import quantize as kernels  # compiled kernels take long to import

        codes = np.empty(weights.shape, np.uint8)
        squares = np.zeros((len(weights), 2))

        def part(rows: slice) -> None:
            kernels.encode(
                weights[rows],
                self.spec.group_size,
                np.float32(levels_of(self.spec)),
                np.float32(self.spec.zero),
                self.scales[rows],
                self.minimums[rows],
                codes[rows],
                squares[rows],
            )

        in_parts(len(weights), part)
        error, size = squares.sum(0)
        return self.pack(codes), float(error), float(size)


def levels_of(spec: QuantSpec) -> int:
    """The highest code: 15 or 255."""
    return (1 << spec.bits) - 1


def spanning_grids(weights: Floats, spec: QuantSpec) -> Grids:
    """Grids from each group's smallest to its largest weight; see ``round_to_nearest``.

    Raises :class:`~quant.errors.SpecError` if groups do not divide the columns or a weight is not a
    finite number that float16 grids can express.
    """
    from ..kernels import quantize as kernels  # compiled kernels take long to import

    rows, columns = weights.shape
    check_columns(columns, spec)
    if weights.size and float(np.abs(weights).max()) > float(np.finfo(np.float16).max):
        raise SpecError("The weights are infinite or too large for float16 scales.")
    scales, minimums = np.zeros((2, rows, columns // spec.group_size), np.float32)
    finite: list[bool] = []

    def part(rows: slice) -> None:
        finite.append(
            kernels.round_grids(
                weights[rows],
                spec.group_size,
                np.int64(levels_of(spec)),
                spec.symmetric,
                scales[rows],
                minimums[rows],
            )
        )

    in_parts(rows, part)
    if not all(finite):
        raise SpecError("The weights hold infinities or NaN and cannot be quantized.")
    return Grids(spec, scales, minimums)


def searched_grids(weights: Floats, spec: QuantSpec, energies: Floats | None = None) -> Grids:
    """Grids with a smaller squared error, weighed by ``energies`` float32 [columns].

    From each spanning grid, ``SEARCH_STEPS`` smaller ones are tried and fitted to their codes by
    least squares; the best is kept. ``energies`` are the mean squares of the inputs that each
    column multiplies; without them all columns count the same. Raises as :func:`spanning_grids`.
    """
    from ..kernels import quantize as kernels  # compiled kernels take long to import

    grids = spanning_grids(weights, spec)
    if energies is None:
        energies = np.ones(weights.shape[1], np.float32)

    def part(rows: slice) -> None:
        kernels.search_grids(
            weights[rows],
            energies,
            spec.group_size,
            np.float32(levels_of(spec)),
            np.float32(spec.zero),
            SEARCH_STEPS,
            grids.scales[rows],
            grids.minimums[rows],
        )

    in_parts(len(weights), part)
    return grids


def in_parts(rows: int, work: Callable[[slice], None]) -> None:
    """Call ``work`` for slices of ``rows``, on all processors; kernels hold no lock."""
    slices = [slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE)]
    if len(slices) < 2:
        for part in slices:
            work(part)
        return
    with ThreadPoolExecutor() as pool:
        list(pool.map(work, slices))
