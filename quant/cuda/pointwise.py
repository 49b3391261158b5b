"""What happens to a token's row between the products: embedding, norms, rotation, gates, bytes.

A run's numbers lie in ``state`` int64 [4] on the device: position, tokens, the first token whose
logits are wanted, and how many are. So a recorded graph of launches serves every token.
"""

from __future__ import annotations

import math
from functools import cache

from numba import cuda, float32, float64, int32

from ..cache import TILE
from ..kernels.pointwise import EXACT_LIMIT, HIGH_LIMIT
from .jit import SIMULATED, THREADS, device, kernel

POSITION, TOKENS, HEAD_FIRST = 0, 1, 2
"""Places in ``state``."""

QUANTIZED_GROUPS = 2 if SIMULATED else 8
"""Groups of a row that one block turns into bytes."""


@device
def silu(x):
    """``x / (1 + exp(-x))``; below -87 the exponential would leave float32."""
    return x / (float32(1) + float32(math.exp(-max(x, float32(-87)))))


@device
def to_whole(x):
    """The nearest whole number, half-way cases to the even one, as the processor converts."""
    return int32(round(float64(x)))


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


@kernel
def norm_row(x, delta, has_delta, weight, epsilon, first, output):
    """RMSNorm of row ``first[0] + t`` into row t, after ``x += delta``; a block for each token.

    ``first`` is a view of ``state``, or of a zero.
    """
    sums = cuda.shared.array(THREADS, float32)
    token = cuda.blockIdx.x
    row = first[0] + token
    thread = cuda.threadIdx.x
    columns = weight.shape[0]
    squares = float32(0)
    for k in range(thread, columns, THREADS):
        value = x[row, k]
        if has_delta:
            value += delta[token, k]
            x[row, k] = value
        squares += value * value
    sums[thread] = squares
    cuda.syncthreads()
    total = float32(0)
    for each in range(THREADS):
        total += sums[each]
    scale = float32(1) / float32(math.sqrt(total / float32(columns) + epsilon))
    for k in range(thread, columns, THREADS):
        output[token, k] = x[row, k] * scale * weight[k]


@cache
def quantize_row(group_size: int, planes: int, gated: bool):
    """Rows of float32 into bytes: words of four columns, and for each group its scale and sum.

    ``blocks = (groups / QUANTIZED_GROUPS, tokens)``, ``threads = (group_size / 4,
    QUANTIZED_GROUPS)``. With ``gated`` the row is first made, ``silu(x) * up``. The numbers are
    those of :func:`quant.kernels.pointwise.quantize_row`.
    """
    words = group_size // 4
    limit = EXACT_LIMIT if planes == 2 else HIGH_LIMIT
    two = planes == 2

    @kernel
    def quantize_row(x, up, groups, high, low, factors, sums):
        largest = cuda.shared.array((QUANTIZED_GROUPS, words), float32)
        parts = cuda.shared.array((QUANTIZED_GROUPS, words), int32)
        values = cuda.local.array(4, float32)
        word = cuda.threadIdx.x
        mine = cuda.threadIdx.y
        group = cuda.blockIdx.x * QUANTIZED_GROUPS + mine
        token = cuda.blockIdx.y
        there = group < groups
        top = float32(0)
        if there:
            for each in range(4):
                k = group * group_size + 4 * word + each
                value = x[token, k]
                if gated:
                    value = (
                        value / (float32(1) + math.exp(-max(value, float32(-87)))) * up[token, k]
                    )
                values[each] = value
                top = max(top, abs(values[each]))
        largest[mine, word] = top
        cuda.syncthreads()
        top = float32(0)
        for each in range(words):
            top = max(top, largest[mine, each])
        scale = float32(top / float32(limit))
        inverse = float32(0)
        if scale > float32(1e-30):
            inverse = float32(1) / scale
        total = int32(0)
        upper_word = int32(0)
        lower_word = int32(0)
        if there:
            for each in range(4):
                whole = to_whole(float32(values[each] * inverse))
                total += whole
                upper = whole
                if two:
                    upper = (whole + 64) >> 7
                    lower_word |= ((whole - (upper << 7)) & 255) << (8 * each)
                upper_word |= (upper & 255) << (8 * each)
            high[token, group * words + word] = upper_word
            if two:
                low[token, group * words + word] = lower_word
        parts[mine, word] = total
        cuda.syncthreads()
        if there and word == 0:
            total = int32(0)
            for each in range(words):
                total += parts[mine, each]
            factors[token, group] = scale
            sums[token, group] = total

    return quantize_row


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


@kernel
def rotate_queries(q, size, scale, cosines, sines):
    """RoPE of a token's queries, half-split, times ``scale``; ``blocks = (heads, tokens)``."""
    at = cuda.blockIdx.x * size
    token = cuda.blockIdx.y
    half = size // 2
    for i in range(cuda.threadIdx.x, half, cuda.blockDim.x):
        a = q[token, at + i]
        b = q[token, at + i + half]
        c = cosines[token, i]
        s = sines[token, i]
        q[token, at + i] = (a * c - b * s) * scale
        q[token, at + i + half] = (b * c + a * s) * scale


@cache
def store_keys(kind: str, head_dim: int):
    """RoPE of keys, and keys and values written to slots; ``blocks = (kv heads, tokens)``.

    With ``direct`` the slot is the ring's own, else the chunk's.
    """
    eight = kind == "int8"
    half = head_dim // 2

    @kernel
    def store_keys(
        state, k, v, cosines, sines, direct, keys, values, key_scales, value_scales
    ):  # fmt: skip
        key = cuda.shared.array(head_dim, float32)
        value = cuda.shared.array(head_dim, float32)
        head = cuda.blockIdx.x
        token = cuda.blockIdx.y
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
            else:
                keys[head, slot // 16, i, slot % 16] = key[i]
                values[head, slot, i] = value[i]

    return store_keys


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
