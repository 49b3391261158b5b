"""The forward pass as a program: a table of steps that all threads walk through together.

``quant.batch`` writes the steps once; :func:`run` then carries them out for each pass over some
tokens in one call, without returning to Python. A step is a record of addresses and sizes.
Its work falls into units that threads claim; where the next step reads what this one wrote, all
threads meet first (``barrier``).
"""

from __future__ import annotations

import numba
import numpy as np

from . import attending, matmul, pointwise
from .jit import entry, kernel
from .table import (
    ANGLES,
    ATTENTION,
    COMMIT,
    EMBED,
    FLOAT_MATMUL,
    GATE,
    MATMUL,
    MERGE,
    NORM,
    QUANTIZE,
    ROPE,
    f32,
    i8,
    i32,
    i64,
    u8,
    u16,
)
from .threads import SPACING, atomic_add, pointer_to, share, wait_for_all

ROW_PART = 2048
"""Columns of a row that a thread takes at once; they are whole groups of any size."""

TOKEN_BLOCK = 288
"""Tokens that share a pass over a tile of weights: their bytes stay in the second-level cache."""


@kernel
def _parts(step):
    """Pieces of a row that threads may share: a norm needs the whole row."""
    return 1 if step.op == NORM else (step.columns + ROW_PART - 1) // ROW_PART


@kernel
def _last(span):
    """The position of a sequence's last token."""
    return span.position + span.tokens - 1


@kernel
def _units(step, spans, tokens):
    """Into how many pieces the work of ``step`` on ``tokens`` tokens of ``spans`` falls."""
    if tokens == 0:
        return 0
    if step.op == MATMUL:
        tall = 16 * matmul.rows_of(matmul.width_for(tokens, step.planes))
        return (step.rows + tall - 1) // tall * ((tokens + TOKEN_BLOCK - 1) // TOKEN_BLOCK)
    if step.op == FLOAT_MATMUL:
        return (step.rows + 15) // 16
    if step.op == ATTENTION:
        if tokens == 1:
            span = spans[attending.single(spans, step.head)]
            return attending.splits_seen(step, _last(span)) * step.kv_heads
        shares = 0
        for i in range(spans.size):
            _, count, _ = attending.rows_of(spans[i], step.head)
            if count > 0:
                shares += attending.shares_of(step, count)
        return shares * step.kv_heads
    if step.op == MERGE:
        return step.heads if tokens == 1 else 0
    if step.op in (NORM, GATE, QUANTIZE):
        # Whole tiles: their tokens' bytes share cache lines, which two threads would fight over.
        tile = matmul.width_for(tokens, step.planes)
        return (tokens + tile - 1) // tile * _parts(step)
    if step.op == COMMIT:
        for i in range(spans.size):
            if attending.is_aside(step, spans[i]):
                return spans.size * step.kv_heads
        return 0
    return tokens


@kernel
def _embed(step, token):
    row = i64(step.ids)[token]
    output = f32(step.output)
    at = token * step.output_stride
    if step.bits == 32:
        weight = f32(step.weight)
        for k in range(step.columns):
            output[at + k] = weight[row * step.columns + k]
    elif step.bits == 4:
        pointwise.embed_row_int4(
            u8(step.codes), u16(step.scales), u16(step.minimums),
            step.columns, step.group_size, row, output, at,
        )  # fmt: skip
    else:
        pointwise.embed_row_int8(
            u8(step.codes), u16(step.scales), u16(step.minimums),
            step.columns, step.group_size, row, output, at,
        )  # fmt: skip


@kernel
def _rows(step, unit, tokens, head_rows):
    """A norm, a gate or bytes alone, for a tile of tokens, or for some columns of it.

    The residual stream has a row for each token of the pass; those of ``head_rows`` are wanted.
    """
    planes = 2 if tokens == 1 else step.planes
    tile = matmul.width_for(tokens, step.planes)
    parts = _parts(step)
    begin = unit % parts * ROW_PART
    end = step.columns if parts == 1 else min(begin + ROW_PART, step.columns)
    start = unit // parts * tile
    output = f32(step.output)
    for token in range(start, min(start + tile, tokens)):
        at = token * step.output_stride
        if step.op == NORM:
            pointwise.norm_row(
                f32(step.x), f32(step.delta), f32(step.weight), step.epsilon,
                (head_rows[token] if step.head else token) * step.x_stride,
                token * step.delta_stride,
                step.columns, output, at,
            )  # fmt: skip
        elif step.op == GATE:
            pointwise.silu_mul_row(
                f32(step.gate), f32(step.up), token * step.x_stride + begin, end - begin,
                output, at + begin,
            )  # fmt: skip
        if step.group_size > 0:
            pointwise.quantize_row(
                output, at, step.columns, begin, end, step.group_size,
                planes, token, tile, i8(step.high), i8(step.low),
                f32(step.x_scales), i32(step.x_sums), f32(step.x_totals),
            )  # fmt: skip


@kernel
def _tile(tile, width, step, block, last, ahead, stride, token):
    tile(
        width, u8(step.codes), ahead, stride, u16(step.scales), u16(step.minimums), step.zero,
        step.columns, step.group_size, block, last,
        i8(step.high), i8(step.low), f32(step.x_scales), i32(step.x_sums),
        f32(step.x_totals), token, f32(step.output), step.output_stride,
    )  # fmt: skip


@kernel
def _matmul(step, unit, tokens):
    """A tile's row blocks times a block of tokens."""
    planes = 2 if tokens == 1 else step.planes
    width = matmul.width_for(tokens, planes)
    tall = matmul.rows_of(width)
    blocks = (step.rows + 15) // 16
    units = (blocks + tall - 1) // tall
    start = unit // units * TOKEN_BLOCK
    end = min(start + TOKEN_BLOCK, tokens)
    block = unit % units * tall
    last = min(tall, blocks - block) - 1
    size = 2 * step.bits * step.columns  # bytes of a row block
    tiles = (end - start + width - 1) // width
    stride = 16 * step.bits // tiles
    for token in range(start, end, width):
        # While row blocks' tiles are computed, the next row blocks are on their way.
        ahead = block * size + matmul.AHEAD
        if tiles > 1:
            ahead = (block + tall) * size + (token - start) // width * size // tiles
        if planes == 2:
            if step.bits == 4:
                _tile(matmul.exact_int4, width, step, block, last, ahead, stride, token)
            else:
                _tile(matmul.exact_int8, width, step, block, last, ahead, stride, token)
        elif step.bits == 4:
            _tile(matmul.fast_int4, width, step, block, last, ahead, stride, token)
        else:
            _tile(matmul.fast_int8, width, step, block, last, ahead, stride, token)


@kernel
def _float_matmul(step, unit, tokens):
    for row in range(unit * 16, min(unit * 16 + 16, step.rows)):
        matmul.float_row(
            f32(step.weight), step.columns, row, f32(step.x), step.x_stride,
            tokens, f32(step.output), step.output_stride,
        )  # fmt: skip


@entry
def run(program, counters, barrier, thread, threads, spans, span_of, head_rows, kv):
    """Carry out ``program`` as thread ``thread`` of ``threads``.

    ``spans`` (:data:`~quant.kernels.table.SPAN`) are the sequences' parts of the pass, ``span_of``
    (int64) has the number of each row's, and ``head_rows`` (int64) are the rows whose logits are
    wanted. ``counters`` (int64, ``SPACING`` for each step, all 0) and ``barrier`` (int64) are
    shared. ``kv`` is an empty array of the cache's dtype.
    """
    for i in range(program.size):
        step = program[i]
        count = head_rows.size if step.head else span_of.size
        units = _units(step, spans, count)
        while units > 0:
            unit = atomic_add(counters, i * SPACING, 1)
            if step.op == MATMUL and count <= TOKEN_BLOCK:
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
                attending.attend(step, unit, spans, count, kv, thread)
            elif step.op in (NORM, GATE, QUANTIZE):
                _rows(step, unit, count, head_rows)
            elif step.op == ROPE:
                attending.rope(step, unit, spans[span_of[unit]], kv)
            elif step.op == MERGE:
                span = spans[attending.single(spans, step.head)]
                attending.merge_splits(step, unit, _last(span))
            elif step.op == COMMIT:
                attending.commit(step, unit % step.kv_heads, spans[unit // step.kv_heads], kv)
            elif step.op == FLOAT_MATMUL:
                _float_matmul(step, unit, count)
            elif step.op == EMBED:
                _embed(step, unit)
            elif step.op == ANGLES:
                span = spans[span_of[unit]]
                pointwise.rope_angles(
                    np.float64(span.position + unit - span.row),
                    numba.carray(pointer_to(step.frequencies), (step.half,), np.float64),
                    f32(step.cosines), f32(step.sines), unit * step.half,
                )  # fmt: skip
        if step.barrier:
            wait_for_all(barrier, threads)
