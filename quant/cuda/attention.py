"""Attention over the rolling buffer, in tiles of positions with an online softmax.

A block takes the queries of a few tokens that share a head of keys (grouped-query attention), so
keys and values are read once for all of them. A single token's positions are split among blocks;
:func:`combine` puts the parts together.
"""

from __future__ import annotations

import math
from functools import cache

from numba import cuda, float32

from ..cache import TILE
from .jit import SIMULATED, kernel
from .pointwise import HEAD_FIRST, POSITION, TOKENS

THREADS = 32 if SIMULATED else 128
SPLIT = 64 if SIMULATED else 256
"""Positions of a split, whole tiles."""

QUERIES = 4 if SIMULATED else 16
"""Queries of a block, at most: tokens times query heads of a key head, or one token's."""

SPAN = 32
"""Positions that are in shared memory at once, a whole part of :data:`quant.cache.TILE`."""

LOWEST = -3.0e38


@cache
def attention(kind: str, head_dim: int, group: int):
    """Parts of softmax attention; ``blocks = (splits, kv heads, token tiles)``.

    ``partial`` float32 [T, heads, splits, head_dim + 2] gets sums of values weighted by
    ``exp(score - maximum)``, then the maximum and the sum of the weights. ``step`` is the number of
    positions of a split, or 0 where there is one for all. With ``direct`` the chunk is in the ring
    already.
    """
    eight = kind == "int8"
    tile_tokens = max(1, QUERIES // group)
    most = tile_tokens * group
    width = head_dim + 1  # odd, so that a column's elements lie in different banks

    @kernel
    def attention(
        state, q, head, window, direct, step, partial,
        keys, values, key_scales, value_scales,
        new_keys, new_values, new_key_scales, new_value_scales,
    ):  # fmt: skip
        queries = cuda.shared.array((most, head_dim), float32)
        outputs = cuda.shared.array((most, head_dim), float32)
        scores = cuda.shared.array((most, SPAN), float32)
        # A span of keys, then of values.
        tile = cuda.shared.array((SPAN, width), float32)
        tops = cuda.shared.array(most, float32)
        totals = cuda.shared.array(most, float32)
        factors = cuda.shared.array(most, float32)
        thread = cuda.threadIdx.x
        split = cuda.blockIdx.x
        shared = cuda.blockIdx.y
        position = state[POSITION]
        tokens = state[TOKENS]
        first_wanted = state[HEAD_FIRST] if head else 0
        token = first_wanted + cuda.blockIdx.z * tile_tokens
        count = min(tile_tokens, tokens - token) * group
        slots = values.shape[1]
        # The oldest position that the first token sees, and one past the newest of the last.
        begin = 0
        if window > 0:
            begin = max(0, position + token - window + 1)
        end = position + min(token + tile_tokens, tokens)
        begin = begin // SPAN * SPAN
        if step > 0:
            begin = begin // step * step + split * step
            end = min(end, begin + step)
        for index in range(thread, count * head_dim, THREADS):
            query = index // head_dim
            at = (shared * group + query % group) * head_dim + index % head_dim
            queries[query, index % head_dim] = q[token + query // group, at]
            outputs[query, index % head_dim] = float32(0)
        for query in range(thread, count, THREADS):
            tops[query] = float32(LOWEST)
            totals[query] = float32(0)
        cuda.syncthreads()
        for start in range(begin, end, SPAN):
            for index in range(thread, SPAN * head_dim, THREADS):
                # Neighbouring threads take neighbouring positions, as keys lie.
                place = start + index % SPAN
                i = index // SPAN
                value = float32(0)
                if place < end:
                    if place < position or direct:
                        slot = place % slots
                        value = float32(keys[shared, slot // 16, i, slot % 16])
                        if eight:
                            value = (value - float32(128)) * key_scales[shared, slot]
                    else:
                        slot = position % TILE + place - position
                        value = float32(new_keys[shared, slot // 16, i, slot % 16])
                        if eight:
                            value = (value - float32(128)) * new_key_scales[shared, slot]
                tile[index % SPAN, i] = value
            cuda.syncthreads()
            for index in range(thread, count * SPAN, THREADS):
                query = index // SPAN
                place = start + index % SPAN
                here = position + token + query // group
                score = float32(LOWEST)
                if place <= here and place < end and (window <= 0 or place > here - window):
                    score = float32(0)
                    for i in range(head_dim):
                        score += queries[query, i] * tile[index % SPAN, i]
                scores[query, index % SPAN] = score
            cuda.syncthreads()
            for query in range(thread, count, THREADS):
                top = tops[query]
                for place in range(SPAN):
                    top = max(top, scores[query, place])
                factors[query] = math.exp(max(tops[query] - top, float32(-87)))
                tops[query] = top
            for index in range(thread, SPAN * head_dim, THREADS):
                place = start + index // head_dim
                i = index % head_dim
                value = float32(0)
                if place < end:
                    if place < position or direct:
                        slot = place % slots
                        value = float32(values[shared, slot, i])
                        if eight:
                            value = (value - float32(128)) * value_scales[shared, slot]
                    else:
                        slot = position % TILE + place - position
                        value = float32(new_values[shared, slot, i])
                        if eight:
                            value = (value - float32(128)) * new_value_scales[shared, slot]
                tile[index // head_dim, i] = value
            cuda.syncthreads()
            for index in range(thread, count * SPAN, THREADS):
                score = scores[index // SPAN, index % SPAN]
                weight = float32(0)
                if score > float32(LOWEST):
                    weight = math.exp(max(score - tops[index // SPAN], float32(-87)))
                scores[index // SPAN, index % SPAN] = weight
            cuda.syncthreads()
            for query in range(thread, count, THREADS):
                total = totals[query] * factors[query]
                for place in range(SPAN):
                    total += scores[query, place]
                totals[query] = total
            for index in range(thread, count * head_dim, THREADS):
                query = index // head_dim
                i = index % head_dim
                total = outputs[query, i] * factors[query]
                for place in range(SPAN):
                    total += scores[query, place] * tile[place, i]
                outputs[query, i] = total
            cuda.syncthreads()
        for index in range(thread, count * head_dim, THREADS):
            query = index // head_dim
            row = token + query // group
            partial[row, shared * group + query % group, split, index % head_dim] = outputs[
                query, index % head_dim
            ]
        for query in range(thread, count, THREADS):
            row = token + query // group
            partial[row, shared * group + query % group, split, head_dim] = tops[query]
            partial[row, shared * group + query % group, split, head_dim + 1] = totals[query]

    return attention


@kernel
def combine(state, partial, head, splits, output):
    """The parts of each head put together; ``blocks = (heads, tokens)``.

    Where ``head`` is set, tokens are counted from the first whose logits are wanted.
    """
    which = cuda.blockIdx.x
    token = cuda.blockIdx.y
    row = token + (state[HEAD_FIRST] if head else 0)
    size = partial.shape[3] - 2
    top = float32(LOWEST)
    for split in range(splits):
        top = max(top, partial[row, which, split, size])
    total = float32(0)
    for split in range(splits):
        factor = float32(math.exp(max(partial[row, which, split, size] - top, float32(-87))))
        total += partial[row, which, split, size + 1] * factor
    for i in range(cuda.threadIdx.x, size, cuda.blockDim.x):
        value = float32(0)
        for split in range(splits):
            factor = float32(math.exp(max(partial[row, which, split, size] - top, float32(-87))))
            value += partial[row, which, split, i] * factor
        output[token, which * size + i] = value / total
