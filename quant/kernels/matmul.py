"""Matrix products of packed weights and activations in bytes.

Everything is flat: ``codes`` holds the lines of :class:`~quant.qtensor.QuantTensor`, ``scales`` and
``minimums`` its float16 numbers as uint16, 16 for each row block and group. An activation is
``scale * (128 * high + low)`` (*exact*, two planes of int8) or ``scale * high`` (*fast*, one
plane), with one scale and one sum of its whole numbers for each group::

    y[r] = sum over groups of  x_scale * scale[r] * (sum(code * x) - zero * sum(x))
                             + x_scale * minimum[r] * sum(x)

where ``zero`` is 8 or 128 for symmetric weights and 0 with minimums. The sum over a group is whole
numbers and exact; groups are added in order, so the number of threads cannot change a result.

A *tile* is ``rows`` row blocks of 16 by ``tokens`` tokens whose sums stay in registers: each line
of weights is loaded once for all the tokens, each activation word once for all the row blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .dot import code_offset
from .jit import instruction_set, kernel
from .simd import LANES, LINE, fma, load, splat, sum_lanes
from .tiles import (
    add_outer_tile,
    dot_tile_int4,
    dot_tile_int8,
    fold_tile,
    high_nibbles_each,
    join_planes,
    load_lines,
    load_scales,
    low_nibbles_each,
    prefetch,
    start_tile,
    store_tile,
    zeros_f32,
    zeros_i32,
)

DECODE_ROWS = 1
"""Row blocks of a single token's tile. It waits for memory, which is read best in one long run."""

AHEAD = 4096
"""Bytes that a single token's weights are asked for in advance."""

# Row blocks and tokens of a prompt's tiles, in two planes and in one: what the registers hold.
if instruction_set() == "avx512vnni":
    (EXACT_ROWS, EXACT_TOKENS), (FAST_ROWS, FAST_TOKENS) = (2, 4), (2, 6)
else:
    (EXACT_ROWS, EXACT_TOKENS), (FAST_ROWS, FAST_TOKENS) = (1, 2), (1, 4)


def _tile(bits: int, planes: int, row_blocks: int, tokens: int) -> Any:
    """The tile's kernel for weights of ``bits`` and activations in ``planes``."""
    rows = row_blocks
    size = row_blocks * tokens
    word = 4 * tokens  # bytes from four columns of a tile's tokens to the next four
    columns = 8 if bits == 4 else 4  # of a line
    four_bits = bits == 4
    two_planes = planes == 2
    dot_tile = dot_tile_int4 if four_bits else dot_tile_int8
    offset = code_offset(bits)
    single = tokens == 1

    @kernel
    def tile(
        codes, scales, minimums, zero, columns_in, group_size, block, last,
        high, low, x_scales, x_sums, x_totals, token, output, output_stride,
    ):  # fmt: skip
        """Row blocks ``block`` to ``block + last`` times tokens from ``token`` on."""
        groups = columns_in // group_size
        stride = columns_in // columns * LINE
        line = block * stride
        x = token * columns_in
        at = token * groups
        sums = zeros_f32(size)
        for group in range(groups):
            totals = start_tile(x_sums, at, 1, np.int32(offset - zero), rows, tokens)
            if two_planes:
                highs = zeros_i32(size)
            for _ in range(group_size // columns):
                if single:
                    prefetch(codes, line + AHEAD)
                lines = load_lines(codes, line, stride, last, rows)
                if four_bits:
                    evens = low_nibbles_each(lines)
                    odds = high_nibbles_each(lines)
                    if two_planes:
                        highs = dot_tile(highs, evens, high, x, 4)
                        totals = dot_tile(totals, evens, low, x, 4)
                        highs = dot_tile(highs, odds, high, x + word, 4)
                        totals = dot_tile(totals, odds, low, x + word, 4)
                    else:
                        totals = dot_tile(totals, evens, high, x, 4)
                        totals = dot_tile(totals, odds, high, x + word, 4)
                elif two_planes:
                    highs = dot_tile(highs, lines, high, x, 4)
                    totals = dot_tile(totals, lines, low, x, 4)
                else:
                    totals = dot_tile(totals, lines, high, x, 4)
                line += LINE
                x += columns // 4 * word
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


decode_int4 = _tile(4, 2, DECODE_ROWS, 1)
decode_int8 = _tile(8, 2, DECODE_ROWS, 1)
exact_int4 = _tile(4, 2, EXACT_ROWS, EXACT_TOKENS)
exact_int8 = _tile(8, 2, EXACT_ROWS, EXACT_TOKENS)
fast_int4 = _tile(4, 1, FAST_ROWS, FAST_TOKENS)
fast_int8 = _tile(8, 1, FAST_ROWS, FAST_TOKENS)


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
