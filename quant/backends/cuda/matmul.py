"""Products for many tokens without tensor cores, and those of float weights.

Arrays are those of :mod:`quant.backends.cuda.matvec`.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numba import cuda, float32, int32, uint32

from .jit import SIMULATED, dp4a, kernel
from .matvec import NIBBLES

TILE_TOKENS = 4 if SIMULATED else 16
TILE_BLOCKS = 2 if SIMULATED else 4
"""Tokens and row blocks of a prompt's tile."""


@cache
def matmul(bits: int, group_size: int, symmetric: bool, planes: int):
    """The product for many tokens, in tiles of 16 * TILE_BLOCKS rows and TILE_TOKENS tokens.

    ``blocks = (row tiles, token tiles)``, ``threads = 16 * TILE_TOKENS``. Weights and activations
    of a group are brought into shared memory; a thread takes a row of each block, and a token.
    """
    lines = group_size * bits // 32
    words = group_size // 4
    four = bits == 4
    zero = 0 if not symmetric else 1 << (bits - 1)
    two = planes == 2
    threads = 16 * TILE_TOKENS

    @kernel
    def matmul(codes, scales, minimums, high, low, factors, sums, rows, tokens, output):
        weights = cuda.shared.array((TILE_BLOCKS, lines, 16), uint32)
        upper_words = cuda.shared.array((TILE_TOKENS, words), int32)
        lower_words = cuda.shared.array((TILE_TOKENS, words), int32)
        totals = cuda.local.array(TILE_BLOCKS, float32)
        thread = cuda.threadIdx.x
        lane = thread % 16
        mine = thread // 16
        first_block = cuda.blockIdx.x * TILE_BLOCKS
        first_token = cuda.blockIdx.y * TILE_TOKENS
        token = first_token + mine
        blocks = codes.shape[0]
        for each in range(TILE_BLOCKS):
            totals[each] = float32(0)
        for group in range(scales.shape[1]):
            for index in range(thread, TILE_BLOCKS * lines * 16, threads):
                each = index // (lines * 16)
                line = index // 16 % lines
                block = first_block + each
                if block < blocks:
                    weights[each, line, index % 16] = codes[block, group * lines + line, index % 16]
            for index in range(thread, TILE_TOKENS * words, threads):
                row = index // words
                word = index % words
                if first_token + row < tokens:
                    upper_words[row, word] = high[first_token + row, group * words + word]
                    if two:
                        lower_words[row, word] = low[first_token + row, group * words + word]
            cuda.syncthreads()
            if token < tokens:
                whole = sums[token, group]
                factor = factors[token, group]
                for each in range(TILE_BLOCKS):
                    block = first_block + each
                    if block < blocks:
                        upper = int32(0)
                        lower = int32(0)
                        for step in range(lines):
                            code = weights[each, step, lane]
                            if four:
                                first = uint32(code & uint32(NIBBLES))
                                second = uint32((code >> uint32(4)) & uint32(NIBBLES))
                                upper = dp4a(first, upper_words[mine, 2 * step], upper)
                                upper = dp4a(second, upper_words[mine, 2 * step + 1], upper)
                                if two:
                                    lower = dp4a(first, lower_words[mine, 2 * step], lower)
                                    lower = dp4a(second, lower_words[mine, 2 * step + 1], lower)
                            else:
                                upper = dp4a(code, upper_words[mine, step], upper)
                                if two:
                                    lower = dp4a(code, lower_words[mine, step], lower)
                        dots = upper - zero * whole
                        if two:
                            dots = upper * 128 + lower - zero * whole
                        value = float32(scales[block, group, lane]) * float32(dots)
                        if not symmetric:
                            value += float32(minimums[block, group, lane]) * float32(whole)
                        totals[each] += float32(factor * value)
            cuda.syncthreads()
        if token < tokens:
            for each in range(TILE_BLOCKS):
                row = (first_block + each) * 16 + lane
                if row < rows:
                    output[token, row] = totals[each]

    return matmul


@kernel
def float_matmul(weights, x, output):
    """The product of float32 weights [rows, columns]; a thread for each row and token."""
    row = cuda.grid(1)
    token = cuda.blockIdx.y
    if row < weights.shape[0]:
        total = np.float32(0)
        for column in range(weights.shape[1]):
            total += weights[row, column] * x[token, column]
        output[token, row] = total
