"""The product for many tokens on tensor cores, which multiply bytes: 16 rows, 8 tokens, 32 columns.

The packed line happens to be their fragment. Thread ``4 * g + t`` of a warp takes, of every 32
columns, those from ``8 * t`` on: a line of int4 (low nibbles, then high ones), or two lines of
int8. Of a row block it takes rows ``2 * g`` and ``2 * g + 1``, neighbours in the line. Which column
and which row is the instruction's first does not matter, as long as weights and activations agree.
So weights go from memory into the instruction with one shift and two masks, and never through
shared memory. Arrays are those of :mod:`quant.backends.cuda.matvec`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from numba import cuda, float32, int32, uint32

from .jit import SIMULATED, device, kernel, load2, mma
from .matvec import NIBBLES


@dataclass(frozen=True)
class Tile:
    """What a block of threads computes: ``row_warps`` by ``token_warps`` warps.

    Each warp has ``blocks`` row blocks and ``octets`` times eight tokens.
    """

    row_warps: int = 2
    token_warps: int = 2
    blocks: int = 2
    octets: int = 4

    @property
    def threads(self) -> int:
        """Threads of the block."""
        return 32 * self.row_warps * self.token_warps

    @property
    def row_blocks(self) -> int:
        """Row blocks, of 16 rows, of all warps."""
        return self.row_warps * self.blocks

    @property
    def tokens(self) -> int:
        """Tokens of all warps."""
        return 8 * self.token_warps * self.octets


def tile_for(group_size: int) -> Tile:
    """The tile for groups of a size: what is on its way has to find registers, too."""
    if SIMULATED:
        return Tile(row_warps=1, token_warps=1, octets=1)
    return Tile(row_warps=4, octets=2 if group_size == 128 else 4)


@cache
def matmul(bits: int, group_size: int, symmetric: bool, planes: int, tile: Tile):
    """``output = x @ matrix.T`` by tiles; ``blocks = (row tiles, token tiles)``.

    While a group of columns is multiplied, the next one's weights and activations are on their way:
    weights to registers, activations to the half of shared memory that is not being read.
    """
    four = bits == 4
    zero = 0 if not symmetric else 1 << (bits - 1)
    two = planes == 2
    steps = group_size // 32  # of 32 columns
    lines_of_step = 4 if four else 8
    lines = lines_of_step // 4  # of a thread and step
    words = group_size // 4  # of a token
    # Padded so that four rows of words begin in four different quarters of the banks.
    stride = words + 8 if words % 16 == 0 else words
    blocks, octets, row_warps = tile.blocks, tile.octets, tile.row_warps
    threads, tokens_of_tile, row_blocks = tile.threads, tile.tokens, tile.row_blocks
    pieces = tokens_of_tile * words // threads
    kinds = 2 if two else 1

    @kernel(launch_bounds=(threads, max(1, 256 // threads)))
    def matmul(codes, scales, minimums, high, low, factors, sums, rows, tokens, output):
        upper_tile = cuda.shared.array((2, tokens_of_tile, stride), int32)
        lower_tile = cuda.shared.array((2, tokens_of_tile, stride), int32)
        factor_tile = cuda.shared.array((2, tokens_of_tile), float32)
        whole_tile = cuda.shared.array((2, tokens_of_tile), int32)
        current = cuda.local.array((blocks, steps, lines, 2), uint32)
        coming = cuda.local.array((blocks, steps, lines, 2), uint32)
        held = cuda.local.array((kinds, pieces), int32)
        totals = cuda.local.array((blocks, octets, 4), float32)
        thread = cuda.threadIdx.x
        warp = thread // 32
        g = thread % 32 // 4
        t = thread % 4
        first_block = cuda.blockIdx.x * row_blocks + warp % row_warps * blocks
        first_token = cuda.blockIdx.y * tokens_of_tile
        own_tokens = warp // row_warps * octets * 8
        last_block = codes.shape[0] - 1
        groups = scales.shape[1]
        for b in range(blocks):
            for o in range(octets):
                for i in range(4):
                    totals[b, o, i] = float32(0)
        for group in range(-1, groups):
            buffer = group & 1
            after = min(group + 1, groups - 1)
            cuda.syncthreads()
            # What comes next begins its way.
            for b in range(blocks):
                block = min(first_block + b, last_block)
                for step in range(steps):
                    for i in range(lines):
                        line = (after * steps + step) * lines_of_step + lines * t + i
                        pair = load2(codes, (block, line, 2 * g))
                        coming[b, step, i, 0] = pair[0]
                        coming[b, step, i, 1] = pair[1]
            for piece in range(pieces):
                index = piece * threads + thread
                token = min(first_token + index // words, tokens - 1)
                held[0, piece] = high[token, after * words + index % words]
                if two:
                    held[1, piece] = low[token, after * words + index % words]
            held_factor = float32(0)
            held_whole = int32(0)
            if thread < tokens_of_tile:
                token = min(first_token + thread, tokens - 1)
                held_factor = factors[token, after]
                held_whole = sums[token, after]
            if group >= 0:
                for o in range(octets):
                    row = own_tokens + 8 * o
                    factor_0 = factor_tile[buffer, row + 2 * t]
                    factor_1 = factor_tile[buffer, row + 2 * t + 1]
                    whole_0 = whole_tile[buffer, row + 2 * t]
                    whole_1 = whole_tile[buffer, row + 2 * t + 1]
                    for b in range(blocks):
                        block = min(first_block + b, last_block)
                        dots = (int32(0), int32(0), int32(0), int32(0))
                        for step in range(steps):
                            word = 8 * step + 2 * t
                            values = (
                                upper_tile[buffer, row + g, word],
                                upper_tile[buffer, row + g, word + 1],
                            )
                            dots = mma(fragment(current, b, step), values, dots)
                        times = int32(128 if two else 1)
                        dots = (
                            int32(dots[0] * times - zero * whole_0),
                            int32(dots[1] * times - zero * whole_1),
                            int32(dots[2] * times - zero * whole_0),
                            int32(dots[3] * times - zero * whole_1),
                        )
                        if two:
                            for step in range(steps):
                                word = 8 * step + 2 * t
                                values = (
                                    lower_tile[buffer, row + g, word],
                                    lower_tile[buffer, row + g, word + 1],
                                )
                                dots = mma(fragment(current, b, step), values, dots)
                        scale = load2(scales, (block, group, 2 * g))
                        scale_0 = float32(scale[0])
                        scale_1 = float32(scale[1])
                        value_0 = scale_0 * float32(dots[0])
                        value_1 = scale_0 * float32(dots[1])
                        value_2 = scale_1 * float32(dots[2])
                        value_3 = scale_1 * float32(dots[3])
                        if not symmetric:
                            minimum = load2(minimums, (block, group, 2 * g))
                            value_0 += float32(minimum[0]) * float32(whole_0)
                            value_1 += float32(minimum[0]) * float32(whole_1)
                            value_2 += float32(minimum[1]) * float32(whole_0)
                            value_3 += float32(minimum[1]) * float32(whole_1)
                        totals[b, o, 0] += factor_0 * value_0
                        totals[b, o, 1] += factor_1 * value_1
                        totals[b, o, 2] += factor_0 * value_2
                        totals[b, o, 3] += factor_1 * value_3
            for piece in range(pieces):
                index = piece * threads + thread
                upper_tile[1 - buffer, index // words, index % words] = held[0, piece]
                if two:
                    lower_tile[1 - buffer, index // words, index % words] = held[1, piece]
            if thread < tokens_of_tile:
                factor_tile[1 - buffer, thread] = held_factor
                whole_tile[1 - buffer, thread] = held_whole
            for b in range(blocks):
                for step in range(steps):
                    for i in range(lines):
                        current[b, step, i, 0] = coming[b, step, i, 0]
                        current[b, step, i, 1] = coming[b, step, i, 1]
        for b in range(blocks):
            for o in range(octets):
                for i in range(4):
                    row = (first_block + b) * 16 + 2 * g + i // 2
                    token = first_token + own_tokens + 8 * o + 2 * t + i % 2
                    if row < rows and token < tokens:
                        output[token, row] = totals[b, o, i]

    fragment = _fragment(four)
    return matmul


@cache
def _fragment(four: bool):
    """A thread's share of 16 rows by 32 columns, out of its words [block, step, line, 2 rows]."""
    if four:

        @device
        def fragment(words, b, step):
            first = words[b, step, 0, 0]
            second = words[b, step, 0, 1]
            return (
                first & uint32(NIBBLES),
                second & uint32(NIBBLES),
                (first >> uint32(4)) & uint32(NIBBLES),
                (second >> uint32(4)) & uint32(NIBBLES),
            )

    else:

        @device
        def fragment(words, b, step):
            return (
                words[b, step, 0, 0],
                words[b, step, 0, 1],
                words[b, step, 1, 0],
                words[b, step, 1, 1],
            )

    return fragment
