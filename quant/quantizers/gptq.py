"""GPTQ: rounding one column after the other, and mending those to come for the error made.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (arXiv 2210.17323). What counts is not the error of the weights W but that of the
outputs, ``|(W - Q) X|``, whose second derivative is the Hessian H = X X^T of the layer's inputs.
When column j is rounded and leaves the error e, the columns to come are changed by
``-e * H^-1[j, k] / H^-1[j, j]``, which takes back as much of it as they can.
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
"""Columns whose errors are handed on within a block at once, and to the rest by one product."""

DAMPENING = 0.01
"""Share of the mean of H's diagonal that is added to it, so that H can be inverted."""

LARGEST_DOUBLE = 8192
"""Inputs up to which the Hessian is inverted in float64."""

_TRIES = 6


def inverse_factor(hessian: Floats, dampening: float = DAMPENING) -> Floats:
    """The upper triangular U with ``U.T @ U`` the inverse of the dampened Hessian.

    ``hessian`` is float32 [n, n]. Inputs that are always zero get a diagonal of one. Where the
    result is not positive definite, ten times the dampening is tried, up to six times. Raises
    :class:`~quant.errors.SpecError` where that does not help either.

    With J the reversal of the order, ``J H J = M M.T`` (Cholesky) gives ``H = V V.T`` with the
    upper triangular ``V = J M J``, and ``H^-1 = (V^-1).T V^-1``.
    """
    # Half the memory for the largest, which the dampening keeps well conditioned.
    whole: npt.NDArray[Any] = hessian.astype(
        np.float64 if len(hessian) <= LARGEST_DOUBLE else np.float32
    )
    diagonal = np.einsum("ii->i", whole)
    diagonal[diagonal <= 0] = 1.0
    mean = float(diagonal.mean())
    added = 0.0
    for attempt in range(_TRIES):
        wanted = dampening * mean * 10.0**attempt
        diagonal += wanted - added
        added = wanted
        try:
            reversed_factor = np.linalg.cholesky(whole[::-1, ::-1])
        except np.linalg.LinAlgError:
            continue
        if not np.isfinite(reversed_factor).all():
            continue
        upper = np.ascontiguousarray(reversed_factor[::-1, ::-1])
        return np.triu(np.linalg.inv(upper)).astype(np.float32)
    raise SpecError("The calibration text is too short: its Hessian cannot be inverted.")


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
        """Prepare ``hessian`` float32 [n, n].

        ``by_energy`` rounds columns with much energy first, while many are left to take up their
        errors. Raises :class:`~quant.errors.SpecError` as :func:`inverse_factor`.
        """
        energies = np.ascontiguousarray(np.diagonal(hessian))
        order = np.arange(len(energies))
        if by_energy:
            order = np.argsort(-energies, kind="stable")
        return cls(energies, order, inverse_factor(hessian[np.ix_(order, order)], dampening))


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
    by_energy, factor = inputs.order, inputs.factor
    groups = by_energy // spec.group_size
    left = np.ascontiguousarray(weights[:, by_energy])
    codes = np.empty((rows, columns), np.uint8)
    errors = np.empty((rows, BLOCK), np.float32)
    for first in range(0, columns, BLOCK):
        last = min(first + BLOCK, columns)

        def part(those: slice, first: int = first, last: int = last) -> None:
            kernels.compensate(
                left[those],
                first,
                last,
                groups,
                np.float32(levels_of(spec)),
                np.float32(spec.zero),
                grids.scales[those],
                grids.minimums[those],
                factor,
                codes[those],
                errors[those],
            )

        in_parts(rows, part)
        left[:, last:] -= errors[:, : last - first] @ factor[first:last, last:]
    ordered = np.empty_like(codes)
    ordered[:, by_energy] = codes
    return grids.pack(ordered)
