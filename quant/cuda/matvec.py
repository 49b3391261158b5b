"""The product for one token, which waits for nothing but the weights.

Layouts are those of :mod:`quant.qtensor`, read as 32-bit words: ``codes`` uint32 [row blocks,
lines, 16], ``scales`` and ``minimums`` float16 [row blocks, groups, 16]. Activations are ``high``
and ``low`` int32 [T, columns / 4], four columns a word, ``factors`` float32 [T, groups] (the scale)
and ``sums`` int32 [T, groups] (of the whole numbers).
"""

from __future__ import annotations

from functools import cache

from numba import cuda, float32, int32, uint32

from .jit import SIMULATED, dp4a, kernel, load2, load4

NIBBLES = 0x0F0F0F0F

LINES = 8 if SIMULATED else 64
"""Lines that a block reads at once: four threads each, of four rows, so 16 bytes a thread."""

THREADS = 4 * LINES

UNROLLED = 2 if SIMULATED else 4
"""Lines a thread asks for before it works on the first of them."""

JOINED = 3
"""Matrices that one launch multiplies: as many as read one vector."""


@cache
def matvec(bits: int, group_size: int, symmetric: bool):
    """``output[0] = matrix @ x`` for up to three matrices; a block of threads for each row block.

    The row blocks of the second matrix follow those of the first. Neighbouring threads read
    neighbouring 16 bytes, so that a warp reads 512 bytes of one run of lines. Integer sums are
    those of a line; what a group has but once (its sum, for the zero point or the minimum) counts
    with its first line.
    """
    columns = 32 // bits
    lines_of_group = group_size // columns
    four = bits == 4
    zero = 0 if not symmetric else 1 << (bits - 1)

    @kernel
    def matvec(
        codes, scales, minimums, rows, output,
        codes_2, scales_2, minimums_2, rows_2, output_2,
        codes_3, scales_3, minimums_3, rows_3, output_3,
        high, low, factors, sums,
    ):  # fmt: skip
        parts = cuda.shared.array((LINES, 16), float32)
        words = cuda.local.array((UNROLLED, 4), uint32)
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
        lines = codes.shape[1]
        first_row = 4 * (thread % 4)
        for r in range(4):
            totals[r] = float32(0)
        for start in range(thread // 4, lines, LINES * UNROLLED):
            for each in range(UNROLLED):
                line = min(start + each * LINES, lines - 1)
                loaded = load4(codes, (block, line, first_row))
                words[each, 0] = loaded[0]
                words[each, 1] = loaded[1]
                words[each, 2] = loaded[2]
                words[each, 3] = loaded[3]
            for each in range(UNROLLED):
                line = start + each * LINES
                factor = float32(0)
                if line < lines:
                    factor = factors[0, line // lines_of_group]
                line = min(line, lines - 1)
                group = line // lines_of_group
                whole = int32(0)
                if line % lines_of_group == 0:
                    whole = sums[0, group]
                scale = load4(scales, (block, group, first_row))
                minimum = scale
                if not symmetric:
                    minimum = load4(minimums, (block, group, first_row))
                if four:
                    upper = load2(high, (0, 2 * line))
                    lower = load2(low, (0, 2 * line))
                    for r in range(4):
                        first = words[each, r] & uint32(NIBBLES)
                        second = (words[each, r] >> uint32(4)) & uint32(NIBBLES)
                        dots = dp4a(second, upper[1], dp4a(first, upper[0], int32(0)))
                        dots = int32(dots * 128 - zero * whole)
                        dots = dp4a(second, lower[1], dp4a(first, lower[0], dots))
                        value = float32(scale[r]) * float32(dots)
                        if not symmetric:
                            value += float32(minimum[r]) * float32(whole)
                        totals[r] += factor * value
                else:
                    for r in range(4):
                        dots = dp4a(words[each, r], high[0, line], int32(0))
                        dots = int32(dots * 128 - zero * whole)
                        dots = dp4a(words[each, r], low[0, line], dots)
                        value = float32(scale[r]) * float32(dots)
                        if not symmetric:
                            value += float32(minimum[r]) * float32(whole)
                        totals[r] += factor * value
        for r in range(4):
            parts[thread // 4, first_row + r] = totals[r]
        half = LINES // 2
        while half > 0:
            cuda.syncthreads()
            for index in range(thread, 16 * half, THREADS):
                parts[index // 16, index % 16] += parts[index // 16 + half, index % 16]
            half //= 2
        cuda.syncthreads()
        row = 16 * block + thread
        if thread < 16 and row < rows:
            output[0, row] = parts[0, thread]

    return matvec
