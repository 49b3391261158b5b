"""Matrix products of packed weights and activations in bytes.

Everything is flat: ``codes`` holds the lines of :class:`~quant.qtensor.QuantTensor`, ``scales`` and
``minimums`` its float16 numbers as uint16, 16 for each row block and group. An activation is
``scale * (128 * high + low)`` (*exact*, two planes of int8) or ``scale * high`` (*fast*, one
plane), with one scale and one sum of its whole numbers for each group::

    y[r] = sum over groups of  x_scale * scale[r] * (sum(code * x) - zero * sum(x))
                             + x_scale * minimum[r] * sum(x)

where ``zero`` is 8 or 128 for symmetric weights and 0 with minimums. The sum over a group is whole
numbers and exact; groups are added in order, so the number of threads cannot change a result.

A *tile* is a row block of 16 by some tokens whose sums stay in registers: each line of weights is
loaded and cut into codes once for all of them. So as many tokens as a tile holds cost one reading
of the weights, in one long run for each thread. There are kernels for some widths, and a pass takes
the one that costs least (:func:`width_for`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .dot import code_offset
from .jit import instruction_set, kernel
from .simd import LANES, LINE, fma, load, splat, sum_lanes
from .tiles import (
    add_outer_tile,
    add_tiles,
    dot_tile_int4,
    dot_tile_int8,
    fold_tile,
    high_nibbles_each,
    join_planes,
    load_lines,
    load_scales,
    low_nibbles_each,
    prefetch_lines,
    start_tile,
    store_tile,
    zeros_f32,
    zeros_i32,
)

AHEAD = 4096
"""Bytes that weights are asked for in advance where they are read once."""

MANY_REGISTERS = instruction_set() == "avx512vnni"

CHAINS = 10
"""Sums that must be under way at once to keep the processor busy: latency times throughput."""

# Tokens of tiles, in two planes and in one: as many as the registers hold, and some fewer.
EXACT_WIDTHS: tuple[int, ...] = (1, 2, 3)
FAST_WIDTHS: tuple[int, ...] = (2, 4)
if MANY_REGISTERS:
    EXACT_WIDTHS, FAST_WIDTHS = (1, 2, 3, 4, 6), (4, 6, 12)


@kernel
def rows_of(width):
    """Row blocks of a tile: two, so that a word serves twice, where registers are many."""
    return 2 if width > 1 and MANY_REGISTERS else 1


def _tile(bits: int, planes: int, rows: int, tokens: int) -> Any:
    """The kernel of tiles of ``rows`` row blocks of weights of ``bits`` by ``tokens`` tokens."""
    size = rows * tokens
    word = 4 * tokens  # bytes from four columns of a tile's tokens to the next four
    four_bits = bits == 4
    two_planes = planes == 2
    dot_tile = dot_tile_int4 if four_bits else dot_tile_int8
    stretch = LINE if four_bits else 2 * LINE  # bytes of eight columns
    offset = code_offset(bits)
    # Where sums are few, each half of the eight columns has sums of its own.
    halves = planes * size < CHAINS

    @kernel
    def tile(
        codes, ahead, step, scales, minimums, zero, columns, group_size, block, last,
        high, low, x_scales, x_sums, x_totals, token, output, output_stride,
    ):  # fmt: skip
        """Row blocks ``block`` to ``block + last`` times ``tokens`` tokens from ``token`` on.

        With every eight columns codes at ``ahead`` are asked for, each time ``step`` bytes further.
        """
        groups = columns // group_size
        stride = columns // 8 * stretch
        line = block * stride
        x = token * columns
        at = token * groups
        sums = zeros_f32(size)
        for group in range(groups):
            totals = start_tile(x_sums, at, 1, np.int32(offset - zero), rows, tokens)
            if two_planes:
                highs = zeros_i32(size)
            if halves:
                others = zeros_i32(size)
                if two_planes:
                    high_others = zeros_i32(size)
            for _ in range(group_size // 8):
                prefetch_lines(codes, ahead, stride, rows)
                first = load_lines(codes, line, stride, last, rows)
                if four_bits:
                    second = high_nibbles_each(first)
                    first = low_nibbles_each(first)
                else:
                    prefetch_lines(codes, ahead + (step >> 1), stride, rows)
                    second = load_lines(codes, line + LINE, stride, last, rows)
                if two_planes:
                    highs = dot_tile(highs, first, high, x, 4)
                    totals = dot_tile(totals, first, low, x, 4)
                    if halves:
                        high_others = dot_tile(high_others, second, high, x + word, 4)
                        others = dot_tile(others, second, low, x + word, 4)
                    else:
                        highs = dot_tile(highs, second, high, x + word, 4)
                        totals = dot_tile(totals, second, low, x + word, 4)
                else:
                    totals = dot_tile(totals, first, high, x, 4)
                    if halves:
                        others = dot_tile(others, second, high, x + word, 4)
                    else:
                        totals = dot_tile(totals, second, high, x + word, 4)
                line += stretch
                ahead += step
                x += 2 * word
            if halves:
                totals = add_tiles(totals, others)
                if two_planes:
                    highs = add_tiles(highs, high_others)
            if two_planes:
                totals = join_planes(highs, totals)
            scale_at = (block * groups + group) * LANES
            weights = load_scales(scales, scale_at, groups * LANES, last, rows)
            sums = fold_tile(sums, totals, weights, x_scales, at, 1)
            if minimums.size > 0:
                weights = load_scales(minimums, scale_at, groups * LANES, last, rows)
                sums = add_outer_tile(sums, weights, x_totals, at, 1)
            at += tokens
        start = token * output_stride + block * LANES
        store_tile(output, start, LANES, output_stride, sums, weights)

    return tile


def _of_widths(bits: int, planes: int, widths: tuple[int, ...]) -> Any:
    """A kernel that takes one of the widths and a tile's arguments, and does the tile."""
    width, *wider = widths
    tile = _tile(bits, planes, rows_of.py_func(width), width)
    others = _of_widths(bits, planes, tuple(wider)) if wider else None

    # Written out: a tuple of arguments would take a tenth longer to compile.
    @kernel
    def choice(
        this, codes, ahead, step, scales, minimums, zero, columns, group_size, block, last,
        high, low, x_scales, x_sums, x_totals, token, output, output_stride,
    ):  # fmt: skip
        if others is None or this == width:
            tile(
                codes, ahead, step, scales, minimums, zero, columns, group_size, block, last,
                high, low, x_scales, x_sums, x_totals, token, output, output_stride,
            )  # fmt: skip
        else:
            others(
                this, codes, ahead, step, scales, minimums, zero, columns, group_size, block, last,
                high, low, x_scales, x_sums, x_totals, token, output, output_stride,
            )  # fmt: skip

    return choice


exact_int4 = _of_widths(4, 2, EXACT_WIDTHS)
exact_int8 = _of_widths(8, 2, EXACT_WIDTHS)
fast_int4 = _of_widths(4, 1, FAST_WIDTHS)
fast_int8 = _of_widths(8, 1, FAST_WIDTHS)


def _width_rule(widths: tuple[int, ...], planes: int) -> Any:
    @kernel
    def width_of(tokens):
        best, least = widths[0], 1 << 60
        for width in widths:
            # For eight columns: what a line of weights costs beside 2 products a token and plane.
            cost = (tokens + width - 1) // width * (12 // planes + 5 * width)
            if cost <= least:
                best, least = width, cost
        return best

    return width_of


_exact_width = _width_rule(EXACT_WIDTHS, 2)
_fast_width = _width_rule(FAST_WIDTHS, 1)


@kernel
def width_for(tokens, planes):
    """The width of the tiles that ``tokens`` tokens are cut into, the one that costs least.

    Of AVX-512's widths in two planes 5 tokens are one tile of 6, 9 three of 3, 16 four of 4. A
    single token is in two planes always.
    """
    if tokens == 1:
        return 1
    return _exact_width(tokens) if planes == 2 else _fast_width(tokens)


@kernel
def float_row(weights, columns, row, x, x_stride, tokens, output, output_stride):
    """One row of a float32 matrix times ``tokens`` rows of float32 activations."""
    whole = columns // LANES * LANES
    for token in range(tokens):
        total = splat(np.float32(0))
        for k in range(0, whole, LANES):
            total = fma(load(weights, row * columns + k), load(x, token * x_stride + k), total)
        result = sum_lanes(total)
        for k in range(whole, columns):
            result += weights[row * columns + k] * x[token * x_stride + k]
        output[token * output_stride + row] = result
