"""What threads need to work on one program: claiming work, and waiting for each other.

All state lies in int64 arrays that the threads share. Work is claimed piece by piece from a
counter, so a thread that the system has put aside holds back no more than its piece.
"""

from __future__ import annotations

import sys

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..jit import kernel

SPINS = 4000
"""Looks at the barrier before the processor is given up: some microseconds."""

SPACING = 8
"""Counters stand this many int64 apart: one cache line each."""

_yield_processor = types.ExternalFunction(
    "SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32()
)


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
        return builder.load_atomic(builder.gep(data, [arguments[1]]), "acquire", 8)

    return types.int64(array, types.intp), emit


@intrinsic
def pointer_to(typing_context, address):
    """An address as a pointer that ``numba.carray`` takes."""

    def emit(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), emit


@kernel
def wait_for_all(barrier, threads):
    """Return once all ``threads`` have come here.

    ``barrier[0]`` counts those that have come, ``barrier[SPACING]`` the times that all had.
    """
    if threads == 1:
        return
    generation = atomic_load(barrier, SPACING)
    if atomic_add(barrier, 0, 1) == threads - 1:
        atomic_add(barrier, 0, -threads)
        atomic_add(barrier, SPACING, 1)
        return
    spins = 0
    while atomic_load(barrier, SPACING) == generation:
        spins += 1
        if spins > SPINS:
            _yield_processor()
