"""Float weights to packed ones, and the error that leaves."""

from __future__ import annotations

import numpy as np

from .errors import SpecError
from .qtensor import Floats, QuantSpec, QuantTensor, check_columns, pack


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
    rows, columns = weights.shape
    check_columns(columns, spec)
    if not np.isfinite(weights).all():
        raise SpecError("The weights hold infinities or NaN and cannot be quantized.")
    groups = weights.reshape(rows, -1, spec.group_size)
    levels = (1 << spec.bits) - 1
    if spec.symmetric:
        extreme = np.take_along_axis(groups, np.abs(groups).argmax(2)[..., None], 2)[..., 0]
        scales = _halves(extreme / (-8.0 if spec.bits == 4 else 127.0))
        minimums = None
        offsets: Floats | float = float(spec.zero)
        base: Floats | float = 0.0
    else:
        low = groups.min(2)
        minimums = _halves(low)
        scales = _halves((groups.max(2) - minimums.astype(np.float32)) / levels)
        offsets = 0.0
        base = minimums.astype(np.float32)[..., None]
    steps = scales.astype(np.float32)[..., None]
    inverse = np.divide(1.0, steps, out=np.zeros_like(steps), where=steps != 0)
    codes = np.clip(np.rint((groups - base) * inverse + offsets), 0, levels).astype(np.uint8)
    return pack(codes.reshape(rows, columns), scales, minimums, spec)


def relative_error(weights: Floats, quantized: QuantTensor) -> float:
    """``|weights - dequantized| / |weights|`` as Frobenius norms; 0 for all-zero weights."""
    error, size = squared_norms(weights, quantized)
    return float(np.sqrt(error / size)) if size else 0.0


def squared_norms(weights: Floats, quantized: QuantTensor) -> tuple[float, float]:
    """``|weights - dequantized| ** 2`` and ``|weights| ** 2``, which add up over rows."""
    difference = np.subtract(weights, quantized.dequantize()).reshape(-1)
    flat = weights.reshape(-1)
    return float(np.dot(difference, difference)), float(np.dot(flat, flat))


def _halves(values: Floats) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    if values.size and float(np.abs(values).max()) > float(np.finfo(np.float16).max):
        raise SpecError("The weights are too large for float16 scales.")
    return values.astype(np.float16)
