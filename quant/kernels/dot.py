"""The one operation that knows the processor: sums of four products of bytes, in 16 lanes."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from .jit import instruction_set
from .simd import I16, I32, LINE, emit_call, emit_shuffle, i32x16


def emit_dot(builder: Any, total: Any, codes: Any, signed: Any, bits: int) -> Any:
    """``total[i] + sum((codes[4*i + j] - offset) * signed[4*i + j] for j in range(4))``, exact.

    ``codes`` are 0 to 15 (``bits`` 4, offset 0) or 0 to 255 (``bits`` 8, offset
    :func:`code_offset`), ``signed`` are -127 to 127. This is what the packed layout was made for.
    """
    name = instruction_set()
    if name == "avx512vnni":
        return emit_call(builder, "llvm.x86.avx512.vpdpbusd.512", i32x16.llvm, total, codes, signed)
    if name == "avxvnni":
        return _in_parts(builder, 2, _vnni_256, total, codes, signed)
    if name == "avx2":
        return _in_parts(builder, 2, _avx2_int4 if bits == 4 else _avx2_int8, total, codes, signed)
    if name == "neon":
        return _in_parts(builder, 4, _neon_int4 if bits == 4 else _neon_int8, total, codes, signed)
    for j in range(4):
        lanes = list(range(j, LINE, 4))
        a = builder.zext(emit_shuffle(builder, codes, lanes), i32x16.llvm)
        b = builder.sext(emit_shuffle(builder, signed, lanes), i32x16.llvm)
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
            cut.append(emit_shuffle(builder, vector, list(range(i * width, (i + 1) * width))))
        parts.append(emit(builder, *cut))
    while len(parts) > 1:
        width = 2 * parts[0].type.count
        mask = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        parts = [
            builder.shuffle_vector(low, high, mask)
            for low, high in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _vnni_256(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    return emit_call(builder, "llvm.x86.avx512.vpdpbusd.256", total.type, total, codes, signed)


def _avx2_int4(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    """Pairs are added in 16 bits, which 2 * 15 * 127 fits; then pairs of pairs in 32."""
    halves = ir.VectorType(I16, 16)
    pairs = emit_call(builder, "llvm.x86.avx2.pmadd.ub.sw", halves, codes, signed)
    ones = ir.Constant(halves, [1] * 16)
    return builder.add(total, emit_call(builder, "llvm.x86.avx2.pmadd.wd", total.type, pairs, ones))


def _avx2_int8(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    """As int4, of ``|code - 128| * (sign * signed)``: 2 * 128 * 127 fits into 16 bits."""
    octets = codes.type
    centred = builder.xor(codes, ir.Constant(octets, [-128] * 32))
    size = emit_call(builder, "llvm.abs.v32i8", octets, centred, ir.Constant(ir.IntType(1), 0))
    turned = emit_call(builder, "llvm.x86.avx2.psign.b", octets, signed, centred)
    return _avx2_int4(builder, total, size, turned)


def _neon_int4(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
    return emit_call(builder, name, total.type, total, codes, signed)


def _neon_int8(builder: Any, total: Any, codes: Any, signed: Any) -> Any:
    centred = builder.xor(codes, ir.Constant(codes.type, [-128] * 16))
    return _neon_int4(builder, total, centred, signed)
