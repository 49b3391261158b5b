"""Float weights to packed ones, and the error that leaves."""

from __future__ import annotations

import numpy as np

from ..qtensor import Floats, QuantSpec, QuantTensor
from .grids import searched_grids, spanning_grids


def round_to_nearest(weights: Floats, spec: QuantSpec) -> QuantTensor:
    """Round each weight to the nearest of its group's evenly spaced values.

    ``weights`` is float32 [rows, columns]. Asymmetric groups span their smallest to largest value.
    Symmetric groups of 8 bits span plus and minus their largest magnitude in 127 steps; of 4 bits,
    where one level more matters, the extreme takes the longer side of the grid (8 steps), and what
    lies beyond the shorter side (7 steps) is clipped to it, as in GGML's Q4_0. Scales are rounded
    to float16 first and the codes found for those.

    Raises :class:`~quant.errors.SpecError` if the group does not divide the columns or a weight is
    not a finite number that float16 scales can express.

    Example: -1, 0 and 2 in 4 asymmetric bits: scale 0.2, minimum -1, codes 0, 5 and 15.
    """
    return spanning_grids(weights, spec).encode(weights)[0]


def relative_error(weights: Floats, quantized: QuantTensor) -> float:
    """``|weights - dequantized| / |weights|`` as Frobenius norms; 0 for all-zero weights."""
    error, size = squared_norms(weights, quantized)
    return float(np.sqrt(error / size)) if size else 0.0


def squared_norms(weights: Floats, quantized: QuantTensor) -> tuple[float, float]:
    """``|weights - dequantized| ** 2`` and ``|weights| ** 2``, which add up over rows."""
    difference = np.subtract(weights, quantized.dequantize()).reshape(-1)
    flat = weights.reshape(-1)
    return float(np.dot(difference, difference)), float(np.dot(flat, flat))


def round_searched(weights: Floats, spec: QuantSpec, energies: Floats | None = None) -> QuantTensor:
    """Round to the nearest on searched grids (see :func:`~quant.quantizers.grids.searched_grids`).

    Raises :class:`~quant.errors.SpecError` as :func:`round_to_nearest`.
    """
    return searched_grids(weights, spec, energies).encode(weights)[0]
