"""Vectors of the processor as ordinary local variables of a Numba function.

A :class:`Vector` is a Numba type whose value *is* an LLVM vector, so ``a + b * c`` on three
variables of type ``f32x16`` compiles to vector instructions and stays in registers. Every vector
here is 512 bits wide. Where registers are narrower, LLVM splits it into two or four; the one
operation that has to know the processor is in :mod:`quant.kernels.dot`.

Example, inside a kernel::

    total = splat(np.float32(0))
    for i in range(0, x.size, 16):
        total = fma(load(x, i), load(y, i), total)
    result = sum_lanes(total)
"""

from __future__ import annotations

import math
import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

from ..qtensor import HALF_MAX

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


I8, I16, I32, F16, F32 = (
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.HalfType(),
    ir.FloatType(),
)

i8x64 = Vector("i8x64", I8, 64)
i32x16 = Vector("i32x16", I32, 16)
f32x16 = Vector("f32x16", F32, 16)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, vector.llvm)


# Helpers for those that emit code. `builder` is llvmlite's IRBuilder.


def constant(vector: Vector, value: float) -> ir.Constant:
    """The same number in every lane of a vector."""
    return ir.Constant(vector.llvm, [value] * vector.lanes)


def element_address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any) -> Any:
    """The address of an element of an array, given its Numba type and value."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [offset])


def emit_load(builder: Any, pointer: Any, kind: ir.Type) -> Any:
    """Read a value of an LLVM type."""
    value = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    value.align = 1  # mapped files promise no more
    return value


def emit_load_floats(builder: Any, pointer: Any, element: types.Type) -> Any:
    """16 array elements (see :func:`load`) as floats."""
    if element == types.float32:
        return emit_load(builder, pointer, f32x16.llvm)
    if element == types.uint16:
        return builder.fpext(emit_load(builder, pointer, ir.VectorType(F16, 16)), f32x16.llvm)
    wide = builder.zext(emit_load(builder, pointer, ir.VectorType(I8, 16)), i32x16.llvm)
    return builder.sitofp(builder.sub(wide, constant(i32x16, 128)), f32x16.llvm)


def emit_store(builder: Any, value: Any, pointer: Any) -> None:
    """Write a value."""
    builder.store(value, builder.bitcast(pointer, value.type.as_pointer())).align = 1


def emit_splat(builder: Any, value: Any, lanes: int) -> Any:
    """A scalar in every lane."""
    kind = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return emit_shuffle(builder, first, [0] * lanes)


def emit_shuffle(builder: Any, vector: Any, lanes: list[int]) -> Any:
    """The lanes of a vector that are listed, in that order."""
    mask = ir.Constant(ir.VectorType(I32, len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def emit_call(builder: Any, name: str, result: ir.Type, *arguments: Any) -> Any:
    """Call one of LLVM's intrinsics by name."""
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
        pointer = element_address(context, builder, signature.args[0], *arguments)
        return emit_load_floats(builder, pointer, element)

    return f32x16(array, types.intp), emit


@intrinsic
def store(typing_context, array, offset, vector):
    """The inverse of :func:`load`: round ``vector`` to the array's element and write it."""
    element = array.dtype

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments[:2])
        value = arguments[2]
        if element == types.uint16:
            value = builder.fptrunc(value, ir.VectorType(F16, 16))
        elif element == types.uint8:
            value = builder.fptosi(
                emit_call(builder, "llvm.rint.v16f32", f32x16.llvm, value), i32x16.llvm
            )
            value = builder.trunc(builder.add(value, constant(i32x16, 128)), ir.VectorType(I8, 16))
        emit_store(builder, value, pointer)
        return context.get_dummy_value()

    return types.none(array, types.intp, f32x16), emit


@intrinsic
def half_to_float(typing_context, array, offset):
    """One float16, held as uint16, as float32."""

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments)
        return builder.fpext(emit_load(builder, pointer, F16), F32)

    return types.float32(array, types.intp), emit


def emit_saturated(builder: Any, number: Any) -> Any:
    """A float32 no further from 0 than float16's largest, unless it is not finite."""
    for sign, beyond in ((1, ">"), (-1, "<")):
        largest = ir.Constant(F32, sign * HALF_MAX)
        further = builder.fcmp_ordered(beyond, number, largest)
        finite = builder.fcmp_ordered("!=", number, ir.Constant(F32, sign * math.inf))
        number = builder.select(builder.and_(further, finite), largest, number)
    return number


@intrinsic
def store_one(typing_context, array, offset, value):
    """One float32 into an array of float32 or of float16 (as uint16).

    A finite number beyond float16 becomes its largest, 65504; one that is not finite stays so.
    """
    half = array.dtype == types.uint16

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments[:2])
        number = arguments[2]
        if half:
            number = builder.fptrunc(emit_saturated(builder, number), F16)
        emit_store(builder, number, pointer)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.float32), emit


@intrinsic
def store_words(typing_context, array, offset, stride, vector):
    """The low bytes of an ``i32x16`` as four words of 4 bytes, ``stride`` bytes apart."""

    def emit(context, builder, signature, arguments):
        pointer = element_address(context, builder, signature.args[0], *arguments[:2])
        octets = builder.trunc(arguments[3], ir.VectorType(I8, 16))
        words = builder.bitcast(octets, ir.VectorType(I32, 4))
        for i in range(4):
            emit_store(builder, builder.extract_element(words, ir.Constant(I32, i)), pointer)
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
        return emit_splat(builder, arguments[0], LANES)

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
        rounded = emit_call(builder, "llvm.rint.v16f32", f32x16.llvm, arguments[0])
        return builder.fptosi(rounded, i32x16.llvm)

    return i32x16(f32x16), emit


# Arithmetic.


@intrinsic
def fma(typing_context, a, b, c):
    """``a * b + c``, rounded once."""

    def emit(context, builder, signature, arguments):
        return emit_call(builder, "llvm.fma.v16f32", f32x16.llvm, *arguments)

    return f32x16(f32x16, f32x16, f32x16), emit


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
        return builder.shl(arguments[0], emit_splat(builder, arguments[1], LANES))

    return i32x16(i32x16, types.int32), emit


@intrinsic
def shift_right(typing_context, vector, bits):
    """``vector >> bits`` with the sign, in each lane of an ``i32x16``."""

    def emit(context, builder, signature, arguments):
        return builder.ashr(arguments[0], emit_splat(builder, arguments[1], LANES))

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
        return emit_call(builder, "llvm.fabs.v16f32", f32x16.llvm, *arguments)

    return f32x16(f32x16), emit


@intrinsic
def power_of_two(typing_context, exponent):
    """``2.0 ** exponent`` for whole exponents from -126 to 127, ``i32x16`` to ``f32x16``."""

    def emit(context, builder, signature, arguments):
        biased = builder.add(arguments[0], constant(i32x16, 127))
        return builder.bitcast(builder.shl(biased, constant(i32x16, 23)), f32x16.llvm)

    return f32x16(i32x16), emit


# Across lanes. The order of the sum is fixed, so every instruction set rounds alike.


def _across(name: str, combine: Any, document: str) -> Any:
    def reduce(typing_context, vector):
        result = types.float32 if vector == f32x16 else types.int32

        def emit(context, builder, signature, arguments):
            value = arguments[0]
            for width in (8, 4, 2, 1):
                low = emit_shuffle(builder, value, list(range(width)))
                high = emit_shuffle(builder, value, list(range(width, 2 * width)))
                value = combine(builder, low, high)
            return builder.extract_element(value, ir.Constant(I32, 0))

        return result(vector), emit

    reduce.__name__ = name
    reduce.__doc__ = document
    return intrinsic(reduce)


def _add(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b) if a.type.element == F32 else builder.add(a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


sum_lanes = _across("sum_lanes", _add, "The sum of the 16 lanes.")
max_lanes = _across("max_lanes", _larger, "The largest of the 16 lanes of an ``f32x16``.")
