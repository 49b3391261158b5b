"""What happens to one token's row between the products: norms, rotation, gates, bytes."""

from __future__ import annotations

import math

import numpy as np

from .jit import kernel
from .simd import (
    LANES,
    absolute,
    fma,
    half_to_float,
    load,
    max_lanes,
    maximum,
    minimum,
    power_of_two,
    shift_left,
    shift_right,
    splat,
    store,
    store_words,
    sum_lanes,
    to_f32,
    to_i32,
)

HIGH_LIMIT = 127
"""Largest whole number of an activation in one plane."""

EXACT_LIMIT = 127 * 128
"""Largest whole number of an activation in two planes, ``128 * high + low``."""


@kernel
def exp(x):
    """``e ** x`` of a vector, to 3e-7 of its value, for ``x`` held between -87 and 88.

    So it is never 0 or infinite: at the ends 1.6e-38 and 1.7e38.

    ``x = n * ln 2 + f`` with ``|f| <= ln(2) / 2``: a power of two times the Taylor series of ``f``.
    """
    x = minimum(maximum(x, splat(np.float32(-87.0))), splat(np.float32(88.0)))
    n = to_i32(x * splat(np.float32(1.4426950408889634)))
    whole = to_f32(n)
    # ln 2 in two parts, the first with few digits, so that the difference is exact.
    f = fma(whole, splat(np.float32(-0.693359375)), x)
    f = fma(whole, splat(np.float32(2.12194440e-4)), f)
    p = splat(np.float32(1.0 / 5040))
    p = fma(p, f, splat(np.float32(1.0 / 720)))
    p = fma(p, f, splat(np.float32(1.0 / 120)))
    p = fma(p, f, splat(np.float32(1.0 / 24)))
    p = fma(p, f, splat(np.float32(1.0 / 6)))
    p = fma(p, f, splat(np.float32(0.5)))
    p = fma(p, f, splat(np.float32(1.0)))
    p = fma(p, f, splat(np.float32(1.0)))
    return p * power_of_two(n)


@kernel
def norm_row(x, delta, weight, epsilon, x_at, delta_at, columns, output, output_at):
    """RMSNorm: ``output = x / sqrt(mean(x ** 2) + epsilon) * weight``, after ``x += delta``.

    ``delta`` (the branch that the residual stream still has to take up) may be empty.
    """
    if delta.size > 0:
        for k in range(0, columns, LANES):
            store(x, x_at + k, load(x, x_at + k) + load(delta, delta_at + k))
    squares = splat(np.float32(0))
    for k in range(0, columns, LANES):
        part = load(x, x_at + k)
        squares = fma(part, part, squares)
    mean = sum_lanes(squares) / np.float32(columns)
    scale = splat(np.float32(1.0) / np.float32(math.sqrt(mean + epsilon)))
    for k in range(0, columns, LANES):
        store(output, output_at + k, load(x, x_at + k) * scale * load(weight, k))


@kernel
def silu_mul_row(gate, up, at, columns, output, output_at):
    """SwiGLU's gate: ``output = gate / (1 + exp(-gate)) * up``."""
    one = splat(np.float32(1.0))
    zero = splat(np.float32(0.0))
    for k in range(0, columns, LANES):
        g = load(gate, at + k)
        store(output, output_at + k, g / (one + exp(zero - g)) * load(up, at + k))


@kernel
def quantize_row(
    x, x_at, columns, begin, end, group_size, planes, token, tile, high, low, scales, sums, totals
):  # fmt: skip
    """A row of float32 into bytes: one or two planes, and for each group its scale and sums.

    Of its ``columns`` those from ``begin`` to ``end``, which are whole groups.

    With two planes ``x ~ scale * (128 * high + low)``, ``high`` in -127..127, ``low`` in -64..63.
    ``sums`` is the sum of the whole numbers, ``totals`` that sum times the scale.

    Tokens lie in tiles of ``tile``, as the products read them: four columns of the first token,
    the same four of the second, ..., then the next four columns; and one group's scales (sums,
    totals) of all tokens side by side.

    Example: for a group whose largest magnitude is 1.0, two planes have scale 1/16256; 0.5 is
    the whole number 8128 = 128 * 63 + 64, stored as high 64, low -64.
    """
    groups = columns // group_size
    limit = np.float32(EXACT_LIMIT if planes == 2 else HIGH_LIMIT)
    half = splat(np.int32(64))
    lane = token % tile
    start = x_at + begin
    to = (token - lane) * columns + 4 * lane + begin * tile
    at = (token - lane) * groups + lane + begin // group_size * tile
    for _ in range(begin // group_size, end // group_size):
        largest = splat(np.float32(0))
        for k in range(start, start + group_size, LANES):
            largest = maximum(absolute(load(x, k)), largest)
        scale = max_lanes(largest) / limit
        inverse = np.float32(0.0)
        if scale > np.float32(1e-30):
            inverse = np.float32(1.0) / scale
        total = splat(np.int32(0))
        for k in range(start, start + group_size, LANES):
            whole = to_i32(load(x, k) * splat(inverse))
            total = total + whole
            if planes == 2:
                upper = shift_right(whole + half, np.int32(7))
                store_words(high, to, 4 * tile, upper)
                store_words(low, to, 4 * tile, whole - shift_left(upper, np.int32(7)))
            else:
                store_words(high, to, 4 * tile, whole)
            to += LANES * tile
        scales[at] = scale
        sums[at] = sum_lanes(total)
        totals[at] = scale * np.float32(sums[at])
        start += group_size
        at += tile


@kernel
def rope_angles(position, frequencies, cosines, sines, at):
    """Cosine and sine of ``position * frequency``, the angle in float64."""
    for i in range(frequencies.size):
        angle = position * frequencies[i]
        cosines[at + i] = math.cos(angle)
        sines[at + i] = math.sin(angle)


@kernel
def rotate_head(x, at, half, cosines, sines, angle_at, scale):
    """RoPE in half-split order, in place: pairs are ``(x[i], x[i + half])``; then ``* scale``."""
    for i in range(half):
        a = x[at + i]
        b = x[at + i + half]
        c = cosines[angle_at + i]
        s = sines[angle_at + i]
        x[at + i] = (a * c - b * s) * scale
        x[at + i + half] = (b * c + a * s) * scale


@kernel
def embed_row_int4(codes, scales, minimums, columns, group_size, row, output, output_at):
    """Dequantize one row of a packed int4 matrix."""
    block, lane = row // 16, row % 16
    groups = columns // group_size
    for k in range(columns):
        byte = codes[(block * (columns // 8) + k // 8) * 64 + lane * 4 + k % 4]
        code = np.float32(byte >> 4 if k % 8 >= 4 else byte & 15)
        at = (block * groups + k // group_size) * 16 + lane
        output[output_at + k] = _value(code, np.float32(8), scales, minimums, at)


@kernel
def embed_row_int8(codes, scales, minimums, columns, group_size, row, output, output_at):
    """Dequantize one row of a packed int8 matrix."""
    block, lane = row // 16, row % 16
    groups = columns // group_size
    for k in range(columns):
        code = np.float32(codes[(block * (columns // 4) + k // 4) * 64 + lane * 4 + k % 4])
        at = (block * groups + k // group_size) * 16 + lane
        output[output_at + k] = _value(code, np.float32(128), scales, minimums, at)


@kernel
def _value(code, zero, scales, minimums, at):
    scale = half_to_float(scales, at)
    if minimums.size > 0:
        return code * scale + half_to_float(minimums, at)
    return (code - zero) * scale
