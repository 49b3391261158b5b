"""Grouped-query attention over the rolling buffer and the chunk that is being read.

Keys lie in blocks of 16 positions, dimension by dimension:
``keys[head, slot // 16, d, slot % 16]``, so that one vector holds one dimension of 16 keys and
scores need no sum across lanes. Values lie row by row: ``values[head, slot, d]``. Elements are
float32, float16 (as uint16) or int8 (as ``value + 128`` in uint8, with one scale for each head and
slot). A key or value is read once for all the queries at work: those that share its head, in a
prompt those of several tokens.

Positions are taken in *tiles* of 64 with the online softmax (a running maximum, a running sum and a
running output, rescaled when a larger score comes by), and tiles in *splits* of 256, which start
anew and are merged in order. So the splits of one token can be shared out among threads. Tiles and
splits depend on positions alone, not on how a prompt was cut into chunks or who worked on it, and
so does every bit of the result.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .jit import kernel
from .pointwise import exp, rotate_head
from .simd import LANES, fma, load, max_lanes, maximum, splat, store, store_one, sum_lanes
from .tiles import add_outer_tile, load_tile, load_vectors, store_tile, zeros_f32

TILE = 64
"""Positions whose scores are computed before their values are added up."""

SPLIT = 256
"""Positions after which the softmax starts anew, to be merged later."""

UNSEEN = -1e30
"""The score of a key that is not seen; finite, so that no difference is NaN."""

QUERIES = 16
"""Queries that a prompt's tokens bring together over one pass of keys, or one group's, if more."""


def _score_tile(blocks: int, queries: int) -> Any:
    """Scores of ``blocks`` blocks of 16 keys times ``queries`` queries, in registers."""
    size_of_tile = blocks * queries

    @kernel
    def tile(query, query_at, width, size, keys, keys_at, scores, scores_at):
        """``query`` is [size, width], dimension by dimension; ``scores`` [queries, TILE]."""
        sums = zeros_f32(size_of_tile)
        for d in range(size):
            rows = load_vectors(keys, keys_at + d * LANES, size * LANES, blocks)
            sums = add_outer_tile(sums, rows, query, query_at + d * width, 1)
        store_tile(scores, scores_at, LANES, TILE, sums, rows)

    return tile


def _value_tile(vectors: int, queries: int) -> Any:
    """``vectors`` times 16 dimensions of the output of ``queries`` queries, in registers."""

    @kernel
    def tile(
        weights, weights_at, start, end, factors, factors_at, values, values_at, size, out, at
    ):
        """``out = out * factor + sum of weights[j] * values[j]``, j from ``start`` to ``end - 1``.

        ``weights`` is [queries, TILE], ``out`` [queries, size].
        """
        sums = load_tile(out, at, size, factors, factors_at, vectors, queries)
        for j in range(start, end):
            rows = load_vectors(values, values_at + j * size, LANES, vectors)
            sums = add_outer_tile(sums, rows, weights, weights_at + j, TILE)
        store_tile(out, at, LANES, size, sums, load_vectors(out, at, LANES, vectors))

    return tile


# Tall tiles for one token's few queries, wide ones for a prompt's many.
scores_4x4 = _score_tile(4, 4)
scores_2x8 = _score_tile(2, 8)
values_4x4 = _value_tile(4, 4)
values_2x8 = _value_tile(2, 8)
values_1x8 = _value_tile(1, 8)


@kernel
def tile_scores(query, width, queries, size, keys, keys_at, scores):
    """Scores of ``queries`` queries against a tile of keys, [queries rounded up, TILE]."""
    if queries <= 4:
        scores_4x4(query, 0, width, size, keys, keys_at, scores, 0)
        return
    for q in range(0, queries, 8):
        for block in range(0, TILE, 2 * LANES):
            at = keys_at + block * size
            scores_2x8(query, q, width, size, keys, at, scores, q * TILE + block)


@kernel
def tile_values(weights, queries, start, end, factors, values, values_at, size, out):
    """Add a tile's values to the output of ``queries`` queries."""
    for q in range(0, queries, 4 if queries <= 4 else 8):
        d = 0
        while d < size:
            w, at = q * TILE, q * size + d
            if queries <= 4 and d + 4 * LANES <= size:
                values_4x4(weights, w, start, end, factors, q, values, values_at + d, size, out, at)
                d += 4 * LANES
            elif d + 2 * LANES <= size:
                values_2x8(weights, w, start, end, factors, q, values, values_at + d, size, out, at)
                d += 2 * LANES
            else:
                values_1x8(weights, w, start, end, factors, q, values, values_at + d, size, out, at)
                d += LANES


@kernel
def softmax_tile(scores, at, start, end, key_scales, value_scales, scales_at, state, state_at):
    """Turn a tile's scores into weights against the running maximum; return the rescaling factor.

    Scores before ``start`` and from ``end`` on belong to keys that are not seen; their weight is 0.
    ``state[state_at]`` is the maximum so far, ``state[state_at + 1]`` the sum so far. The weights
    come out times the scales of the values.
    """
    if start >= end:
        for i in range(TILE):
            scores[at + i] = np.float32(0)
        return np.float32(1)
    if key_scales.size > 0:
        for i in range(0, TILE, LANES):
            store(scores, at + i, load(scores, at + i) * load(key_scales, scales_at + i))
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
    if value_scales.size > 0:
        for i in range(0, TILE, LANES):
            store(scores, at + i, load(scores, at + i) * load(value_scales, scales_at + i))
    return factor


@kernel
def merge(part, part_at, part_state, part_state_at, out, out_at, state, state_at, size):
    """Add a split's output and softmax state to those of the splits before it."""
    before = state[state_at]
    now = max(before, part_state[part_state_at])
    old = np.float32(math.exp(before - now))
    new = np.float32(math.exp(part_state[part_state_at] - now))
    state[state_at] = now
    state[state_at + 1] = state[state_at + 1] * old + part_state[part_state_at + 1] * new
    for d in range(0, size, LANES):
        kept = load(out, out_at + d) * splat(old)
        store(out, out_at + d, fma(load(part, part_at + d), splat(new), kept))


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
    from_keys, from_values, from_key_scales, from_value_scales, from_head, from_slot, from_slots,
    keys, values, key_scales, value_scales, head, slot, slots, size,
):  # fmt: skip
    """Copy one position of one head to another place."""
    source = (from_head * from_slots + from_slot // LANES * LANES) * size + from_slot % LANES
    target = (head * slots + slot // LANES * LANES) * size + slot % LANES
    for i in range(size):
        keys[target + i * LANES] = from_keys[source + i * LANES]
    source = (from_head * from_slots + from_slot) * size
    target = (head * slots + slot) * size
    for i in range(size):
        values[target + i] = from_values[source + i]
    if key_scales.size > 0:
        key_scales[head * slots + slot] = from_key_scales[from_head * from_slots + from_slot]
        value_scales[head * slots + slot] = from_value_scales[from_head * from_slots + from_slot]
