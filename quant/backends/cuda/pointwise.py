"""What happens to a token's row between the products: embedding, norms, rotation, gates, bytes.

A run's numbers lie in ``state`` int64 [4] on the device: position, tokens, the first token whose
logits are wanted, and how many are. So a recorded graph of launches serves every token.
"""

from __future__ import annotations

import math
from functools import cache

from numba import cuda, float32, float64, int32

from ...cache import TILE
from ...kernels.pointwise import EXACT_LIMIT, HIGH_LIMIT
from ...qtensor import HALF_MAX
from .jit import (
    SIMULATED,
    THREADS,
    WARP,
    device,
    exchange,
    kernel,
    load4,
    read4,
    to_whole,
)

POSITION, TOKENS, HEAD_FIRST = 0, 1, 2
"""Places in ``state``."""

NORM_THREADS = WARP if SIMULATED else 1024
"""Threads of a norm, which one block has to do alone, whole warps."""


@device
def warp_sum(value, width):
    """The sum of ``value`` over ``width`` neighbours of a warp, a power of two; each gets it."""
    distance = 1
    while distance < width:
        value += exchange(value, distance)
        distance *= 2
    return value


@device
def warp_max(value, width):
    """As :func:`warp_sum`, the largest."""
    distance = 1
    while distance < width:
        value = max(value, exchange(value, distance))
        distance *= 2
    return value


@device
def silu(x):
    """``x / (1 + exp(-x))``; below -87 the exponential would leave float32."""
    return x / (float32(1) + float32(math.exp(-max(x, float32(-87)))))


@cache
def embed_row(bits: int, group_size: int, symmetric: bool):
    """``x[t] = table[ids[t]]`` for a packed table; a block for each token."""
    columns_of_line = 32 // bits
    zero = 0 if not symmetric else 1 << (bits - 1)

    @kernel
    def embed_row(codes, scales, minimums, columns, ids, x):
        token = cuda.blockIdx.x
        row = ids[token]
        block = row // 16
        lane = row % 16
        for k in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
            word = codes[block, k // columns_of_line, lane]
            place = k % columns_of_line
            # Low nibbles hold the line's first four columns, high ones the next four.
            if bits == 4:
                shift = 8 * (place % 4) + (4 if place >= 4 else 0)
                code = (int32(word >> shift)) & 15
            else:
                code = (int32(word >> (8 * place))) & 255
            value = float32(code - zero) * float32(scales[block, k // group_size, lane])
            if not symmetric:
                value += float32(minimums[block, k // group_size, lane])
            x[token, k] = value

    return embed_row


@kernel
def float_embed_row(table, ids, x):
    """``x[t] = table[ids[t]]`` for a float32 table; a block for each token."""
    token = cuda.blockIdx.x
    for k in range(cuda.threadIdx.x, table.shape[1], cuda.blockDim.x):
        x[token, k] = table[ids[token], k]


@device
def norm_scale(x, row, delta, has_delta, token, columns, epsilon, parts, kept):
    """``1 / rms(x[row])``, after ``x[row] += delta[token]``.

    ``parts`` float32 [WARP] is shared memory. Word w of the row, four columns, is thread w's, whose
    first one stays in ``kept`` float32 [4].
    """
    thread = cuda.threadIdx.x
    squares = float32(0)
    for each in range(4):
        kept[each] = float32(0)
    for word in range(thread, columns // 4, NORM_THREADS):
        four = read4(x, (row, 4 * word))
        if has_delta:
            more = read4(delta, (token, 4 * word))
        for each in range(4):
            value = four[each]
            if has_delta:
                value += more[each]
                x[row, 4 * word + each] = value
            if word == thread:
                kept[each] = value
            squares += value * value
    squares = warp_sum(squares, WARP)
    if thread % WARP == 0:
        parts[thread // WARP] = squares
    cuda.syncthreads()
    total = float32(0)
    if thread % WARP < NORM_THREADS // WARP:
        total = parts[thread % WARP]
    total = warp_sum(total, WARP)
    return float32(1) / float32(math.sqrt(total / float32(columns) + epsilon))


@kernel(launch_bounds=NORM_THREADS)
def norm_row(x, delta, has_delta, weight, epsilon, first, output):
    """RMSNorm of row ``first[0] + t`` into row t, after ``x += delta``; a block for each token.

    ``threads = NORM_THREADS``; ``first`` is a view of ``state``, or of a zero. Rows are whole
    words of four columns.
    """
    parts = cuda.shared.array(WARP, float32)
    kept = cuda.local.array(4, float32)
    token = cuda.blockIdx.x
    row = first[0] + token
    columns = weight.shape[0]
    scale = norm_scale(x, row, delta, has_delta, token, columns, epsilon, parts, kept)
    for word in range(cuda.threadIdx.x, columns // 4, NORM_THREADS):
        for k in range(4 * word, 4 * word + 4):
            output[token, k] = x[row, k] * scale * weight[k]


@cache
def bytes_of(group_size: int, planes: int):
    """The part of kernels that turns a block's values into bytes, group by group."""
    words = group_size // 4
    limit = EXACT_LIMIT if planes == 2 else HIGH_LIMIT
    two = planes == 2

    @device
    def to_bytes(values, there, token, word, high, low, factors, sums):
        """Four ``values`` of each thread into word ``word`` of the row; all threads call it.

        A word's neighbours in its group are with the thread's neighbours, of one warp. Without
        ``there`` the values are 0. The numbers are those of
        :func:`quant.kernels.pointwise.quantize_row`.
        """
        top = float32(0)
        for each in range(4):
            top = max(top, abs(values[each]))
        top = warp_max(top, words)
        scale = float32(top / float32(limit))
        inverse = float32(0)
        if scale > float32(1e-30):
            inverse = float32(1) / scale
        total = int32(0)
        upper_word = int32(0)
        lower_word = int32(0)
        for each in range(4):
            whole = to_whole(float32(values[each] * inverse))
            total += whole
            upper = whole
            if two:
                upper = (whole + 64) >> 7
                lower_word |= ((whole - (upper << 7)) & 255) << (8 * each)
            upper_word |= (upper & 255) << (8 * each)
        total = warp_sum(int32(total), words)
        if there:
            high[token, word] = upper_word
            if two:
                low[token, word] = lower_word
            if word % words == 0:
                factors[token, word // words] = scale
                sums[token, word // words] = total

    return to_bytes


@cache
def norm_bytes(group_size: int, planes: int):
    """As :func:`norm_row`, with the normed row as bytes."""
    to_bytes = bytes_of(group_size, planes)

    @kernel(launch_bounds=NORM_THREADS)
    def norm_bytes(x, delta, has_delta, weight, epsilon, first, high, low, factors, sums):
        parts = cuda.shared.array(WARP, float32)
        kept = cuda.local.array(4, float32)
        token = cuda.blockIdx.x
        thread = cuda.threadIdx.x
        columns = weight.shape[0]
        words_of_row = columns // 4
        weights = load4(weight, (4 * min(thread, words_of_row - 1),))
        row = first[0] + token
        scale = norm_scale(x, row, delta, has_delta, token, columns, epsilon, parts, kept)
        # Each thread still has its first word; rows of more words than threads are read again.
        there = thread < words_of_row
        times = scale if there else float32(0)
        values = (
            kept[0] * times * weights[0],
            kept[1] * times * weights[1],
            kept[2] * times * weights[2],
            kept[3] * times * weights[3],
        )
        to_bytes(values, there, token, thread, high, low, factors, sums)
        for start in range(NORM_THREADS, words_of_row, NORM_THREADS):
            word = start + thread
            there = word < words_of_row
            k = 4 * word if there else 0
            times = scale if there else float32(0)
            values = (
                x[row, k] * times * weight[k],
                x[row, k + 1] * times * weight[k + 1],
                x[row, k + 2] * times * weight[k + 2],
                x[row, k + 3] * times * weight[k + 3],
            )
            to_bytes(values, there, token, word, high, low, factors, sums)

    return norm_bytes


@cache
def row_bytes(group_size: int, planes: int, gated: bool):
    """Rows of float32 as bytes: words of four columns, and for each group its scale and sum.

    ``blocks = (columns / (4 * THREADS), tokens)``. With ``gated`` the row is first made,
    ``silu(x) * up``.
    """
    to_bytes = bytes_of(group_size, planes)

    @kernel
    def row_bytes(x, up, columns, high, low, factors, sums):
        word = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        token = cuda.blockIdx.y
        there = 4 * word < columns
        values = (float32(0), float32(0), float32(0), float32(0))
        if there:
            k = 4 * word
            values = (x[token, k], x[token, k + 1], x[token, k + 2], x[token, k + 3])
            if gated:
                values = (
                    silu(values[0]) * up[token, k],
                    silu(values[1]) * up[token, k + 1],
                    silu(values[2]) * up[token, k + 2],
                    silu(values[3]) * up[token, k + 3],
                )
        to_bytes(values, there, token, word, high, low, factors, sums)

    return row_bytes


@kernel
def silu_mul_row(gate, up, columns, output):
    """``output = silu(gate) * up`` in float32; a block for each token."""
    token = cuda.blockIdx.x
    for k in range(cuda.threadIdx.x, columns, cuda.blockDim.x):
        output[token, k] = silu(gate[token, k]) * up[token, k]


@kernel
def rope_angles(state, frequencies, cosines, sines):
    """Cosine and sine of position times frequency, in float64; a block for each token."""
    token = cuda.blockIdx.x
    for i in range(cuda.threadIdx.x, frequencies.shape[0], cuda.blockDim.x):
        angle = float64(state[POSITION] + token) * frequencies[i]
        cosines[token, i] = float32(math.cos(angle))
        sines[token, i] = float32(math.sin(angle))


@device
def saturated(x):
    """A float32 no further from 0 than float16's largest, unless it is not finite."""
    if abs(x) == math.inf:
        return x
    return min(max(x, float32(-HALF_MAX)), float32(HALF_MAX)) if x == x else x


@cache
def rope(kind: str, head_dim: int):
    """RoPE, half-split, of queries and keys, and keys and values written to slots.

    ``blocks = (heads + kv heads, tokens)``: the first turn the queries where they are and multiply
    them by ``scale``, the others write what the cache keeps. With ``direct`` the slot is the ring's
    own, else the chunk's.
    """
    eight, halves = kind == "int8", kind == "f16"
    half = head_dim // 2

    @kernel
    def rope(
        state, q, heads, scale, k, v, cosines, sines, direct, keys, values, key_scales, value_scales
    ):  # fmt: skip
        key = cuda.shared.array(head_dim, float32)
        value = cuda.shared.array(head_dim, float32)
        token = cuda.blockIdx.y
        if cuda.blockIdx.x < heads:
            at = cuda.blockIdx.x * head_dim
            for i in range(cuda.threadIdx.x, half, cuda.blockDim.x):
                a = q[token, at + i]
                b = q[token, at + i + half]
                c = cosines[token, i]
                s = sines[token, i]
                q[token, at + i] = (a * c - b * s) * scale
                q[token, at + i + half] = (b * c + a * s) * scale
            return
        head = cuda.blockIdx.x - heads
        position = state[POSITION]
        slot = position % TILE + token
        if direct:
            slot = position % values.shape[1]
        for i in range(cuda.threadIdx.x, half, cuda.blockDim.x):
            a = k[token, head * head_dim + i]
            b = k[token, head * head_dim + i + half]
            c = cosines[token, i]
            s = sines[token, i]
            key[i] = a * c - b * s
            key[i + half] = b * c + a * s
            value[i] = v[token, head * head_dim + i]
            value[i + half] = v[token, head * head_dim + i + half]
        cuda.syncthreads()
        key_scale = float32(1)
        value_scale = float32(1)
        if eight:
            key_top = float32(1e-30)
            value_top = float32(1e-30)
            for i in range(head_dim):
                key_top = max(key_top, abs(key[i]))
                value_top = max(value_top, abs(value[i]))
            key_scale = float32(key_top / float32(127))
            value_scale = float32(value_top / float32(127))
            if cuda.threadIdx.x == 0:
                key_scales[head, slot] = key_scale
                value_scales[head, slot] = value_scale
        for i in range(cuda.threadIdx.x, head_dim, cuda.blockDim.x):
            if eight:
                keys[head, slot // 16, i, slot % 16] = to_whole(key[i] / key_scale) + 128
                values[head, slot, i] = to_whole(value[i] / value_scale) + 128
            elif halves:
                keys[head, slot // 16, i, slot % 16] = saturated(key[i])
                values[head, slot, i] = saturated(value[i])
            else:
                keys[head, slot // 16, i, slot % 16] = key[i]
                values[head, slot, i] = value[i]

    return rope


@cache
def commit(kind: str):
    """The chunk's keys and values into the ring, after all have been read.

    ``blocks = (kv heads, tokens)``; of a chunk longer than the ring the last tokens count.
    """
    eight = kind == "int8"

    @kernel
    def commit(
        state, from_keys, from_values, from_key_scales, from_value_scales,
        keys, values, key_scales, value_scales,
    ):  # fmt: skip
        head = cuda.blockIdx.x
        token = cuda.blockIdx.y
        slots = values.shape[1]
        if token >= state[TOKENS] - slots:
            here = state[POSITION] % TILE + token
            slot = (state[POSITION] + token) % slots
            for i in range(cuda.threadIdx.x, values.shape[2], cuda.blockDim.x):
                keys[head, slot // 16, i, slot % 16] = from_keys[head, here // 16, i, here % 16]
                values[head, slot, i] = from_values[head, here, i]
            if eight and cuda.threadIdx.x == 0:
                key_scales[head, slot] = from_key_scales[head, here]
                value_scales[head, slot] = from_value_scales[head, here]

    return commit
