"""Grouped-query attention over the rolling buffer and the chunk that is being read.

Keys lie in blocks of 16 positions, dimension by dimension:
``keys[head, slot // 16, d, slot % 16]``, so that one vector holds one dimension of 16 keys and
scores need no sum across lanes. Values lie row by row: ``values[head, slot, d]``. Elements are
float32, float16 (as uint16) or int8 (as ``value + 128`` in uint8, with one scale for each head and
slot).

Positions are taken in *tiles* of 64, tile ``n`` being positions ``64 n`` to ``64 n + 63``, with the
online softmax: a running maximum, a running sum and a running output, rescaled when a larger score
comes by. The tiles depend on positions alone and not on how a prompt was cut into chunks, so
neither does a single bit of the result.
"""

from __future__ import annotations

import math

import numpy as np

from ..jit import kernel
from ..simd import (
    LANES,
    fma,
    load,
    max_lanes,
    maximum,
    splat,
    store,
    store_one,
    sum_lanes,
)
from .pointwise import exp, rotate_head

TILE = 64
"""Positions whose scores are computed before their values are added up."""

UNSEEN = -1e30
"""The score of a key that is not seen; finite, so that no difference is NaN."""


@kernel
def tile_scores(query, query_at, size, keys, keys_at, scales, scales_at, scores, scores_at):
    """Scores of one query against the ``TILE`` keys of 4 blocks; the query carries 1/sqrt(size)."""
    a = splat(np.float32(0))
    b = a
    c = a
    d = a
    block = size * LANES
    for i in range(size):
        q = splat(query[query_at + i])
        at = keys_at + i * LANES
        a = fma(q, load(keys, at), a)
        b = fma(q, load(keys, at + block), b)
        c = fma(q, load(keys, at + 2 * block), c)
        d = fma(q, load(keys, at + 3 * block), d)
    if scales.size > 0:
        a = a * load(scales, scales_at)
        b = b * load(scales, scales_at + LANES)
        c = c * load(scales, scales_at + 2 * LANES)
        d = d * load(scales, scales_at + 3 * LANES)
    store(scores, scores_at, a)
    store(scores, scores_at + LANES, b)
    store(scores, scores_at + 2 * LANES, c)
    store(scores, scores_at + 3 * LANES, d)


@kernel
def softmax_tile(scores, at, start, end, state, state_at):
    """Turn a tile's scores into weights against the running maximum; return the rescaling factor.

    Scores before ``start`` and from ``end`` on belong to keys that are not seen; their weight is 0.
    ``state[state_at]`` is the maximum so far, ``state[state_at + 1]`` the sum so far.
    """
    for i in range(start):
        scores[at + i] = np.float32(UNSEEN)
    for i in range(end, TILE):
        scores[at + i] = np.float32(UNSEEN)
    largest = load(scores, at)
    for i in range(LANES, TILE, LANES):
        largest = maximum(largest, load(scores, at + i))
    before = state[state_at]
    now = max(before, max_lanes(largest))
    for i in range(0, TILE, LANES):
        store(scores, at + i, exp(load(scores, at + i) - splat(now)))
    for i in range(start):
        scores[at + i] = np.float32(0)
    for i in range(end, TILE):
        scores[at + i] = np.float32(0)
    total = splat(np.float32(0))
    for i in range(0, TILE, LANES):
        total = total + load(scores, at + i)
    factor = np.float32(math.exp(before - now))
    state[state_at] = now
    state[state_at + 1] = state[state_at + 1] * factor + sum_lanes(total)
    return factor


@kernel
def add_values(
    scores, at, start, end, factor, values, values_at, size, scales, scales_at, out, out_at
):
    """``out = out * factor + sum of scores[j] * values[j]`` over slots ``start`` to ``end - 1``."""
    if scales.size > 0:
        for j in range(0, TILE, LANES):
            store(scores, at + j, load(scores, at + j) * load(scales, scales_at + j))
    for d in range(0, size, LANES):
        total = load(out, out_at + d) * splat(factor)
        for j in range(start, end):
            total = fma(splat(scores[at + j]), load(values, values_at + j * size + d), total)
        store(out, out_at + d, total)


@kernel
def attend_tile(
    query, query_at, heads, size, keys, values, key_scales, value_scales, slot_at,
    start, end, scores, state, out, out_at,
):  # fmt: skip
    """Add the tile whose first slot is ``slot_at`` to the running softmax of ``heads`` queries.

    ``slot_at`` counts slots from the beginning of the arrays, heads included.
    """
    for h in range(heads):
        tile_scores(
            query, query_at + h * size, size, keys, slot_at * size, key_scales, slot_at,
            scores, h * TILE,
        )  # fmt: skip
    for h in range(heads):
        factor = softmax_tile(scores, h * TILE, start, end, state, 2 * h)
        add_values(
            scores, h * TILE, start, end, factor, values, slot_at * size, size,
            value_scales, slot_at, out, out_at + h * size,
        )  # fmt: skip


@kernel
def store_key_value(
    key, value, at, size, cosines, sines, angle_at, keys, values, key_scales, value_scales,
    head, slot, slots,
):  # fmt: skip
    """Rotate one head's key and write it and its value to ``slot`` in the cache's own format."""
    rotate_head(key, at, size // 2, cosines, sines, angle_at, np.float32(1))
    keys_at = (head * slots + slot // LANES * LANES) * size + slot % LANES
    values_at = (head * slots + slot) * size
    if key_scales.size > 0:
        key_scale = _scale_of(key, at, size)
        value_scale = _scale_of(value, at, size)
        key_scales[head * slots + slot] = key_scale
        value_scales[head * slots + slot] = value_scale
        for i in range(size):
            keys[keys_at + i * LANES] = np.uint8(np.rint(key[at + i] / key_scale) + 128)
            values[values_at + i] = np.uint8(np.rint(value[at + i] / value_scale) + 128)
    else:
        for i in range(size):
            store_one(keys, keys_at + i * LANES, key[at + i])
            store_one(values, values_at + i, value[at + i])


@kernel
def _scale_of(x, at, size):
    largest = np.float32(1e-30)
    for i in range(size):
        largest = max(largest, abs(x[at + i]))
    return largest / np.float32(127)


@kernel
def copy_slot(
    from_keys, from_values, from_key_scales, from_value_scales, from_slot, from_slots,
    keys, values, key_scales, value_scales, slot, slots, head, size,
):  # fmt: skip
    """Copy one position of one head from the chunk to the ring."""
    source = (head * from_slots + from_slot // LANES * LANES) * size + from_slot % LANES
    target = (head * slots + slot // LANES * LANES) * size + slot % LANES
    for i in range(size):
        keys[target + i * LANES] = from_keys[source + i * LANES]
    source = (head * from_slots + from_slot) * size
    target = (head * slots + slot) * size
    for i in range(size):
        values[target + i] = from_values[source + i]
    if key_scales.size > 0:
        key_scales[head * slots + slot] = from_key_scales[head * from_slots + from_slot]
        value_scales[head * slots + slot] = from_value_scales[head * from_slots + from_slot]
