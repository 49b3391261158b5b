"""The forward pass as a program: a table of steps that all threads walk through together.

``quant.model`` writes the steps once for a session; :func:`run` then carries them out for each
chunk of tokens in one call, without returning to Python. A step is a record of addresses and sizes.
Its work falls into units that threads claim; where the next step reads what this one wrote, all
threads meet first (``barrier``).
"""

from __future__ import annotations

import numba
import numpy as np

from . import attention, matmul, pointwise
from .jit import entry, kernel
from .matmul import DECODE_ROWS, EXACT_ROWS, EXACT_TOKENS, FAST_ROWS, FAST_TOKENS
from .threads import SPACING, atomic_add, pointer_to, share, wait_for_all

EMBED, NORM, QUANTIZE, MATMUL, FLOAT_MATMUL, ANGLES, ROPE, ATTENTION, MERGE, COMMIT, GATE = range(
    11
)
"""What a step does."""

_WHOLE_FIELDS = """
op barrier head
bits zero columns rows group_size planes
codes scales minimums weight ids
x x_stride delta delta_stride output output_stride gate up
high low x_scales x_sums x_totals
frequencies cosines sines half heads kv_heads
key value kv_stride
ring_keys ring_values ring_key_scales ring_value_scales ring_slots window
chunk_keys chunk_values chunk_key_scales chunk_value_scales chunk_slots
scratch scratch_stride parts
""".split()

STEP = np.dtype(
    [(name, np.int64) for name in _WHOLE_FIELDS] + [("epsilon", np.float32), ("unused", np.float32)]
)
"""One step: addresses of arrays (0: none), sizes in elements. Unused fields are 0."""

TOKEN_BLOCK = 288
"""Tokens that share a pass over a tile of weights: their bytes stay in the second-level cache."""

ANY = 1 << 40
"""Length of a view whose bounds are known to whoever wrote the step."""


@kernel
def _view(address, sample):
    """The array at ``address`` with the element type of ``sample``; empty if there is none."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), sample.dtype)


@kernel
def _f32(address):
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.float32)


@kernel
def _u16(address):
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.uint16)


@kernel
def _u8(address):
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.uint8)


@kernel
def _i8(address):
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.int8)


@kernel
def _i32(address):
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.int32)


@kernel
def _i64(address):
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.int64)


@kernel
def _aside(step, tokens, position):
    """Whether a chunk must be kept aside.

    It must where its end would overwrite keys that its start still sees.
    """
    return tokens > 1 and position + tokens > step.ring_slots


@kernel
def _tile_tokens(step, tokens):
    """Tokens in a tile of the products that read what ``step`` writes."""
    if tokens == 1:
        return 1
    return EXACT_TOKENS if step.planes == 2 else FAST_TOKENS


@kernel
def _first_seen(step, position):
    """The first position that the token at ``position`` sees."""
    return max(0, position - step.window + 1) if step.window > 0 else 0


@kernel
def _tokens_together(step, tokens):
    """Tokens whose queries go through the keys together."""
    return max(1, min(tokens, attention.QUERIES // (step.heads // step.kv_heads)))


@kernel
def _splits(step, position):
    """Splits that hold what the token at ``position`` sees."""
    return position // attention.SPLIT - _first_seen(step, position) // attention.SPLIT + 1


@kernel
def _units(step, first, tokens, chunk, position):
    """Into how many pieces the work of ``step`` on ``tokens`` tokens from ``first`` on falls.

    They belong to a chunk of ``chunk`` tokens at ``position``.
    """
    if tokens == 0:
        return 0
    if step.op == MATMUL:
        blocks = (step.rows + 15) // 16
        if tokens == 1:
            return (blocks + DECODE_ROWS - 1) // DECODE_ROWS
        rows = EXACT_ROWS if step.planes == 2 else FAST_ROWS
        return (blocks + rows - 1) // rows * ((tokens + TOKEN_BLOCK - 1) // TOKEN_BLOCK)
    if step.op == FLOAT_MATMUL:
        return (step.rows + 15) // 16
    if step.op == ATTENTION:
        together = _tokens_together(step, tokens)
        shares = (
            _splits(step, position + first) if tokens == 1 else (tokens + together - 1) // together
        )
        return shares * step.kv_heads
    if step.op == MERGE:
        return step.heads if tokens == 1 else 0
    if step.op in (NORM, GATE, QUANTIZE):
        # Whole tiles: their tokens' bytes share cache lines, which two threads would fight over.
        tile = _tile_tokens(step, tokens)
        return (tokens + tile - 1) // tile
    if step.op == COMMIT:
        return step.kv_heads if _aside(step, chunk, position) else 0
    return tokens


@kernel
def _embed(step, token):
    row = _i64(step.ids)[token]
    output = _f32(step.output)
    at = token * step.output_stride
    if step.bits == 32:
        weight = _f32(step.weight)
        for k in range(step.columns):
            output[at + k] = weight[row * step.columns + k]
    elif step.bits == 4:
        pointwise.embed_row_int4(
            _u8(step.codes), _u16(step.scales), _u16(step.minimums),
            step.columns, step.group_size, row, output, at,
        )  # fmt: skip
    else:
        pointwise.embed_row_int8(
            _u8(step.codes), _u16(step.scales), _u16(step.minimums),
            step.columns, step.group_size, row, output, at,
        )  # fmt: skip


@kernel
def _rows(step, unit, tokens, first):
    """A norm, a gate or bytes alone, for a tile of tokens.

    The residual stream has a row for each token of the chunk, and is read from row ``first`` on.
    """
    tile = _tile_tokens(step, tokens)
    output = _f32(step.output)
    for token in range(unit * tile, min(unit * tile + tile, tokens)):
        at = token * step.output_stride
        if step.op == NORM:
            pointwise.norm_row(
                _f32(step.x), _f32(step.delta), _f32(step.weight), step.epsilon,
                (first + token) * step.x_stride, token * step.delta_stride,
                step.columns, output, at,
            )  # fmt: skip
        elif step.op == GATE:
            pointwise.silu_mul_row(
                _f32(step.gate), _f32(step.up), token * step.x_stride, step.columns, output, at
            )
        if step.group_size > 0:
            pointwise.quantize_row(
                output, at, step.columns, step.group_size,
                2 if tokens == 1 else step.planes, token, tile, _i8(step.high), _i8(step.low),
                _f32(step.x_scales), _i32(step.x_sums), _f32(step.x_totals),
            )  # fmt: skip


@kernel
def _tile(tile, step, block, rows, token):
    blocks = (step.rows + 15) // 16
    tile(
        _u8(step.codes), _u16(step.scales), _u16(step.minimums), step.zero,
        step.columns, step.group_size, block, min(rows, blocks - block) - 1,
        _i8(step.high), _i8(step.low), _f32(step.x_scales), _i32(step.x_sums),
        _f32(step.x_totals), token, _f32(step.output), step.output_stride,
    )  # fmt: skip


@kernel
def _matmul(step, unit, tokens):
    if tokens == 1:
        if step.bits == 4:
            _tile(matmul.decode_int4, step, unit * DECODE_ROWS, DECODE_ROWS, 0)
        else:
            _tile(matmul.decode_int8, step, unit * DECODE_ROWS, DECODE_ROWS, 0)
        return
    rows = EXACT_ROWS if step.planes == 2 else FAST_ROWS
    tiles = ((step.rows + 15) // 16 + rows - 1) // rows
    start = unit // tiles * TOKEN_BLOCK
    end = min(start + TOKEN_BLOCK, tokens)
    block = unit % tiles * rows
    for token in range(start, end, _tile_tokens(step, tokens)):
        if step.planes == 2:
            if step.bits == 4:
                _tile(matmul.exact_int4, step, block, rows, token)
            else:
                _tile(matmul.exact_int8, step, block, rows, token)
        elif step.bits == 4:
            _tile(matmul.fast_int4, step, block, rows, token)
        else:
            _tile(matmul.fast_int8, step, block, rows, token)


@kernel
def _float_matmul(step, unit, tokens):
    for row in range(unit * 16, min(unit * 16 + 16, step.rows)):
        matmul.float_row(
            _f32(step.weight), step.columns, row, _f32(step.x), step.x_stride,
            tokens, _f32(step.output), step.output_stride,
        )  # fmt: skip


@kernel
def _rope(step, token, tokens, position, kv):
    """Rotate a token's queries and keys; keys and values go to the ring, or aside."""
    query = _f32(step.x)
    cosines = _f32(step.cosines)
    sines = _f32(step.sines)
    size = 2 * step.half
    scale = np.float32(1.0 / np.sqrt(np.float64(size)))
    for head in range(step.heads):
        at = token * step.x_stride + head * size
        pointwise.rotate_head(query, at, step.half, cosines, sines, token * step.half, scale)
    aside = _aside(step, tokens, position)
    slots = step.chunk_slots if aside else step.ring_slots
    slot = position % attention.TILE + token if aside else (position + token) % step.ring_slots
    for head in range(step.kv_heads):
        attention.store_key_value(
            _f32(step.key), _f32(step.value), token * step.kv_stride + head * size, size,
            cosines, sines, token * step.half,
            _view(step.chunk_keys if aside else step.ring_keys, kv),
            _view(step.chunk_values if aside else step.ring_values, kv),
            _f32(step.chunk_key_scales if aside else step.ring_key_scales),
            _f32(step.chunk_value_scales if aside else step.ring_value_scales),
            head, slot, slots,
        )  # fmt: skip
    if aside and token == 0:
        # The tile in which the chunk begins is read from aside; it needs its beginning there too.
        for slot in range(position % attention.TILE):
            for head in range(step.kv_heads):
                _copy(step, head, position - position % attention.TILE + slot, slot, False, kv)


@kernel
def _copy(step, head, position, slot, to_ring, kv):
    """Copy a position between ``slot`` of the chunk and its place in the ring."""
    ring_keys, chunk_keys = _view(step.ring_keys, kv), _view(step.chunk_keys, kv)
    ring_values, chunk_values = _view(step.ring_values, kv), _view(step.chunk_values, kv)
    ring_scales, chunk_scales = _f32(step.ring_key_scales), _f32(step.chunk_key_scales)
    ring_others, chunk_others = _f32(step.ring_value_scales), _f32(step.chunk_value_scales)
    place = position % step.ring_slots
    if to_ring:
        attention.copy_slot(
            chunk_keys, chunk_values, chunk_scales, chunk_others, slot, step.chunk_slots,
            ring_keys, ring_values, ring_scales, ring_others, place, step.ring_slots,
            head, 2 * step.half,
        )  # fmt: skip
    else:
        attention.copy_slot(
            ring_keys, ring_values, ring_scales, ring_others, place, step.ring_slots,
            chunk_keys, chunk_values, chunk_scales, chunk_others, slot, step.chunk_slots,
            head, 2 * step.half,
        )  # fmt: skip


@kernel
def _attention(step, unit, first, tokens, chunk, position, kv, thread):
    """One KV head: of a prompt some tokens, of a single token one split of what it sees.

    The thread's scratch holds queries [size, width], scores [width, TILE], a split's output
    [width, size] and state [width, 2], its tokens' [width, size] and [width, 2], factors [width].
    """
    group = step.heads // step.kv_heads
    size = 2 * step.half
    head = unit % step.kv_heads
    together = _tokens_together(step, tokens)
    # The last tokens of a prompt see most; they come first, so that no thread ends with them.
    start = 0
    if tokens > 1:
        start = ((tokens + together - 1) // together - 1 - unit // step.kv_heads) * together
    count = min(together, tokens - start)
    queries = count * group
    width = (queries + 7) // 8 * 8
    scratch = step.scratch + 4 * thread * step.scratch_stride
    query = _f32(scratch)
    scores = _f32(scratch + 4 * width * size)
    part = _f32(scratch + 4 * width * (size + attention.TILE))
    output = _f32(scratch + 4 * width * (2 * size + attention.TILE))
    part_state = _f32(scratch + 4 * width * (3 * size + attention.TILE))
    state = _f32(scratch + 4 * width * (3 * size + attention.TILE + 2))
    factors = _f32(scratch + 4 * width * (3 * size + attention.TILE + 4))
    x = _f32(step.x)
    for q in range(queries):
        at = (first + start + q // group) * step.x_stride + (head * group + q % group) * size
        for d in range(size):
            query[d * width + q] = x[at + d]
    first_split = _first_seen(step, position + first + start) // attention.SPLIT
    last_split = (position + first + start + count - 1) // attention.SPLIT
    if tokens == 1:
        first_split += unit // step.kv_heads
        last_split = first_split
    else:
        _clear(output, state, queries, size)
    for split in range(first_split, last_split + 1):
        _clear(part, part_state, queries, size)
        _attend_split(
            step, head, split * attention.SPLIT, first + start, count, chunk, position, kv,
            query, width, scores, part, part_state, factors,
        )  # fmt: skip
        if tokens > 1:
            for q in range(queries):
                attention.merge(
                    part, q * size, part_state, 2 * q, output, q * size, state, 2 * q, size
                )
    if tokens == 1:
        parts = _f32(step.parts)
        for q in range(queries):
            at = (unit // step.kv_heads * step.heads + head * group + q) * (size + 2)
            parts[at] = part_state[2 * q]
            parts[at + 1] = part_state[2 * q + 1]
            for d in range(size):
                parts[at + 2 + d] = part[q * size + d]
        return
    for q in range(queries):
        at = (start + q // group) * step.output_stride + (head * group + q % group) * size
        _write_output(step, output, q * size, state[2 * q + 1], at, size)


@kernel
def _write_output(step, source, source_at, total, at, size):
    output = _f32(step.output)
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
    step, head, split, start, count, chunk, position, kv,
    query, width, scores, part, state, factors,
):  # fmt: skip
    """The tiles from position ``split`` on that any of ``count`` tokens from ``start`` on sees."""
    group = step.heads // step.kv_heads
    size = 2 * step.half
    oldest = _first_seen(step, position + start)
    newest = position + start + count - 1
    begin = position - position % attention.TILE  # of the chunk, where it is kept aside
    apart = _aside(step, chunk, position)
    for tile in range(split, min(split + attention.SPLIT, newest + 1), attention.TILE):
        if tile + attention.TILE <= oldest:
            continue
        aside = apart and tile >= begin
        slot = head * step.chunk_slots + tile - begin
        if not aside:
            slot = head * step.ring_slots + tile % step.ring_slots
        keys = _view(step.chunk_keys if aside else step.ring_keys, kv)
        values = _view(step.chunk_values if aside else step.ring_values, kv)
        key_scales = _f32(step.chunk_key_scales if aside else step.ring_key_scales)
        value_scales = _f32(step.chunk_value_scales if aside else step.ring_value_scales)
        attention.tile_scores(query, width, count * group, size, keys, slot * size, scores)
        for q in range(count * group):
            here = position + start + q // group
            factors[q] = attention.softmax_tile(
                scores, q * attention.TILE,
                max(0, _first_seen(step, here) - tile), min(attention.TILE, here + 1 - tile),
                key_scales, value_scales, slot, state, 2 * q,
            )  # fmt: skip
        attention.tile_values(
            scores, count * group, max(0, oldest - tile), min(attention.TILE, newest + 1 - tile),
            factors, values, slot * size, size, part,
        )  # fmt: skip


@kernel
def _merge(step, head, position):
    """Merge the splits of a single token's query head."""
    size = 2 * step.half
    parts = _f32(step.parts)
    at = head * (size + 2)
    for split in range(1, _splits(step, position)):
        other = (split * step.heads + head) * (size + 2)
        attention.merge(parts, other + 2, parts, other, parts, at + 2, parts, at, size)
    _write_output(step, parts, at + 2, parts[at + 1], head * size, size)


@kernel
def _commit(step, head, tokens, position, kv):
    """Write a chunk that was kept aside into the ring; of one longer than the ring, its end."""
    for token in range(max(0, tokens - step.ring_slots), tokens):
        _copy(step, head, position + token, position % attention.TILE + token, True, kv)


@entry
def run(program, counters, barrier, thread, threads, tokens, position, head_first, head_tokens, kv):
    """Carry out ``program`` as thread ``thread`` of ``threads``.

    ``tokens`` ids lie in the ids buffer; the first is at ``position``. Steps that only serve the
    logits work on ``head_tokens`` tokens from ``head_first`` on. ``counters`` (int64, ``SPACING``
    for each step, all 0) and ``barrier`` (int64) are shared. ``kv`` is an empty array of the
    cache's dtype.
    """
    for i in range(program.size):
        step = program[i]
        first = head_first if step.head else 0
        count = head_tokens if step.head else tokens
        units = _units(step, first, count, tokens, position)
        while units > 0:
            unit = atomic_add(counters, i * SPACING, 1)
            if step.op == MATMUL and count == 1:
                begin, end = share(units, unit, threads)
                if begin == units:
                    break
                for row in range(begin, end):
                    _matmul(step, row, count)
                continue
            if unit >= units:
                break
            if step.op == MATMUL:
                _matmul(step, unit, count)
            elif step.op == ATTENTION:
                _attention(step, unit, first, count, tokens, position, kv, thread)
            elif step.op in (NORM, GATE, QUANTIZE):
                _rows(step, unit, count, first)
            elif step.op == ROPE:
                _rope(step, unit, tokens, position, kv)
            elif step.op == MERGE:
                _merge(step, unit, position + first)
            elif step.op == COMMIT:
                _commit(step, unit, tokens, position, kv)
            elif step.op == FLOAT_MATMUL:
                _float_matmul(step, unit, count)
            elif step.op == EMBED:
                _embed(step, unit)
            elif step.op == ANGLES:
                pointwise.rope_angles(
                    np.float64(position + unit),
                    numba.carray(pointer_to(step.frequencies), (step.half,), np.float64),
                    _f32(step.cosines), _f32(step.sines), unit * step.half,
                )  # fmt: skip
        if step.barrier:
            wait_for_all(barrier, threads)
