"""What a GPU has and Numba does not offer: dot products of bytes, wide loads, tensor cores.

Each function stands for an instruction (PTX ISA: ``dp4a``, ``cvt.rni``, ``ld.v2`` and ``ld.v4``,
``mma``, ``shfl``). Under the simulator the twins in
:mod:`quant.backends.cuda.simulated` take their place.
"""

from __future__ import annotations

from llvmlite import ir
from numba import cuda
from numba.core import types
from numba.cuda import cgutils
from numba.cuda.extending import intrinsic

WORD = ir.IntType(32)
GLOBAL = 1
"""The address space of the device's memory (NVVM IR)."""

WHOLE_WARP = 0xFFFFFFFF


@intrinsic
def dp4a(_typing, codes, values, total):
    """``total`` + the sum of four products: unsigned bytes of ``codes``, signed of ``values``.

    Both are 32-bit words.

    >>> dp4a(0x01_02_03_FF, 0x01_01_01_FF, 10)               # doctest: +SKIP
    -239
    """
    signature = types.int32(types.uint32, types.int32, types.int32)

    def generate(_context, builder, _signature, arguments):
        kind = ir.FunctionType(WORD, [WORD] * 3)
        code = ir.InlineAsm(kind, "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", side_effect=False)
        return builder.call(code, arguments)

    return signature, generate


@intrinsic
def to_whole(_typing, x):
    """The whole number nearest to a float32, half-way cases to the even one.

    >>> to_whole(float32(2.5)), to_whole(float32(-1.75))     # doctest: +SKIP
    (2, -2)
    """
    signature = types.int32(types.float32)

    def generate(_context, builder, _signature, arguments):
        kind = ir.FunctionType(WORD, [ir.FloatType()])
        code = ir.InlineAsm(kind, "cvt.rni.s32.f32 $0, $1;", "=r,f", side_effect=False)
        return builder.call(code, arguments)

    return signature, generate


def _wide_load(count, constant):
    """A function that loads ``count`` neighbours of an array in the device's memory at once."""

    def load(_typing, array, index):
        """Elements ``array[index]`` and those after it, as a tuple.

        ``index`` is a tuple with an entry for each dimension of the C-contiguous array. The first
        element must be aligned to the size of them all. ``load`` is for what nothing writes while
        the kernel runs.
        """
        signature = types.UniTuple(array.dtype, count)(array, index)

        def generate(context, builder, signature, arguments):
            kind, place = signature.args
            source = context.make_array(kind)(context, builder, arguments[0])
            unpacked = cgutils.unpack_tuple(builder, arguments[1], place.count)
            indices = [
                context.cast(builder, each, of, types.intp)
                for each, of in zip(unpacked, place.types, strict=True)
            ]
            pointer = cgutils.get_item_pointer(context, builder, kind, source, indices)
            element = context.get_data_type(kind.dtype)
            vector = ir.VectorType(element, count)
            wide = builder.addrspacecast(pointer, vector.as_pointer(GLOBAL))
            size = context.get_abi_sizeof(element)
            loaded = builder.load(wide, align=count * size)
            if constant:
                loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
            values = [builder.extract_element(loaded, WORD(i)) for i in range(count)]
            return context.make_tuple(builder, signature.return_type, values)

        return signature, generate

    load.__name__ = f"{'load' if constant else 'read'}{count}"
    return intrinsic(load)


load2 = _wide_load(2, constant=True)
load4 = _wide_load(4, constant=True)
read4 = _wide_load(4, constant=False)


@cuda.jit(device=True)
def exchange(value, distance):
    """What the thread of the warp has whose number differs in the bit ``distance``; all call it."""
    return cuda.shfl_xor_sync(WHOLE_WARP, value, distance)


@intrinsic
def mma(_typing, a, b, c):
    """``c`` + A x B on a tensor core: A 16 x 32 unsigned bytes, B 32 x 8 signed, c 16 x 8 int32.

    All 32 threads of a warp call it, each with its share (PTX ISA, fragments of ``mma.m16n8k32``).
    Thread ``4 * g + t`` holds:

    - in ``a`` the words of four columns that begin at (row g, column 4t), (g + 8, 4t),
      (g, 4t + 16) and (g + 8, 4t + 16);
    - in ``b`` the words of four rows that begin at (row 4t, column g) and (4t + 16, g);
    - in ``c`` and the result (row g, column 2t), (g, 2t + 1), (g + 8, 2t) and (g + 8, 2t + 1).

    Needs compute capability 8.0.
    """
    result = types.UniTuple(types.int32, 4)
    signature = result(types.UniTuple(types.uint32, 4), types.UniTuple(types.int32, 2), result)

    def generate(context, builder, signature, arguments):
        words = []
        for value, count in zip(arguments, (4, 2, 4), strict=True):
            words += cgutils.unpack_tuple(builder, value, count)
        kind = ir.FunctionType(ir.LiteralStructType([WORD] * 4), [WORD] * 10)
        text = (
            "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
            "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {$8, $9}, {$10, $11, $12, $13};"
        )
        # With side effects, so that it is never moved to where a part of the warp is alone.
        code = ir.InlineAsm(kind, text, ",".join(["=r"] * 4 + ["r"] * 10), side_effect=True)
        made = builder.call(code, words)
        values = [builder.extract_value(made, i) for i in range(4)]
        return context.make_tuple(builder, signature.return_type, values)

    return signature, generate
