"""Attention of a single token, split along positions (Flash-Decoding), as decode needs it.

A block takes one split of positions for the queries that share a head of keys; each thread asks
for all its keys, later for all its values, before it needs the first. The parts are put together
by :func:`quant.backends.cuda.attention.combine`.
"""

from __future__ import annotations

import math
from functools import cache

from numba import cuda, float32, int32, uint32

from .jit import SIMULATED, WARP, device, kernel, read4
from .pointwise import POSITION, warp_max, warp_sum

THREADS = 32 if SIMULATED else 256
SPLIT = 64 if SIMULATED else 128
"""Positions of a split, whole blocks of 16."""

QUERIES = 4
"""Queries of a block, at most; where more share a head of keys, several blocks read it."""

DIMENSIONS = 8
"""Neighbouring dimensions of 16 keys that a warp reads at once, 256 bytes of float16."""

LOWEST = -3.0e38


def fits(head_dim: int) -> bool:
    """Whether heads of a size can be cut as this kernel needs it.

    >>> fits(128), fits(80), fits(20)
    (True, True, False)
    """
    return head_dim % DIMENSIONS == 0 and head_dim // 4 <= THREADS


def batch_for(count: int) -> int:
    """Loads that are asked for together: the largest divisor of ``count`` up to eight.

    >>> batch_for(16), batch_for(10), batch_for(11)
    (8, 5, 1)
    """
    return max(each for each in range(1, 9) if count % each == 0)


@device
def wrapped(slot, slots):
    """A slot of the ring, for one less than a split behind it; rings have a tile of 64 or more."""
    if slot >= slots:
        slot -= slots
    if slot >= slots:
        slot -= slots
    return slot


@cache
def decode_attention(kind: str, head_dim: int, group: int):
    """Parts of softmax attention for one token; ``blocks = (splits, kv heads, query tiles)``.

    ``query tiles`` are ``ceil(group / QUERIES)``. ``partial`` float32 [1, heads, splits,
    head_dim + 2] is as :func:`~quant.backends.cuda.attention.attention` has it; splits of which the
    token sees nothing are not written. The token's own key is in the ring already.
    """
    eight = kind == "int8"
    most = min(group, QUERIES)
    steps = head_dim // DIMENSIONS
    quads = head_dim // 4
    rows = THREADS // quads  # positions whose values are read at once
    rounds = -(-SPLIT // rows)
    batch, batch_of_values = batch_for(steps), batch_for(rounds)
    # Sums of a dimension lie four banks from the next one's, so that a warp writes to all banks.
    stride = most * SPLIT + 4
    room_size = max(DIMENSIONS * stride, rows * most * head_dim)
    pieces = SPLIT // WARP  # of a split, each a warp's
    items = -(-most * SPLIT // THREADS)  # scores of a thread

    @kernel
    def decode_attention(state, q, window, partial, keys, values, key_scales, value_scales):
        queries = cuda.shared.array((most, head_dim), float32)
        room = cuda.shared.array(room_size, float32)
        scores = cuda.shared.array((most, SPLIT), float32)
        tops = cuda.shared.array((most, pieces), float32)
        totals = cuda.shared.array((most, pieces), float32)
        sums = cuda.local.array((most, 4), float32)
        held = cuda.local.array((batch, 4), float32)
        kept = cuda.local.array((batch_of_values, 4), float32)
        mine = cuda.local.array(items, float32)
        thread = cuda.threadIdx.x
        shared = cuda.blockIdx.y
        end = state[POSITION] + 1
        oldest = 0
        if window > 0:
            oldest = max(0, end - window)
        first = oldest // SPLIT * SPLIT + cuda.blockIdx.x * SPLIT
        if first >= end:
            return
        # All positions are counted from the split's first, and whole numbers are short ones: a
        # remainder of long ones takes as long as a score.
        slots = int32(values.shape[1])
        first_slot = int32(first % values.shape[1])
        until = int32(min(end - first, SPLIT))
        since = int32(max(oldest - first, 0))
        first_query = cuda.blockIdx.z * most
        count = min(most, group - first_query)
        first_head = shared * group + first_query
        for index in range(thread, most * head_dim, THREADS):
            value = float32(0)
            if index // head_dim < count:
                value = q[0, first_head * head_dim + index]
            queries[index // head_dim, index % head_dim] = value
        cuda.syncthreads()
        # Scores: a warp takes 16 positions, four a thread; its lanes share out the dimensions.
        quad = thread % 4
        first_dim = uint32(thread % WARP // 4)
        for tile in range(thread // WARP, SPLIT // 16, THREADS // WARP):
            for query in range(most):
                for j in range(4):
                    sums[query, j] = float32(0)
            if 16 * tile < until:
                block = wrapped(first_slot + int32(16 * tile), slots) // 16
                for start in range(0, steps, batch):
                    # All of a batch are on their way before the first is used.
                    for each in range(batch):
                        i = first_dim + uint32(DIMENSIONS * (start + each))
                        four = read4(keys, (shared, block, i, 4 * quad))
                        for j in range(4):
                            held[each, j] = four[j]
                    for each in range(batch):
                        i = first_dim + uint32(DIMENSIONS * (start + each))
                        for query in range(most):
                            for j in range(4):
                                key = float32(held[each, j])
                                if eight:
                                    key -= float32(128)
                                sums[query, j] += queries[uint32(query), i] * key
            for query in range(most):
                for j in range(4):
                    at = first_dim * uint32(stride) + uint32(query * SPLIT + 16 * tile)
                    room[at + uint32(4 * j + quad)] = sums[query, j]
        cuda.syncthreads()
        # A warp has 32 scores of one query.
        for item in range(items):
            index = item * THREADS + thread
            query = index // SPLIT
            place = int32(index % SPLIT)
            score = float32(LOWEST)
            if query < most and since <= place < until:
                score = float32(0)
                turned = place % 4 * 4 + place % 16 // 4 - place % 16
                for each in range(DIMENSIONS):
                    score += room[uint32(each * stride + index + turned)]
                if eight:
                    score *= key_scales[shared, wrapped(first_slot + place, slots)]
            mine[item] = score
            top = warp_max(score, WARP)
            if thread % WARP == 0 and query < most:
                tops[query, place // WARP] = top
        cuda.syncthreads()
        for item in range(items):
            index = item * THREADS + thread
            query = min(index // SPLIT, most - 1)
            top = tops[query, 0]
            for each in range(1, pieces):
                top = max(top, tops[query, each])
            weight = float32(0)
            if index < most * SPLIT:
                if mine[item] > float32(LOWEST):
                    weight = math.exp(max(mine[item] - top, float32(-87)))
                scores[query, index % SPLIT] = weight
            total = warp_sum(weight, WARP)
            if thread % WARP == 0 and index < most * SPLIT:
                totals[query, index % SPLIT // WARP] = total
        cuda.syncthreads()
        # Values: a thread takes four dimensions of every ``rows``-th position.
        row = thread // quads
        if row < rows:
            for query in range(most):
                for j in range(4):
                    sums[query, j] = float32(0)
            for start in range(0, rounds, batch_of_values):
                for each in range(batch_of_values):
                    place = int32((start + each) * rows + row)
                    slot = wrapped(first_slot + min(place, until - 1), slots)
                    four = read4(values, (shared, slot, 4 * (thread % quads)))
                    scale = float32(1)
                    if eight:
                        scale = value_scales[shared, slot]
                    for j in range(4):
                        value = float32(four[j])
                        if eight:
                            value = (value - float32(128)) * scale
                        kept[each, j] = value
                for each in range(batch_of_values):
                    place = (start + each) * rows + row
                    for query in range(most):
                        weight = float32(0)
                        if place < SPLIT:
                            weight = scores[uint32(query), uint32(place)]
                        for j in range(4):
                            sums[query, j] += weight * kept[each, j]
            for query in range(most):
                for j in range(4):
                    at = (row * most + query) * head_dim + j * quads
                    room[uint32(at + thread % quads)] = sums[query, j]
        cuda.syncthreads()
        split = cuda.blockIdx.x
        for index in range(thread, count * head_dim, THREADS):
            total = float32(0)
            for each in range(rows):
                total += room[uint32(each * most * head_dim + index)]
            i = index % head_dim
            partial[0, first_head + index // head_dim, split, i % quads * 4 + i // quads] = total
        for query in range(thread, count, THREADS):
            top = tops[query, 0]
            total = totals[query, 0]
            for each in range(1, pieces):
                top = max(top, tops[query, each])
                total += totals[query, each]
            partial[0, first_head + query, split, head_dim] = top
            partial[0, first_head + query, split, head_dim + 1] = total

    return decode_attention
