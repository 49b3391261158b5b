"""What threads need to work on one program: claiming work, and waiting for each other.

All state lies in int64 arrays that the threads share. Work is claimed in pieces from a counter, so
a thread that the system has put aside holds back no more than its piece.
"""

from __future__ import annotations

import platform
import sys

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .jit import kernel

SPINS = 2000
"""Looks at a barrier, a pause each, before its thread goes to sleep: some tens of microseconds."""

SPACING = 8
"""Counters stand this many int64 apart: one cache line each."""

BARRIER_SIZE = 3 * SPACING
"""int64 of a barrier: threads that have come; times that all had come; threads asleep."""

_FUTEX_WAIT, _FUTEX_WAKE = 128, 129  # private to this process
_SYSTEM_CALL = {"x86_64": 202, "aarch64": 98}.get(platform.machine(), 0)
HAS_FUTEX = sys.platform == "linux" and _SYSTEM_CALL > 0
"""Whether a thread can sleep until another wakes it; elsewhere it gives way again and again."""


@intrinsic
def atomic_add(typing_context, array, index, value):
    """Add to an int64 and return what it was before."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        pointer = builder.gep(data, [arguments[1]])
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    return types.int64(array, types.intp, types.int64), emit


@intrinsic
def atomic_load(typing_context, array, index):
    """Read an int64, and with it all that its writer wrote before."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "seq_cst", 8)

    return types.int64(array, types.intp), emit


@intrinsic
def pointer_to(typing_context, address):
    """An address as a pointer that ``numba.carray`` takes."""

    def emit(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), emit


@intrinsic
def pause(typing_context):
    """Tell the processor that this is a waiting loop."""
    name = {"x86_64": "llvm.x86.sse2.pause", "AMD64": "llvm.x86.sse2.pause"}.get(platform.machine())

    def emit(context, builder, signature, arguments):
        if name is not None:
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.none(), emit


@intrinsic
def _give_way(typing_context):
    """Let another thread have the processor."""
    name = "SwitchToThread" if sys.platform == "win32" else "sched_yield"

    def emit(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        return context.get_dummy_value()

    return types.none(), emit


@intrinsic
def _futex(typing_context, array, index, operation, value):
    """Linux's futex(2) on the low half of an int64: sleep while it is ``value``, or wake all."""

    def emit(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        word = ir.IntType(64)
        place = builder.ptrtoint(builder.gep(data, [arguments[1]]), word)
        zero = ir.Constant(word, 0)
        call = [
            ir.Constant(word, _SYSTEM_CALL),
            place,
            arguments[2],
            arguments[3],
            zero,
            zero,
            zero,
        ]
        kind = ir.FunctionType(word, [word] * 7)
        builder.call(cgutils.get_or_insert_function(builder.module, kind, "syscall"), call)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.int64, types.int64), emit


@kernel
def share(units, claim, threads):
    """The range of units that claim number ``claim`` stands for; empty at the end when all are out.

    Each round of claims shares out half of what is left, the last round the rest: long runs, which
    read memory in order, and short ones at the end, so that all threads finish together. Of 64
    units 2 threads claim 0-15, 16-31; 32-39, 40-47; 48-51, 52-55; and so on.
    """
    turn = min(claim // threads, 62)
    if turn > 0 and units >> (turn - 1) < 2 * threads:
        return units, units
    left = units >> turn
    after = left >> 1 if left >= 2 * threads else 0
    start = units - left
    width = left - after
    lane = claim % threads
    return start + width * lane // threads, start + width * (lane + 1) // threads


@kernel
def wait_for_all(barrier, threads):
    """Return once all ``threads`` have come here; ``barrier`` is int64 [BARRIER_SIZE].

    A thread looks for some microseconds and then sleeps: where others want its processor, each
    moment of looking would be taken from the very thread that it waits for.
    """
    if threads == 1:
        return
    generation = atomic_load(barrier, SPACING)
    if atomic_add(barrier, 0, 1) == threads - 1:
        atomic_add(barrier, 0, -threads)
        atomic_add(barrier, SPACING, 1)
        if HAS_FUTEX and atomic_load(barrier, 2 * SPACING) > 0:
            _futex(barrier, SPACING, _FUTEX_WAKE, np.int64(1 << 30))
        return
    for _ in range(SPINS):
        if atomic_load(barrier, SPACING) != generation:
            return
        pause()
    if HAS_FUTEX:
        # Counted before looking again, so that the last to come either is seen or sees this one.
        atomic_add(barrier, 2 * SPACING, 1)
        while atomic_load(barrier, SPACING) == generation:
            _futex(barrier, SPACING, _FUTEX_WAIT, generation & 0xFFFFFFFF)
        atomic_add(barrier, 2 * SPACING, -1)
    else:
        while atomic_load(barrier, SPACING) == generation:
            _give_way()
