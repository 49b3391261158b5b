"""The product for one token, which waits for nothing but the weights.

Layouts are those of :mod:`quant.qtensor`, read as 32-bit words: ``codes`` uint32 [row blocks,
lines, 16], ``scales`` and ``minimums`` float16 [row blocks, groups, 16]. Activations are ``high``
and ``low`` int32 [T, columns / 4], four columns a word, ``factors`` float32 [T, groups] (the scale)
and ``sums`` int32 [T, groups] (of the whole numbers).
"""

from __future__ import annotations

from functools import cache

from numba import cuda, float32, int32, uint32

from .jit import SIMULATED, dp4a, kernel, load4

NIBBLES = 0x0F0F0F0F

QUARTETS = 8 if SIMULATED else 64
"""Fours of threads in a block: each thread has four rows of a line, so 16 bytes."""

THREADS = 4 * QUARTETS

UNIT = 8
"""Lines that a thread asks for before it works on the first, all of one group; at most."""

JOINED = 3
"""Matrices that one launch multiplies: as many as read one vector."""


@cache
def matvec(bits: int, group_size: int, symmetric: bool):
    """``output[0] = matrix @ x`` for up to three matrices; a block of threads for each row block.

    The row blocks of the second matrix follow those of the first. A thread takes neighbouring
    lines of one group, so integers are summed over all of them and scaled once, and eight loads of
    16 bytes are on their way before the first is used; a warp reads 4 KB in one run. What a group
    has but once (its sum, for the zero point or the minimum) counts with its first lines.
    """
    columns = 32 // bits
    four = bits == 4
    lines_of_group = group_size // columns
    unit = min(UNIT, lines_of_group)
    units_of_group = lines_of_group // unit
    lines_of_load = 2 if four else 4  # four words of activations
    words = 4 // lines_of_load  # of a line
    zero = 0 if not symmetric else 1 << (bits - 1)
    segments = THREADS // 16

    @kernel
    def matvec(
        codes, scales, minimums, rows, output,
        codes_2, scales_2, minimums_2, rows_2, output_2,
        codes_3, scales_3, minimums_3, rows_3, output_3,
        high, low, factors, sums,
    ):  # fmt: skip
        parts = cuda.shared.array((QUARTETS, 16), float32)
        sixteenths = cuda.shared.array((segments, 16), float32)
        weights = cuda.local.array((unit, 4), uint32)
        upper = cuda.local.array(4, int32)
        lower = cuda.local.array(4, int32)
        totals = cuda.local.array(4, float32)
        block = cuda.blockIdx.x
        thread = cuda.threadIdx.x
        if block >= codes.shape[0]:
            block -= codes.shape[0]
            codes, scales, minimums, rows, output = codes_2, scales_2, minimums_2, rows_2, output_2
            if block >= codes.shape[0]:
                block -= codes.shape[0]
                codes, scales, minimums = codes_3, scales_3, minimums_3
                rows, output = rows_3, output_3
        first_row = 4 * (thread % 4)
        for r in range(4):
            totals[r] = float32(0)
        for part in range(thread // 4, codes.shape[1] // unit, QUARTETS):
            for each in range(unit):
                loaded = load4(codes, (block, part * unit + each, first_row))
                for r in range(4):
                    weights[each, r] = loaded[r]
            group = part // units_of_group
            scale = load4(scales, (block, group, first_row))
            minimum = scale
            if not symmetric:
                minimum = load4(minimums, (block, group, first_row))
            factor = factors[0, group]
            whole = int32(0)
            if part % units_of_group == 0:
                whole = sums[0, group]
            for r in range(4):
                upper[r] = int32(0)
                lower[r] = int32(0)
            for step in range(unit // lines_of_load):
                word = (part * unit + step * lines_of_load) * words
                highs = load4(high, (0, word))
                lows = load4(low, (0, word))
                for r in range(4):
                    if four:
                        a = weights[2 * step, r]
                        b = weights[2 * step + 1, r]
                        four_words = (
                            a & uint32(NIBBLES),
                            (a >> uint32(4)) & uint32(NIBBLES),
                            b & uint32(NIBBLES),
                            (b >> uint32(4)) & uint32(NIBBLES),
                        )
                    else:
                        four_words = (
                            weights[4 * step, r],
                            weights[4 * step + 1, r],
                            weights[4 * step + 2, r],
                            weights[4 * step + 3, r],
                        )
                    for each in range(4):
                        upper[r] = dp4a(four_words[each], highs[each], upper[r])
                        lower[r] = dp4a(four_words[each], lows[each], lower[r])
            for r in range(4):
                dots = int32(upper[r] * 128 + lower[r] - zero * whole)
                value = float32(scale[r]) * float32(dots)
                if not symmetric:
                    value += float32(minimum[r]) * float32(whole)
                totals[r] += factor * value
        for r in range(4):
            parts[thread // 4, first_row + r] = totals[r]
        cuda.syncthreads()
        total = float32(0)
        for each in range(4):
            total += parts[thread // 16 * 4 + each, thread % 16]
        sixteenths[thread // 16, thread % 16] = total
        cuda.syncthreads()
        row = 16 * block + thread
        if thread < 16 and row < rows:
            total = float32(0)
            for each in range(segments):
                total += sixteenths[each, thread]
            output[0, row] = total

    return matvec
