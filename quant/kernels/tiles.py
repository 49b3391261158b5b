"""Tiles: several vectors as one tuple that stays in registers, updated as one.

A tile of ``rows x tokens`` vectors holds the entry of row block r and token t at
``r * tokens + t``. The loops below run while code is emitted, so what comes out is straight-line
code; counts are constants of the kernel that is compiled.

Example, inside a kernel: 2 row blocks of int8 weights times 6 tokens::

    totals = zeros_i32(12)
    for _ in range(columns // 4):
        lines = load_lines(codes, line, stride, 1, 2)
        totals = dot_tile_int8(totals, lines, activations, x, 4)
        line += LINE
        x += 24
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .dot import emit_dot
from .simd import (
    F16,
    I8,
    I32,
    LANES,
    Vector,
    constant,
    element_address,
    emit_call,
    emit_load,
    emit_load_floats,
    emit_splat,
    emit_store,
    f32x16,
    i8x64,
    i32x16,
)


@intrinsic(prefer_literal=True)
def zeros_i32(typing_context, count):
    """A tuple of ``count`` (a constant) zero ``i32x16``."""
    return _zeros(i32x16, count)


@intrinsic(prefer_literal=True)
def zeros_f32(typing_context, count):
    """A tuple of ``count`` (a constant) zero ``f32x16``."""
    return _zeros(f32x16, count)


def _zeros(vector: Vector, count: Any) -> Any:
    if not isinstance(count, types.IntegerLiteral):
        return None
    n = count.literal_value

    def emit(context, builder, signature, arguments):
        zero = constant(vector, 0)
        return context.make_tuple(builder, signature.return_type, [zero] * n)

    return types.UniTuple(vector, n)(count), emit


@intrinsic(prefer_literal=True)
def prefetch_lines(typing_context, array, offset, stride, count):
    """Begin to bring ``count`` (a constant) lines near, ``stride`` bytes apart.

    Beyond the array's end it does no harm.
    """
    if not isinstance(count, types.IntegerLiteral):
        return None
    n = count.literal_value

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments[:2])
        place = builder.bitcast(pointer, I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for _ in range(n):
            # To be read (0), and kept near (3), data (1).
            builder.call(function, [place, *(ir.Constant(I32, flag) for flag in (0, 3, 1))])
            place = builder.gep(place, [arguments[2]])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, count), emit


@intrinsic(prefer_literal=True)
def load_lines(typing_context, array, offset, stride, last, count):
    """``count`` (a constant) lines of 64 bytes as a tuple, ``stride`` bytes apart.

    From line ``last`` on, the line ``last`` is repeated.
    """
    return _load_each(array, i8x64, i8x64.llvm, count)


@intrinsic(prefer_literal=True)
def load_scales(typing_context, array, offset, stride, last, count):
    """As :func:`load_lines`: vectors of 16 float16 (held as uint16), as float32."""
    return _load_each(array, f32x16, ir.VectorType(F16, 16), count)


def _load_each(array: Any, vector: Vector, stored: ir.VectorType, count: Any) -> Any:
    if not isinstance(count, types.IntegerLiteral):
        return None
    n = count.literal_value

    def emit(context, builder, signature, arguments):
        base = element_address(context, builder, signature.args[0], *arguments[:2])
        stride, last = arguments[2:4]
        values = []
        for i in range(n):
            number = ir.Constant(last.type, i)
            number = builder.select(builder.icmp_signed("<", number, last), number, last)
            value = emit_load(builder, builder.gep(base, [builder.mul(number, stride)]), stored)
            values.append(value if stored == vector.llvm else builder.fpext(value, vector.llvm))
        return context.make_tuple(builder, signature.return_type, values)

    signature = types.UniTuple(vector, n)(array, types.intp, types.intp, types.intp, count)
    return signature, emit


def _nibbles_each(operation: str, operand: int) -> Any:
    @intrinsic
    def nibbles(typing_context, lines):
        """Four bits of each byte of a tuple of lines."""

        def emit(context, builder, signature, arguments):
            parts = cgutils.unpack_tuple(builder, arguments[0])
            parts = [getattr(builder, operation)(part, constant(i8x64, operand)) for part in parts]
            return context.make_tuple(builder, signature.return_type, parts)

        return lines(lines), emit

    return nibbles


low_nibbles_each = _nibbles_each("and_", 15)
high_nibbles_each = _nibbles_each("lshr", 4)


def _dot_tile(bits: int) -> Any:
    @intrinsic
    def dot_tile(typing_context, totals, lines, array, offset, stride):
        """``totals[r, t] += dot(lines[r], the 4 bytes at offset + t * stride)``: emit_dot."""
        tokens = totals.count // lines.count

        def emit(context, builder, signature, arguments):
            sums = cgutils.unpack_tuple(builder, arguments[0])
            rows = cgutils.unpack_tuple(builder, arguments[1])
            pointer = element_address(context, builder, signature.args[2], *arguments[2:4])
            for t in range(tokens):
                word = emit_splat(builder, emit_load(builder, pointer, I32), LANES)
                word = builder.bitcast(word, i8x64.llvm)
                for r, row in enumerate(rows):
                    i = r * tokens + t
                    sums[i] = emit_dot(builder, sums[i], row, word, bits)
                pointer = builder.gep(pointer, [arguments[4]])
            return context.make_tuple(builder, signature.return_type, sums)

        return totals(totals, lines, array, types.intp, types.intp), emit

    return dot_tile


dot_tile_int4 = _dot_tile(4)
dot_tile_int8 = _dot_tile(8)


@intrinsic
def join_planes(typing_context, high, low):
    """``128 * high + low`` of two tuples of ``i32x16``."""

    def emit(context, builder, signature, arguments):
        pairs = zip(*(cgutils.unpack_tuple(builder, tile) for tile in arguments), strict=True)
        sums = [builder.add(builder.shl(h, constant(i32x16, 7)), lo) for h, lo in pairs]
        return context.make_tuple(builder, signature.return_type, sums)

    return high(high, high), emit


@intrinsic
def add_tiles(typing_context, a, b):
    """The sums of two tuples of ``i32x16``."""

    def emit(context, builder, signature, arguments):
        pairs = zip(*(cgutils.unpack_tuple(builder, tile) for tile in arguments), strict=True)
        sums = [builder.add(x, y) for x, y in pairs]
        return context.make_tuple(builder, signature.return_type, sums)

    return a(a, a), emit


@intrinsic(prefer_literal=True)
def start_tile(typing_context, array, offset, stride, factor, rows, tokens):
    """``rows x tokens`` (constants) totals that begin at ``array[offset + t * stride] * factor``.

    ``array`` and ``factor`` are int32.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(tokens, types.IntegerLiteral)):
        return None
    r, n = rows.literal_value, tokens.literal_value

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments[:2])
        row = []
        for _ in range(n):
            product = builder.mul(builder.load(pointer), arguments[3])
            row.append(emit_splat(builder, product, LANES))
            pointer = builder.gep(pointer, [arguments[2]])
        return context.make_tuple(builder, signature.return_type, row * r)

    signature = types.UniTuple(i32x16, r * n)(
        array, types.intp, types.intp, types.int32, rows, tokens
    )
    return signature, emit


@intrinsic
def fold_tile(typing_context, sums, totals, scales, array, offset, stride):
    """``sums[r, t] + totals[r, t] * scales[r] * array[offset + t * stride]``.

    ``sums`` and ``scales`` are float32, ``totals`` int32, ``array`` float32.
    """
    tokens = sums.count // scales.count

    def emit(context, builder, signature, arguments):
        floats = cgutils.unpack_tuple(builder, arguments[0])
        wholes = cgutils.unpack_tuple(builder, arguments[1])
        rows = cgutils.unpack_tuple(builder, arguments[2])
        pointer = element_address(context, builder, signature.args[3], *arguments[3:5])
        for t in range(tokens):
            x = emit_splat(builder, builder.load(pointer), LANES)
            for r, row in enumerate(rows):
                i = r * tokens + t
                total = builder.sitofp(wholes[i], f32x16.llvm)
                scale = builder.fmul(row, x)
                floats[i] = emit_call(
                    builder, "llvm.fma.v16f32", f32x16.llvm, total, scale, floats[i]
                )
            pointer = builder.gep(pointer, [arguments[5]])
        return context.make_tuple(builder, signature.return_type, floats)

    return sums(sums, totals, scales, array, types.intp, types.intp), emit


@intrinsic
def add_outer_tile(typing_context, sums, rows, array, offset, stride):
    """``sums[r, t] + rows[r] * array[offset + t * stride]``, all float32."""
    tokens = sums.count // rows.count

    def emit(context, builder, signature, arguments):
        floats = cgutils.unpack_tuple(builder, arguments[0])
        parts = cgutils.unpack_tuple(builder, arguments[1])
        pointer = element_address(context, builder, signature.args[2], *arguments[2:4])
        for t in range(tokens):
            x = emit_splat(builder, builder.load(pointer), LANES)
            for r, part in enumerate(parts):
                i = r * tokens + t
                floats[i] = emit_call(builder, "llvm.fma.v16f32", f32x16.llvm, part, x, floats[i])
            pointer = builder.gep(pointer, [arguments[4]])
        return context.make_tuple(builder, signature.return_type, floats)

    return sums(sums, rows, array, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def load_vectors(typing_context, array, offset, stride, count):
    """``count`` (a constant) times :func:`load`, ``stride`` elements apart, as a tuple."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    n = count.literal_value
    element = array.dtype

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments[:2])
        vectors = []
        for _ in range(n):
            vectors.append(emit_load_floats(builder, pointer, element))
            pointer = builder.gep(pointer, [arguments[2]])
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(f32x16, n)(array, types.intp, types.intp, count), emit


@intrinsic(prefer_literal=True)
def load_tile(typing_context, array, offset, stride, factors, factors_at, rows, tokens):
    """``rows x tokens`` (constants) vectors, each token's rows side by side and times its factor.

    Entry (r, t) is ``array[offset + t * stride + 16 * r]`` and on, times
    ``factors[factors_at + t]``.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(tokens, types.IntegerLiteral)):
        return None
    r, n = rows.literal_value, tokens.literal_value

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments[:2])
        factor = element_address(context, builder, signature.args[3], *arguments[3:5])
        entries = [None] * (r * n)
        for t in range(n):
            scale = emit_splat(builder, builder.load(factor), LANES)
            for i in range(r):
                place = builder.gep(pointer, [ir.Constant(arguments[2].type, i * LANES)])
                entries[i * n + t] = builder.fmul(emit_load(builder, place, f32x16.llvm), scale)
            pointer = builder.gep(pointer, [arguments[2]])
            factor = builder.gep(factor, [ir.Constant(arguments[2].type, 1)])
        return context.make_tuple(builder, signature.return_type, entries)

    signature = types.UniTuple(f32x16, r * n)(
        array, types.intp, types.intp, factors, types.intp, rows, tokens
    )
    return signature, emit


@intrinsic
def store_tile(typing_context, array, offset, row_stride, token_stride, sums, like):
    """Write ``sums[r, t]`` to ``offset + r * row_stride + t * token_stride``.

    ``like`` is any tuple with one entry for each row of the tile.
    """
    rows = like.count

    def emit(context, builder, signature, arguments):
        floats = cgutils.unpack_tuple(builder, arguments[4])
        tokens = len(floats) // rows
        row = element_address(context, builder, signature.args[0], *arguments[:2])
        for r in range(rows):
            pointer = row
            for t in range(tokens):
                emit_store(builder, floats[r * tokens + t], pointer)
                pointer = builder.gep(pointer, [arguments[3]])
            row = builder.gep(row, [arguments[2]])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, types.intp, sums, like), emit
