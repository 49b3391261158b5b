"""Vectors of the processor as ordinary local variables of a Numba function.

A :class:`Vector` is a Numba type whose value *is* an LLVM vector, so ``a + b * c`` on three
variables of type ``f32x16`` compiles to vector instructions and stays in registers. Every vector
here is 512 bits wide. Where registers are narrower, LLVM splits it into two or four; the one
operation that has to know the processor, :func:`emit_dot`, does so itself.

Example, inside a kernel::

    total = splat(np.float32(0))
    for i in range(0, x.size, 16):
        total = fma(load(x, i), load(y, i), total)
    result = sum_lanes(total)
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from .jit import instruction_set

LANES = 16
"""Numbers of 32 bits in a vector."""

LINE = 64
"""Bytes in a vector."""


class Vector(types.Type):
    """``lanes`` numbers of one LLVM type, in a register."""

    def __init__(self, name: str, element: ir.Type, lanes: int) -> None:
        self.element = element
        self.lanes = lanes
        super().__init__(name=name)

    @property
    def llvm(self) -> ir.VectorType:
        return ir.VectorType(self.element, self.lanes)


_I8, _I16, _I32, _F16, _F32 = (
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.HalfType(),
    ir.FloatType(),
)

i8x64 = Vector("i8x64", _I8, 64)
i32x16 = Vector("i32x16", _I32, 16)
f32x16 = Vector("f32x16", _F32, 16)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


# Helpers for those that emit code. `builder` is llvmlite's IRBuilder.


def _constant(vector: Vector, value: float) -> ir.Constant:
    return ir.Constant(vector.llvm, [value] * vector.lanes)


def _address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def _load(builder: Any, pointer: Any, kind: ir.Type) -> Any:
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1  # mapped files promise no more
    return value


def _load_floats(builder: Any, pointer: Any, element: types.Type) -> Any:
    if element == types.float32:
        return _load(builder, pointer, f32x16.llvm)
    if element == types.uint16:
        return builder.fpext(_load(builder, pointer, ir.VectorType(_F16, 16)), f32x16.llvm)
    wide = builder.zext(_load(builder, pointer, ir.VectorType(_I8, 16)), i32x16.llvm)
    return builder.sitofp(builder.sub(wide, _constant(i32x16, 128)), f32x16.llvm)


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return _shuffle(builder, first, [0] * lanes)


def _shuffle(builder: Any, vector: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


# Memory. Offsets count elements of the array, which is one-dimensional and contiguous.


@intrinsic
def load(typing_context, array, offset):
    """16 numbers at ``offset`` as ``f32x16``.

    The array holds float32, or float16 as uint16 bits, or int8 stored as ``value + 128`` in uint8.
    """
    element = array.dtype

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments)
        return _load_floats(builder, pointer, element)

    return f32x16(array, types.intp), emit


@intrinsic
def store(typing_context, array, offset, vector):
    """The inverse of :func:`load`: round ``vector`` to the array's element and write it."""
    element = array.dtype

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments[:2])
        value = arguments[2]
        if element == types.uint16:
            value = builder.fptrunc(value, ir.VectorType(_F16, 16))
        elif element == types.uint8:
            value = builder.fptosi(
                _call(builder, "llvm.rint.v16f32", f32x16.llvm, value), i32x16.llvm
            )
            value = builder.trunc(
                builder.add(value, _constant(i32x16, 128)), ir.VectorType(_I8, 16)
            )
        _store(builder, value, pointer)
        return context.get_dummy_value()

    return types.none(array, types.intp, f32x16), emit


@intrinsic
def half_to_float(typing_context, array, offset):
    """One float16, held as uint16, as float32."""

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments)
        return builder.fpext(_load(builder, pointer, _F16), _F32)

    return types.float32(array, types.intp), emit


@intrinsic
def store_one(typing_context, array, offset, value):
    """One float32 into an array of float32 or of float16 (as uint16)."""
    half = array.dtype == types.uint16

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments[:2])
        number = builder.fptrunc(arguments[2], _F16) if half else arguments[2]
        _store(builder, number, pointer)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.float32), emit


@intrinsic
def store_words(typing_context, array, offset, stride, vector):
    """The low bytes of an ``i32x16`` as four words of 4 bytes, ``stride`` bytes apart."""

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments[:2])
        octets = builder.trunc(arguments[3], ir.VectorType(_I8, 16))
        words = builder.bitcast(octets, ir.VectorType(_I32, 4))
        for i in range(4):
            _store(builder, builder.extract_element(words, ir.Constant(_I32, i)), pointer)
            pointer = builder.gep(pointer, [arguments[2]])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, i32x16), emit


# Making and converting.


@intrinsic
def splat(typing_context, value):
    """A float32 or int32 in every lane."""
    if value not in (types.float32, types.int32):
        return None
    vector = f32x16 if value == types.float32 else i32x16

    def emit(context, builder, signature, arguments):
        return _splat(builder, arguments[0], LANES)

    return vector(value), emit


@intrinsic
def to_f32(typing_context, vector):
    """``i32x16`` to ``f32x16``."""

    def emit(context, builder, signature, arguments):
        return builder.sitofp(arguments[0], f32x16.llvm)

    return f32x16(i32x16), emit


@intrinsic
def to_i32(typing_context, vector):
    """``f32x16`` to ``i32x16``, to the nearest, ties to even."""

    def emit(context, builder, signature, arguments):
        rounded = _call(builder, "llvm.rint.v16f32", f32x16.llvm, arguments[0])
        return builder.fptosi(rounded, i32x16.llvm)

    return i32x16(f32x16), emit


# Arithmetic.


@intrinsic
def fma(typing_context, a, b, c):
    """``a * b + c``, rounded once."""

    def emit(context, builder, signature, arguments):
        return _call(builder, "llvm.fma.v16f32", f32x16.llvm, *arguments)

    return f32x16(f32x16, f32x16, f32x16), emit


# The one operation that knows the processor: sums of four products of bytes, in 16 lanes.


def emit_dot(builder: Any, total: Any, codes: Any, signed: Any, bits: int) -> Any:
    """``total[i] + sum((codes[4*i + j] - offset) * signed[4*i + j] for j in range(4))``, exact.

    ``codes`` are 0 to 15 (``bits`` 4, offset 0) or 0 to 255 (``bits`` 8, offset
    :func:`code_offset`), ``signed`` are -127 to 127. This is what the packed layout was made for.
    """
    name = instruction_set()
    if name == "avx512vnni":
        return _call(builder, "llvm.x86.avx512.vpdpbusd.512", i32x16.llvm, total, codes, signed)
    if name == "avxvnni":
        return _in_parts(builder, 2, _vnni_256, total, codes, signed)
    if name == "avx2":
        return _in_parts(builder, 2, _avx2_int4 if bits == 4 else _avx2_int8, total, codes, signed)
    if name == "neon":
        return _in_parts(builder, 4, _neon_int4 if bits == 4 else _neon_int8, total, codes, signed)
    for j in range(4):
        lanes = list(range(j, LINE, 4))
        a = builder.zext(_shuffle(builder, codes, lanes), i32x16.llvm)
        b = builder.sext(_shuffle(builder, signed, lanes), i32x16.llvm)
        total = builder.add(total, builder.mul(a, b))
    return total


def code_offset(bits: int) -> int:
    """What :func:`emit_dot` takes off each code: 128 from int8 where bytes can only be signed."""
    return 128 if bits == 8 and instruction_set() in ("avx2", "neon") else 0


def _in_parts(builder: Any, count: int, emit: Any, *vectors: Any) -> Any:
    """``emit`` for each of ``count`` equal parts of ``vectors``, and the results joined.

    LLVM splits what is wider than a register itself, so the cutting costs no instruction.
    """
    parts = []
    for i in range(count):
        cut = []
        for vector in vectors:
            width = vector.type.count // count
            cut.append(_shuffle(builder, vector, list(range(i * width, (i + 1) * width))))
        parts.append(emit(builder, *cut))
    while len(parts) > 1:
        width = 2 * parts[0].type.count
        mask = ir.Constant(ir.VectorType(_I32, width), list(range(width)))
        parts = [
            builder.shuffle_vector(low, high, mask)
            for low, high in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _vnni_256(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    return _call(builder, "llvm.x86.avx512.vpdpbusd.256", total.type, total, codes, signed)


def _avx2_int4(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    """Pairs are added in 16 bits, which 2 * 15 * 127 fits; then pairs of pairs in 32."""
    halves = ir.VectorType(_I16, 16)
    pairs = _call(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, codes, signed)
    ones = ir.Constant(halves, [1] * 16)
    return builder.add(total, _call(builder, "llvm.x86.avx2.pmadd.wd", total.type, pairs, ones))


def _avx2_int8(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    """As int4, of ``|code - 128| * (sign * signed)``: 2 * 128 * 127 fits into 16 bits."""
    octets = codes.type
    centred = builder.xor(codes, ir.Constant(octets, [-128] * 32))
    size = _call(builder, "llvm.abs.v32i8", octets, centred, ir.Constant(ir.IntType(1), 0))
    turned = _call(builder, "llvm.x86.avx2.psign.b", octets, signed, centred)
    return _avx2_int4(builder, total, size, turned)


def _neon_int4(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    return _call(builder, name, total.type, total, codes, signed)


def _neon_int8(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    centred = builder.xor(codes, ir.Constant(codes.type, [-128] * 16))
    return _neon_int4(builder, total, centred, signed)


def _operator(function: Any, of_floats: str, of_integers: str) -> None:
    """Give Python's ``function`` a meaning for two vectors of one type."""

    @intrinsic
    def compute(typing_context, a, b):
        def emit(context, builder, signature, arguments):
            name = of_floats if signature.return_type == f32x16 else of_integers
            return getattr(builder, name)(*arguments)

        return a(a, b), emit

    @overload(function)
    def meaning(a, b):
        if isinstance(a, Vector) and a == b:
            return lambda a, b: compute(a, b)
        return None


_operator(operator.add, "fadd", "add")
_operator(operator.sub, "fsub", "sub")
_operator(operator.mul, "fmul", "mul")
_operator(operator.truediv, "fdiv", "sdiv")


@intrinsic
def shift_left(typing_context, vector, bits):
    """``vector << bits`` in each lane of an ``i32x16``."""

    def emit(context, builder, signature, arguments):
        return builder.shl(arguments[0], _splat(builder, arguments[1], LANES))

    return i32x16(i32x16, types.int32), emit


@intrinsic
def shift_right(typing_context, vector, bits):
    """``vector >> bits`` with the sign, in each lane of an ``i32x16``."""

    def emit(context, builder, signature, arguments):
        return builder.ashr(arguments[0], _splat(builder, arguments[1], LANES))

    return i32x16(i32x16, types.int32), emit


@intrinsic
def maximum(typing_context, a, b):
    """The larger in each lane of two ``f32x16``."""

    def emit(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered(">", a, b), a, b)

    return f32x16(f32x16, f32x16), emit


@intrinsic
def minimum(typing_context, a, b):
    """The smaller in each lane of two ``f32x16``."""

    def emit(context, builder, signature, arguments):
        a, b = arguments
        return builder.select(builder.fcmp_ordered("<", a, b), a, b)

    return f32x16(f32x16, f32x16), emit


@intrinsic
def absolute(typing_context, a):
    """``|a|`` in each lane of an ``f32x16``."""

    def emit(context, builder, signature, arguments):
        return _call(builder, "llvm.fabs.v16f32", f32x16.llvm, *arguments)

    return f32x16(f32x16), emit


@intrinsic
def power_of_two(typing_context, exponent):
    """``2.0 ** exponent`` for whole exponents from -126 to 127, ``i32x16`` to ``f32x16``."""

    def emit(context, builder, signature, arguments):
        biased = builder.add(arguments[0], _constant(i32x16, 127))
        return builder.bitcast(builder.shl(biased, _constant(i32x16, 23)), f32x16.llvm)

    return f32x16(i32x16), emit


# Across lanes. The order of the sum is fixed, so every instruction set rounds alike.


def _across(name: str, combine: Any, document: str) -> Any:
    def reduce(typing_context, vector):
        result = types.float32 if vector == f32x16 else types.int32

        def emit(context, builder, signature, arguments):
            value = arguments[0]
            for width in (8, 4, 2, 1):
                low = _shuffle(builder, value, list(range(width)))
                high = _shuffle(builder, value, list(range(width, 2 * width)))
                value = combine(builder, low, high)
            return builder.extract_element(value, ir.Constant(_I32, 0))

        return result(vector), emit

    reduce.__name__ = name
    reduce.__doc__ = document
    return intrinsic(reduce)


def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b) if a.type.element == _F32 else builder.add(a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


sum_lanes = _across("sum_lanes", _add, "The sum of the 16 lanes.")
max_lanes = _across("max_lanes", _larger, "The largest of the 16 lanes of an ``f32x16``.")


# Tiles: `rows x tokens` vectors as one tuple that stays in registers; entry `r * tokens + t`. The
# loops below run while code is emitted, so what comes out is straight-line code.


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
        zero = _constant(vector, 0)
        return context.make_tuple(builder, signature.return_type, [zero] * n)

    return types.UniTuple(vector, n)(count), emit


@intrinsic
def prefetch(typing_context, array, offset):
    """Begin to bring the line at ``offset`` to the processor; beyond the array it does no harm."""

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments)
        place = builder.bitcast(pointer, _I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [place.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # To be read (0), and kept near (3), data (1).
        builder.call(function, [place, *(ir.Constant(_I32, flag) for flag in (0, 3, 1))])
        return context.get_dummy_value()

    return types.none(array, types.intp), emit


@intrinsic(prefer_literal=True)
def load_lines(typing_context, array, offset, stride, last, count):
    """``count`` (a constant) lines of 64 bytes as a tuple, ``stride`` bytes apart.

    From line ``last`` on, the line ``last`` is repeated.
    """
    return _load_each(array, i8x64, i8x64.llvm, count)


@intrinsic(prefer_literal=True)
def load_scales(typing_context, array, offset, stride, last, count):
    """As :func:`load_lines`: vectors of 16 float16 (held as uint16), as float32."""
    return _load_each(array, f32x16, ir.VectorType(_F16, 16), count)


def _load_each(array: Any, vector: Vector, stored: ir.VectorType, count: Any) -> Any:
    if not isinstance(count, types.IntegerLiteral):
        return None
    n = count.literal_value

    def emit(context, builder, signature, arguments):
        base = _address(context, builder, signature.args[0], *arguments[:2])
        stride, last = arguments[2:4]
        values = []
        for i in range(n):
            number = ir.Constant(last.type, i)
            number = builder.select(builder.icmp_signed("<", number, last), number, last)
            value = _load(builder, builder.gep(base, [builder.mul(number, stride)]), stored)
            values.append(value if stored == vector.llvm else builder.fpext(value, vector.llvm))
        return context.make_tuple(builder, signature.return_type, values)

    signature = types.UniTuple(vector, n)(array, types.intp, types.intp, types.intp, count)
    return signature, emit


@intrinsic
def low_nibbles_each(typing_context, lines):
    """The low four bits of each byte of a tuple of lines."""

    def emit(context, builder, signature, arguments):
        parts = cgutils.unpack_tuple(builder, arguments[0])
        parts = [builder.and_(part, _constant(i8x64, 15)) for part in parts]
        return context.make_tuple(builder, signature.return_type, parts)

    return lines(lines), emit


@intrinsic
def high_nibbles_each(typing_context, lines):
    """The high four bits of each byte of a tuple of lines."""

    def emit(context, builder, signature, arguments):
        parts = cgutils.unpack_tuple(builder, arguments[0])
        parts = [builder.lshr(part, _constant(i8x64, 4)) for part in parts]
        return context.make_tuple(builder, signature.return_type, parts)

    return lines(lines), emit


def _dot_tile(bits: int) -> Any:
    @intrinsic
    def dot_tile(typing_context, totals, lines, array, offset, stride):
        """``totals[r, t] += dot(lines[r], the 4 bytes at offset + t * stride)``: emit_dot."""
        tokens = totals.count // lines.count

        def emit(context, builder, signature, arguments):
            sums = cgutils.unpack_tuple(builder, arguments[0])
            rows = cgutils.unpack_tuple(builder, arguments[1])
            pointer = _address(context, builder, signature.args[2], *arguments[2:4])
            for t in range(tokens):
                word = _splat(builder, _load(builder, pointer, _I32), LANES)
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
        sums = [builder.add(builder.shl(h, _constant(i32x16, 7)), lo) for h, lo in pairs]
        return context.make_tuple(builder, signature.return_type, sums)

    return high(high, high), emit


@intrinsic(prefer_literal=True)
def start_tile(typing_context, array, offset, stride, factor, rows, tokens):
    """``rows x tokens`` (constants) totals that begin at ``array[offset + t * stride] * factor``.

    ``array`` and ``factor`` are int32.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(tokens, types.IntegerLiteral)):
        return None
    r, n = rows.literal_value, tokens.literal_value

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments[:2])
        row = []
        for _ in range(n):
            product = builder.mul(builder.load(pointer), arguments[3])
            row.append(_splat(builder, product, LANES))
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
        pointer = _address(context, builder, signature.args[3], *arguments[3:5])
        for t in range(tokens):
            x = _splat(builder, builder.load(pointer), LANES)
            for r, row in enumerate(rows):
                i = r * tokens + t
                total = builder.sitofp(wholes[i], f32x16.llvm)
                scale = builder.fmul(row, x)
                floats[i] = _call(builder, "llvm.fma.v16f32", f32x16.llvm, total, scale, floats[i])
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
        pointer = _address(context, builder, signature.args[2], *arguments[2:4])
        for t in range(tokens):
            x = _splat(builder, builder.load(pointer), LANES)
            for r, part in enumerate(parts):
                i = r * tokens + t
                floats[i] = _call(builder, "llvm.fma.v16f32", f32x16.llvm, part, x, floats[i])
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
        pointer = _address(context, builder, signature.args[0], *arguments[:2])
        vectors = []
        for _ in range(n):
            vectors.append(_load_floats(builder, pointer, element))
            pointer = builder.gep(pointer, [arguments[2]])
        return context.make_tuple(builder, signature.return_type, vectors)

    return types.UniTuple(f32x16, n)(array, types.intp, types.intp, count), emit


@intrinsic(prefer_literal=True)
def load_tile(typing_context, array, offset, stride, factors, factors_at, rows, tokens):
    """``rows x tokens`` (constants) vectors, each token's rows side by side and times its factor.

    Entry (r, t) is ``array[offset + t * stride + 16 * r]`` and on, times ``factors[factors_at + t]``.
    """
    if not (isinstance(rows, types.IntegerLiteral) and isinstance(tokens, types.IntegerLiteral)):
        return None
    r, n = rows.literal_value, tokens.literal_value

    def emit(context, builder, signature, arguments):
        pointer = _address(context, builder, signature.args[0], *arguments[:2])
        factor = _address(context, builder, signature.args[3], *arguments[3:5])
        entries = [None] * (r * n)
        for t in range(n):
            scale = _splat(builder, builder.load(factor), LANES)
            for i in range(r):
                place = builder.gep(pointer, [ir.Constant(arguments[2].type, i * LANES)])
                entries[i * n + t] = builder.fmul(_load(builder, place, f32x16.llvm), scale)
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
        row = _address(context, builder, signature.args[0], *arguments[:2])
        for r in range(rows):
            pointer = row
            for t in range(tokens):
                _store(builder, floats[r * tokens + t], pointer)
                pointer = builder.gep(pointer, [arguments[3]])
            row = builder.gep(row, [arguments[2]])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, types.intp, sums, like), emit
