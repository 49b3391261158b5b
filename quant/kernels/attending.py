"""The steps that know positions: RoPE, attention, and what is kept aside of a chunk."""

from __future__ import annotations

import numpy as np

from . import attention, pointwise
from .jit import kernel
from .table import f32, view


@kernel
def is_aside(step, span):
    """Whether a sequence's part of a pass must be kept aside.

    It must where its end would overwrite keys that its start still sees, and where it is not to
    be kept.
    """
    wraps = span.tokens > 1 and span.position + span.tokens > step.ring_slots
    return wraps or span.kept == 0


@kernel
def rows_of(span, head):
    """The first token that a step works on, how many, and the row of the first one's output."""
    if head:
        return span.tokens - span.wanted, span.wanted, span.head_row
    return 0, span.tokens, span.row


@kernel
def single(spans, head):
    """The number of the span that has the one token which a step works on."""
    for i in range(spans.size):
        if rows_of(spans[i], head)[1] == 1:
            return i
    return 0


@kernel
def first_seen(step, position):
    """The first position that the token at ``position`` sees."""
    return max(0, position - step.window + 1) if step.window > 0 else 0


@kernel
def tokens_together(step, tokens):
    """Tokens whose queries go through the keys together."""
    return max(1, min(tokens, attention.QUERIES // (step.heads // step.kv_heads)))


@kernel
def splits_seen(step, position):
    """Splits that hold what the token at ``position`` sees."""
    return position // attention.SPLIT - first_seen(step, position) // attention.SPLIT + 1


@kernel
def rope(step, row, span, kv):
    """Rotate a row's queries and keys; keys and values go to its sequence's ring, or aside."""
    token = row - span.row
    position = span.position
    query = f32(step.x)
    cosines = f32(step.cosines)
    sines = f32(step.sines)
    size = 2 * step.half
    scale = np.float32(1.0 / np.sqrt(np.float64(size)))
    for head in range(step.heads):
        at = row * step.x_stride + head * size
        pointwise.rotate_head(query, at, step.half, cosines, sines, row * step.half, scale)
    aside = is_aside(step, span)
    slots = step.chunk_slots if aside else step.ring_slots
    slot = (position + token) % step.ring_slots
    if aside:
        slot = span.aside + position % attention.TILE + token
    for head in range(step.kv_heads):
        attention.store_key_value(
            f32(step.key), f32(step.value), row * step.kv_stride + head * size, size,
            cosines, sines, row * step.half,
            view(step.chunk_keys if aside else step.ring_keys, kv),
            view(step.chunk_values if aside else step.ring_values, kv),
            f32(step.chunk_key_scales if aside else step.ring_key_scales),
            f32(step.chunk_value_scales if aside else step.ring_value_scales),
            head if aside else _ring_head(step, span, head), slot, slots,
        )  # fmt: skip
    if aside and token == 0:
        # The tile in which the chunk begins is read from aside; it needs its beginning there too.
        for slot in range(position % attention.TILE):
            for head in range(step.kv_heads):
                start = position - position % attention.TILE
                _copy(step, span, head, start + slot, span.aside + slot, False, kv)


@kernel
def _ring_head(step, span, head):
    """A head's number among the rings of all sequences, which lie one behind the other."""
    return span.sequence * step.kv_heads + head


@kernel
def _copy(step, span, head, position, slot, to_ring, kv):
    """Copy a position between ``slot`` of what is kept aside and its place in the ring."""
    ring_keys, chunk_keys = view(step.ring_keys, kv), view(step.chunk_keys, kv)
    ring_values, chunk_values = view(step.ring_values, kv), view(step.chunk_values, kv)
    ring_scales, chunk_scales = f32(step.ring_key_scales), f32(step.chunk_key_scales)
    ring_others, chunk_others = f32(step.ring_value_scales), f32(step.chunk_value_scales)
    place = position % step.ring_slots
    if to_ring:
        attention.copy_slot(
            chunk_keys, chunk_values, chunk_scales, chunk_others, head, slot, step.chunk_slots,
            ring_keys, ring_values, ring_scales, ring_others,
            _ring_head(step, span, head), place, step.ring_slots, 2 * step.half,
        )  # fmt: skip
    else:
        attention.copy_slot(
            ring_keys, ring_values, ring_scales, ring_others,
            _ring_head(step, span, head), place, step.ring_slots,
            chunk_keys, chunk_values, chunk_scales, chunk_others, head, slot, step.chunk_slots,
            2 * step.half,
        )  # fmt: skip


@kernel
def shares_of(step, count):
    """Into how many shares a sequence's ``count`` tokens fall, each with its queries together."""
    together = tokens_together(step, count)
    return (count + together - 1) // together


@kernel
def attend(step, unit, spans, count, kv, thread):
    """One KV head of one sequence: some of its tokens, or one split of what a single token sees.

    ``count`` tokens are at work in all sequences together. The thread's scratch holds queries
    [size, width], scores [width, TILE], a split's output [width, size] and state [width, 2], its
    tokens' [width, size] and [width, 2], factors [width].
    """
    number = 0
    if count == 1:
        number = single(spans, step.head)
    else:
        share = unit // step.kv_heads
        while True:
            _, tokens, _ = rows_of(spans[number], step.head)
            shares = shares_of(step, tokens) if tokens > 0 else 0
            if share < shares:
                break
            share -= shares
            number += 1
            unit -= shares * step.kv_heads
    _attend(step, unit, spans[number], count == 1, kv, thread)


@kernel
def _attend(step, unit, span, alone, kv, thread):
    first, tokens, row = rows_of(span, step.head)
    position = span.position
    group = step.heads // step.kv_heads
    size = 2 * step.half
    head = unit % step.kv_heads
    together = tokens_together(step, tokens)
    # The last tokens of a prompt see most; they come first, so that no thread ends with them.
    start = 0
    if not alone:
        start = (shares_of(step, tokens) - 1 - unit // step.kv_heads) * together
    count = min(together, tokens - start)
    queries = count * group
    width = (queries + 7) // 8 * 8
    scratch = step.scratch + 4 * thread * step.scratch_stride
    query = f32(scratch)
    scores = f32(scratch + 4 * width * size)
    part = f32(scratch + 4 * width * (size + attention.TILE))
    output = f32(scratch + 4 * width * (2 * size + attention.TILE))
    part_state = f32(scratch + 4 * width * (3 * size + attention.TILE))
    state = f32(scratch + 4 * width * (3 * size + attention.TILE + 2))
    factors = f32(scratch + 4 * width * (3 * size + attention.TILE + 4))
    x = f32(step.x)
    for q in range(queries):
        token = span.row + first + start + q // group
        at = token * step.x_stride + (head * group + q % group) * size
        for d in range(size):
            query[d * width + q] = x[at + d]
    first_split = first_seen(step, position + first + start) // attention.SPLIT
    last_split = (position + first + start + count - 1) // attention.SPLIT
    if alone:
        first_split += unit // step.kv_heads
        last_split = first_split
    else:
        _clear(output, state, queries, size)
    for split in range(first_split, last_split + 1):
        _clear(part, part_state, queries, size)
        _attend_split(
            step, span, head, split * attention.SPLIT, first + start, count, kv,
            query, width, scores, part, part_state, factors,
        )  # fmt: skip
        if not alone:
            for q in range(queries):
                attention.merge(
                    part, q * size, part_state, 2 * q, output, q * size, state, 2 * q, size
                )
    if alone:
        parts = f32(step.parts)
        for q in range(queries):
            at = (unit // step.kv_heads * step.heads + head * group + q) * (size + 2)
            parts[at] = part_state[2 * q]
            parts[at + 1] = part_state[2 * q + 1]
            for d in range(size):
                parts[at + 2 + d] = part[q * size + d]
        return
    for q in range(queries):
        at = (row + start + q // group) * step.output_stride + (head * group + q % group) * size
        _write_output(step, output, q * size, state[2 * q + 1], at, size)


@kernel
def _write_output(step, source, source_at, total, at, size):
    output = f32(step.output)
    inverse = np.float32(1) / total
    for d in range(size):
        output[at + d] = source[source_at + d] * inverse


@kernel
def _clear(output, state, queries, size):
    for q in range(queries):
        state[2 * q] = np.float32(attention.UNSEEN)
        state[2 * q + 1] = np.float32(0)
    for i in range(queries * size):
        output[i] = np.float32(0)


@kernel
def _attend_split(
    step, span, head, split, start, count, kv,
    query, width, scores, part, state, factors,
):  # fmt: skip
    """The tiles from position ``split`` on that any of ``count`` tokens from ``start`` on sees."""
    group = step.heads // step.kv_heads
    size = 2 * step.half
    position = span.position
    oldest = first_seen(step, position + start)
    newest = position + start + count - 1
    begin = position - position % attention.TILE  # of the chunk, where it is kept aside
    apart = is_aside(step, span)
    for tile in range(split, min(split + attention.SPLIT, newest + 1), attention.TILE):
        if tile + attention.TILE <= oldest:
            continue
        aside = apart and tile >= begin
        slot = head * step.chunk_slots + span.aside + tile - begin
        if not aside:
            slot = _ring_head(step, span, head) * step.ring_slots + tile % step.ring_slots
        keys = view(step.chunk_keys if aside else step.ring_keys, kv)
        values = view(step.chunk_values if aside else step.ring_values, kv)
        key_scales = f32(step.chunk_key_scales if aside else step.ring_key_scales)
        value_scales = f32(step.chunk_value_scales if aside else step.ring_value_scales)
        attention.tile_scores(query, width, count * group, size, keys, slot * size, scores)
        for q in range(count * group):
            here = position + start + q // group
            factors[q] = attention.softmax_tile(
                scores, q * attention.TILE,
                max(0, first_seen(step, here) - tile), min(attention.TILE, here + 1 - tile),
                key_scales, value_scales, slot, state, 2 * q,
            )  # fmt: skip
        attention.tile_values(
            scores, count * group, max(0, oldest - tile), min(attention.TILE, newest + 1 - tile),
            factors, values, slot * size, size, part,
        )  # fmt: skip


@kernel
def merge_splits(step, head, position):
    """Merge the splits of a single token's query head."""
    size = 2 * step.half
    parts = f32(step.parts)
    at = head * (size + 2)
    for split in range(1, splits_seen(step, position)):
        other = (split * step.heads + head) * (size + 2)
        attention.merge(parts, other + 2, parts, other, parts, at + 2, parts, at, size)
    _write_output(step, parts, at + 2, parts[at + 1], head * size, size)


@kernel
def commit(step, head, span, kv):
    """Write what was kept aside into the ring; of more than the ring holds, the end."""
    if span.kept == 0 or not is_aside(step, span):
        return
    start = span.aside + span.position % attention.TILE
    for token in range(max(0, span.tokens - step.ring_slots), span.tokens):
        _copy(step, span, head, span.position + token, start + token, True, kv)
