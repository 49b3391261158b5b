"""Attention over the rolling buffer, in tiles of positions with an online softmax.

A block takes the queries of a few tokens that share a head of keys (grouped-query attention), so
keys and values are read once for all of them. A single token's positions are split among blocks,
in :mod:`quant.backends.cuda.decode_attention`; :func:`combine` puts the parts together.
"""

from __future__ import annotations

import math
from functools import cache

from numba import cuda, float32, uint32

from ...cache import TILE
from ...errors import DeviceError
from .decode_attention import LOWEST
from .jit import SIMULATED, device, kernel
from .pointwise import HEAD_FIRST, POSITION, TOKENS, bytes_of

THREADS = 32 if SIMULATED else 128
COMBINE_THREADS = 32 if SIMULATED else 128
"""Threads of a head whose parts are put together."""

COMBINE_BATCH = 4 if SIMULATED else 16
"""Parts that a thread asks for at once."""

QUERIES = 4 if SIMULATED else 16
"""Queries of a block, at most: tokens times query heads of a key head, or one token's."""

SPAN = 32
"""Positions that are in shared memory at once, at most; a whole part of a tile of positions."""

SHARED_BYTES = 48 << 10
"""Shared memory that every GPU gives to a block."""


def span_for(head_dim: int, group: int) -> int:
    """Positions that are in shared memory at once beside a block's queries.

    Raises :class:`~quant.errors.DeviceError` where not even eight fit.

    >>> span_for(128, 4), span_for(128, 32)
    (32, 16)
    """
    most = max(1, QUERIES // group) * group
    span = SPAN
    while 4 * (2 * most * head_dim + (most + head_dim + 1) * span + 3 * most) > SHARED_BYTES:
        span //= 2
        if span < 8:
            raise DeviceError(
                f"{group} heads of {head_dim} for each head of keys are too many for the GPU's "
                "shared memory; use --device cpu."
            )
    return span


@cache
def attention(kind: str, head_dim: int, group: int):
    """Parts of softmax attention; ``blocks = (splits, kv heads, token tiles)``.

    ``partial`` float32 [T, heads, splits, head_dim + 2] gets sums of values weighted by
    ``exp(score - maximum)``, then the maximum and the sum of the weights. ``step`` is the number of
    positions of a split, or 0 where there is one for all. With ``direct`` the chunk is in the ring
    already.
    """
    eight = kind == "int8"
    span = span_for(head_dim, group)
    tile_tokens = max(1, QUERIES // group)
    most = tile_tokens * group
    # Numba looks whether a signed index is negative, which these loops have no time for.
    zero, one, end_of_head, end_of_span = uint32(0), uint32(1), uint32(head_dim), uint32(span)
    width = head_dim + 1  # odd, so that a column's elements lie in different banks

    @kernel
    def attention(
        state, q, head, window, direct, step, partial,
        keys, values, key_scales, value_scales,
        new_keys, new_values, new_key_scales, new_value_scales,
    ):  # fmt: skip
        queries = cuda.shared.array((most, head_dim), float32)
        outputs = cuda.shared.array((most, head_dim), float32)
        scores = cuda.shared.array((most, span), float32)
        # A span of keys, then of values.
        tile = cuda.shared.array((span, width), float32)
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
        since = 0
        if window > 0:
            since = max(0, position + token - window + 1)
        end = position + min(token + tile_tokens, tokens)
        since = since // span * span
        if step > 0:
            since = since // step * step + split * step
            end = min(end, since + step)
        for index in range(thread, count * head_dim, THREADS):
            query = index // head_dim
            from_q = (shared * group + query % group) * head_dim + index % head_dim
            queries[query, index % head_dim] = q[token + query // group, from_q]
            outputs[query, index % head_dim] = float32(0)
        for query in range(thread, count, THREADS):
            tops[query] = float32(LOWEST)
            totals[query] = float32(0)
        cuda.syncthreads()
        for start in range(since, end, span):
            # A span never wraps: rings hold whole tiles.
            first_slot = start % slots
            for index in range(thread, span * head_dim, THREADS):
                # Neighbouring threads take neighbouring positions, as keys lie.
                place = start + index % span
                i = index // span
                value = float32(0)
                if place < end:
                    if place < position or direct:
                        slot = first_slot + index % span
                        value = float32(keys[shared, slot // 16, i, slot % 16])
                        if eight:
                            value = (value - float32(128)) * key_scales[shared, slot]
                    else:
                        slot = position % TILE + place - position
                        value = float32(new_keys[shared, slot // 16, i, slot % 16])
                        if eight:
                            value = (value - float32(128)) * new_key_scales[shared, slot]
                tile[index % span, i] = value
            cuda.syncthreads()
            for index in range(thread, count * span, THREADS):
                query = index // span
                place = start + index % span
                here = position + token + query // group
                score = float32(LOWEST)
                if place <= here and place < end and (window <= 0 or place > here - window):
                    score = float32(0)
                    row = uint32(query)
                    column = uint32(index % span)
                    at = zero
                    while at < end_of_head:
                        score += queries[row, at] * tile[column, at]
                        at += one
                scores[query, index % span] = score
            cuda.syncthreads()
            for query in range(thread, count, THREADS):
                top = tops[query]
                for place in range(span):
                    top = max(top, scores[query, place])
                factors[query] = math.exp(max(tops[query] - top, float32(-87)))
                tops[query] = top
            for index in range(thread, span * head_dim, THREADS):
                place = start + index // head_dim
                i = index % head_dim
                value = float32(0)
                if place < end:
                    if place < position or direct:
                        slot = first_slot + index // head_dim
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
            for index in range(thread, count * span, THREADS):
                score = scores[index // span, index % span]
                weight = float32(0)
                if score > float32(LOWEST):
                    weight = math.exp(max(score - tops[index // span], float32(-87)))
                scores[index // span, index % span] = weight
            cuda.syncthreads()
            for query in range(thread, count, THREADS):
                total = totals[query] * factors[query]
                for place in range(span):
                    total += scores[query, place]
                totals[query] = total
            for index in range(thread, count * head_dim, THREADS):
                query = index // head_dim
                i = index % head_dim
                total = outputs[query, i] * factors[query]
                row = uint32(query)
                column = uint32(i)
                at = zero
                while at < end_of_span:
                    total += scores[row, at] * tile[at, column]
                    at += one
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


@device
def combined(state, partial, head, splits, window, step, i, tops, totals):
    """Dimension ``i`` of a block's head, put together of its parts; every thread calls it."""
    thread = cuda.threadIdx.x
    which = cuda.blockIdx.x
    row = cuda.blockIdx.y + (state[HEAD_FIRST] if head else 0)
    size = partial.shape[3] - 2
    if step > 0:
        end = state[POSITION] + 1
        since = 0
        if window > 0:
            since = max(0, end - window) // step * step
        splits = min(splits, (end - since + step - 1) // step)
    top = float32(LOWEST)
    value = float32(0)
    total = float32(0)
    # As many splits at once as there are threads to weigh them.
    for start in range(0, splits, COMBINE_THREADS):
        count = min(COMBINE_THREADS, splits - start)
        cuda.syncthreads()
        mine = float32(LOWEST)
        if thread < count:
            mine = partial[row, which, start + thread, size]
            totals[thread] = partial[row, which, start + thread, size + 1]
        tops[thread] = mine
        cuda.syncthreads()
        highest = top
        for each in range(count):
            highest = max(highest, tops[each])
        kept = math.exp(max(top - highest, float32(-87)))
        value *= kept
        total *= kept
        top = highest
        cuda.syncthreads()
        tops[thread] = math.exp(max(mine - top, float32(-87))) if thread < count else float32(0)
        cuda.syncthreads()
        for each in range(count):
            total += tops[each] * totals[each]
        for first in range(0, count, COMBINE_BATCH):
            # All of a batch are on their way before the first is used; behind the last, weights
            # are 0.
            for each in range(COMBINE_BATCH):
                split = start + min(first + each, count - 1)
                value += tops[first + each] * partial[row, which, split, i]
    return value / total


@kernel
def combine(state, partial, head, splits, window, step, output):
    """The parts of each head put together; ``blocks = (heads, tokens)``.

    Where ``head`` is set, tokens are counted from the first whose logits are wanted. Where ``step``
    is set there is one token, and of its splits of so many positions those that it sees.
    """
    tops = cuda.shared.array(COMBINE_THREADS, float32)
    totals = cuda.shared.array(COMBINE_THREADS, float32)
    size = partial.shape[3] - 2
    for first in range(0, size, COMBINE_THREADS):
        i = first + cuda.threadIdx.x
        value = combined(state, partial, head, splits, window, step, min(i, size - 1), tops, totals)
        if i < size:
            output[cuda.blockIdx.y, cuda.blockIdx.x * size + i] = value


def as_bytes(head_dim: int, group_size: int) -> bool:
    """Whether a block of :func:`combine_bytes` has whole groups of columns.

    >>> as_bytes(128, 64), as_bytes(64, 128), as_bytes(80, 32)
    (True, False, False)
    """
    return head_dim % group_size == 0 and head_dim <= 4 * COMBINE_THREADS


@cache
def combine_bytes(head_dim: int, group_size: int, planes: int):
    """As :func:`combine`, with the rows as bytes, for heads of whole groups."""
    to_bytes = bytes_of(group_size, planes)

    @kernel
    def combine_bytes(state, partial, head, splits, window, step, high, low, factors, sums):
        tops = cuda.shared.array(COMBINE_THREADS, float32)
        totals = cuda.shared.array(COMBINE_THREADS, float32)
        row = cuda.shared.array(head_dim, float32)
        thread = cuda.threadIdx.x
        for first in range(0, head_dim, COMBINE_THREADS):
            i = first + thread
            value = combined(
                state, partial, head, splits, window, step, min(i, head_dim - 1), tops, totals
            )
            if i < head_dim:
                row[i] = value
        cuda.syncthreads()
        there = 4 * thread < head_dim
        values = (float32(0), float32(0), float32(0), float32(0))
        if there:
            k = 4 * thread
            values = (row[k], row[k + 1], row[k + 2], row[k + 3])
        word = cuda.blockIdx.x * (head_dim // 4) + thread
        to_bytes(values, there, cuda.blockIdx.y, word, high, low, factors, sums)

    return combine_bytes
