"""The product for one token, which waits for nothing but the weights.

Layouts are those of :mod:`quant.qtensor`, read as 32-bit words: ``codes`` uint32 [row blocks,
lines, 16], ``scales`` and ``minimums`` float16 [row blocks, groups, 16]. Activations are ``high``
and ``low`` int32 [T, columns / 4], four columns a word, ``factors`` float32 [T, groups] (the scale)
and ``sums`` int32 [T, groups] (of the whole numbers).
"""

from __future__ import annotations

from functools import cache

from numba import cuda, float32, int32, uint32

from .jit import (
    SIMULATED,
    WARP,
    dp4a,
    exchange,
    kernel,
    load4,
    read4,
)

NIBBLES = 0x0F0F0F0F

UNIT = 4
"""Lines that a thread asks for at once, all of one group."""

THREADS = 2 * WARP if SIMULATED else 256

WARPS = 4 if SIMULATED else 2048
"""Warps of a launch, about."""

JOINED = 3
"""Matrices that one launch multiplies: as many as read one vector."""


def unit_for(bits: int, group_size: int) -> int:
    """Lines that a thread takes at once.

    >>> unit_for(4, 64), unit_for(8, 32)
    (4, 4)
    """
    return min(UNIT, group_size * bits // 32)


def split_for(row_blocks: int) -> int:
    """Warps that share a row block, a power of two: so many that all multiprocessors are busy.

    With more of them each has less to read; on an H200 some 2,000 warps in all read fastest.
    """
    most = THREADS // WARP
    while most > 1 and row_blocks * most > WARPS:
        most //= 2
    return most


def blocks_for(row_blocks: int, split: int) -> int:
    """Blocks of threads for a launch.

    >>> blocks_for(7, 1) == -(-7 * 32 // THREADS)
    True
    """
    return -(-row_blocks * split * WARP // THREADS)


@cache
def matvec(bits: int, group_size: int, symmetric: bool, split: int):
    """``output[0] = matrix @ x`` for up to three matrices; ``split`` warps for each row block.

    The row blocks of the second matrix follow those of the first. Four threads share a line, four
    rows each, so 16 bytes a thread. A thread takes neighbouring lines of one group, so integers are
    summed over all of them and scaled once, and the next lines are on their way while these are
    multiplied. What a group has but once (its sum, for the zero point or the minimum) counts with
    its first lines.

    ``codes``, ``scales`` and ``minimums`` come flat, so that what lies between neighbouring lines
    is a constant of the kernel; ``lines`` is the number of them in a row block.
    """
    columns = 32 // bits
    four = bits == 4
    unit = unit_for(bits, group_size)
    units_of_group = group_size // columns // unit
    lines_of_load = 2 if four else 4  # four words of activations
    words = 4 // lines_of_load  # of a line
    zero = 0 if not symmetric else 1 << (bits - 1)
    quartets = split * WARP // 4
    warps = THREADS // WARP
    blocks_at_once = warps // split

    @kernel(launch_bounds=THREADS)
    def matvec(
        codes, scales, minimums, rows, output,
        codes_2, scales_2, minimums_2, rows_2, output_2,
        codes_3, scales_3, minimums_3, rows_3, output_3,
        lines, high, low, factors, sums,
    ):  # fmt: skip
        parts = cuda.shared.array((warps, 16), float32)
        weights = cuda.local.array((unit, 4), uint32)
        coming = cuda.local.array((unit, 4), uint32)
        upper = cuda.local.array(4, int32)
        lower = cuda.local.array(4, int32)
        totals = cuda.local.array(4, float32)
        warp = cuda.threadIdx.x // WARP
        thread = cuda.threadIdx.x % (split * WARP)  # of those that share a row block
        # Whole numbers are short ones: long ones take two registers.
        block = int32(cuda.blockIdx.x * blocks_at_once + warp // split)
        blocks = int32((rows + 15) // 16)
        if block >= blocks:
            block -= blocks
            codes, scales, minimums, rows, output = codes_2, scales_2, minimums_2, rows_2, output_2
            blocks = int32((rows + 15) // 16)
            if block >= blocks:
                block -= blocks
                codes, scales, minimums = codes_3, scales_3, minimums_3
                rows, output = rows_3, output_3
                # The last block of threads may have warps to spare.
                here = block
                block = min(block, int32((rows + 15) // 16 - 1))
                rows = rows if here == block else 0
        units = int32(lines // unit)
        first_row = int32(4 * (thread % 4))
        first_place = int32(block * (units // units_of_group) * 16) + first_row
        for r in range(4):
            totals[r] = float32(0)
        first = (block * lines + min(thread // 4, units - 1) * unit) * 16 + first_row
        for each in range(unit):
            loaded = load4(codes, (first + 16 * each,))
            for r in range(4):
                coming[each, r] = loaded[r]
        for at in range(int32(thread // 4), units, int32(quartets)):
            for each in range(unit):
                for r in range(4):
                    weights[each, r] = coming[each, r]
            if at + quartets < units:
                first += quartets * unit * 16
                for each in range(unit):
                    loaded = load4(codes, (first + 16 * each,))
                    for r in range(4):
                        coming[each, r] = loaded[r]
            group = int32(at // units_of_group)
            place = int32(first_place + group * 16)
            scale = load4(scales, (place,))
            minimum = scale
            if not symmetric:
                minimum = load4(minimums, (place,))
            factor = factors[0, group]
            whole = int32(0)
            if at % units_of_group == 0:
                whole = sums[0, group]
            for r in range(4):
                upper[r] = int32(0)
                lower[r] = int32(0)
            for step in range(unit // lines_of_load):
                word = int32((at * unit + step * lines_of_load) * words)
                highs = read4(high, (0, word))
                lows = read4(low, (0, word))
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
            total = totals[r]
            for distance in (4, 8, 16):
                total += exchange(total, distance)
            if thread % WARP < 4:
                parts[warp, first_row + r] = total
        cuda.syncthreads()
        row = 16 * block + thread
        if thread < 16 and row < rows:
            total = float32(0)
            for each in range(split):
                total += parts[warp + each, thread]
            output[0, row] = total

    return matvec
