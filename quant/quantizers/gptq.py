"""GPTQ: rounding one column after the other, and mending those to come for the error made.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv 2210.17323). What counts is not the error of the weights W but that of the
outputs, ``|(W - Q) X|``, whose second derivative is the Hessian H = X X^T of the layer's inputs.

The paper mends the columns to come by means of the inverse of H. The same codes come from H's own
Cholesky factor: with ``H = R.T R``, R upper triangular, ``|(W - Q) X|`` is ``|(W - Q) R.T|``, whose
last term is column n's error alone, the one before it has columns n-1 and n, and so on. So from the
last column to the first, each is rounded where its term would vanish::

    target[j] = W[j] + sum of (W[k] - Q[k]) * R[j, k] / R[j, j] over the k > j that are rounded

which is Babai's nearest plane algorithm (Chen et al., "The Geometry of LLM Quantization: GPTQ as
Babai's Nearest Plane Algorithm", arXiv 2507.18553). No inverse is made, and one matrix of H's size
is all it takes. For example, with whole numbers as codes, the weights (0.4, 0.4) and inputs that
are nearly equal (H = [[1, 0.9], [0.9, 1]], R = [[1, 0.9], [0, 0.44]]): the second becomes 0 and
leaves 0.4, which moves the target of the first to 0.4 + 0.4 * 0.9 = 0.76, and it becomes 1.
Rounding alone gives (0, 0), and outputs of 0 where 0.8 is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import SpecError
from ..qtensor import Floats, QuantSpec, QuantTensor
from .grids import in_parts, levels_of, searched_grids, spanning_grids

BLOCK = 128
"""Columns rounded, or factored, between two products of matrices."""

DAMPENING = 0.01
"""Share of the mean of H's diagonal that is added to it, so that H can be factored."""

LARGEST_DOUBLE = 8192
"""Inputs up to which the Hessian is factored in float64; above, in half the memory."""

_TRIES = 6


def mending_factor(hessian: Floats, dampening: float = DAMPENING) -> npt.NDArray[Any]:
    """``R[j, k] / R[j, j]`` of the dampened Hessian ``R.T R``, transposed: [k, j] for k > j.

    ``hessian`` float32 or float64 [n, n] is overwritten and returned; above the diagonal it has no
    meaning. Inputs that are always zero get a diagonal of one. Where the matrix is not positive
    definite, ten times the dampening is tried, up to six times. Raises
    :class:`~quant.errors.SpecError` where that does not help either.
    """
    diagonal = np.diagonal(hessian).copy()
    diagonal[diagonal <= 0] = 1.0
    mean = float(diagonal.mean())
    for attempt in range(_TRIES):
        if attempt:
            _mirror(hessian)
        np.fill_diagonal(hessian, diagonal + dampening * mean * 10.0**attempt)
        if _factored(hessian):
            # The factor's columns are the rows of R; each is divided by its diagonal.
            for start in range(0, len(hessian), BLOCK):
                columns = slice(start, start + BLOCK)
                hessian[start:, columns] /= np.diagonal(hessian)[columns]
            return hessian
    raise SpecError("The calibration text is too short: its Hessian cannot be factored.")


def _mirror(matrix: npt.NDArray[Any]) -> None:
    """Copy what is above the diagonal to below it."""
    for start in range(0, len(matrix), BLOCK):
        rows = slice(start, start + BLOCK)
        own = np.triu(matrix[rows, rows])
        matrix[rows, rows] = own + np.triu(own, 1).T
        matrix[start + BLOCK :, rows] = matrix[rows, start + BLOCK :].T


def _factored(matrix: npt.NDArray[Any]) -> bool:
    """Cholesky's factor in place, at and below the diagonal; False where there is none.

    By blocks of columns: from each, the products of what stands left of it are taken away, then
    its own block is factored and the rows below are solved. What is above stays as it was.
    """
    for start in range(0, len(matrix), BLOCK):
        columns = slice(start, start + BLOCK)
        if start:
            # Some rows at a time, since the product is a matrix of its own.
            for row in range(start, len(matrix), 16 * BLOCK):
                rows = slice(row, row + 16 * BLOCK)
                product = matrix[rows, :start] @ matrix[columns, :start].T
                if row == start:
                    above = np.triu_indices(len(matrix[columns]), 1)
                    product[: len(matrix[columns])][above] = 0
                matrix[rows, columns] -= product
        own = np.tril(matrix[columns, columns])
        try:
            own = np.linalg.cholesky(own + np.tril(own, -1).T)
        except np.linalg.LinAlgError:
            return False
        if not np.isfinite(own).all():
            return False
        inverse = np.linalg.inv(own.astype(np.float64)).astype(matrix.dtype)
        lower = np.tril_indices(len(own))
        matrix[columns, columns][lower] = own[lower]
        below = matrix[start + BLOCK :, columns]
        below[:] = below @ inverse.T
    return True


def permuted(matrix: npt.NDArray[Any], order: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """``matrix[order][:, order]``, in place: a copy would double the memory."""
    left = np.ones(len(order), bool)
    for first in range(len(order)):
        if not left[first]:
            continue
        kept, place = matrix[first].copy(), first
        while left[place]:
            left[place] = False
            source = order[place]
            matrix[place] = kept if source == first else matrix[source]
            place = source
    for start in range(0, len(order), BLOCK):
        matrix[start : start + BLOCK] = matrix[start : start + BLOCK, order]
    return matrix


@dataclass(frozen=True)
class InputMoments:
    """What GPTQ makes of a Hessian, once for all matrices with the same inputs.

    ``energies`` float32 [n] are the Hessian's diagonal; ``order`` int64 [n] the order in which
    columns are rounded; ``factor`` float32 [n, n] the inverse factor in that order.
    """

    energies: Floats
    order: npt.NDArray[np.int64]
    factor: Floats

    @classmethod
    def of(cls, hessian: Floats, *, by_energy: bool = True, dampening: float = DAMPENING) -> Self:
        """Prepare ``hessian`` float32 [n, n], which is used up.

        ``by_energy`` rounds columns with much energy first, while many are left to take up their
        errors. Raises :class:`~quant.errors.SpecError` as :func:`mending_factor`.
        """
        energies = np.diagonal(hessian).copy()
        order = np.arange(len(energies))[::-1]
        if by_energy:
            order = np.argsort(-energies, kind="stable")[::-1]
        ordered = permuted(hessian, order)
        if len(order) > LARGEST_DOUBLE:
            return cls(energies, order, mending_factor(ordered, dampening))
        factor = mending_factor(ordered.astype(np.float64), dampening)
        return cls(energies, order, factor.astype(np.float32))


def quantize_gptq(
    weights: Floats, spec: QuantSpec, inputs: InputMoments, *, search: bool = True
) -> QuantTensor:
    """Quantize weights float32 [rows, columns] for ``inputs`` of that many columns.

    Grids are fixed for each group before anything is mended: spanning ones, or with ``search`` the
    best for the inputs' energies; so the packed layout is that of any other method. Raises
    :class:`~quant.errors.SpecError` as :func:`spanning_grids`.
    """
    from ..kernels import quantize as kernels  # compiled kernels take long to import

    rows, columns = weights.shape
    if search:
        mean = max(float(inputs.energies.mean()), 1e-30)
        grids = searched_grids(weights, spec, inputs.energies / np.float32(mean))
    else:
        grids = spanning_grids(weights, spec)
    order, factor = inputs.order, inputs.factor
    groups = order // spec.group_size
    # Weights become the errors of their rounding, W - Q, from the last block to the first.
    errors = np.ascontiguousarray(weights[:, order])
    codes = np.empty((rows, columns), np.uint8)
    for first in reversed(range(0, columns, BLOCK)):
        last = min(first + BLOCK, columns)
        targets = errors[:, first:last].copy()
        targets += errors[:, last:] @ factor[last:, first:last]

        def part(
            those: slice, first: int = first, last: int = last, targets: Floats = targets
        ) -> None:
            kernels.round_mended(
                targets[those],
                errors[those],
                first,
                last,
                groups,
                np.float32(levels_of(spec)),
                np.float32(spec.zero),
                grids.scales[those],
                grids.minimums[those],
                factor,
                codes[those],
            )

        in_parts(rows, part)
    ordered = np.empty_like(codes)
    ordered[:, order] = codes
    return grids.pack(ordered)
