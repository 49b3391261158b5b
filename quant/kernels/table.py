"""The steps that a forward pass is written as: a record of addresses and sizes for each."""

from __future__ import annotations

import numba
import numpy as np

from .jit import kernel
from .threads import pointer_to

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

SPAN = np.dtype(
    [(name, np.int64) for name in "row tokens position sequence aside wanted head_row kept".split()]
)
"""One sequence's part of a pass; :class:`~quant.backends.spans.Span` says what each field is."""

ANY = 1 << 40
"""Length of a view whose bounds are known to whoever wrote the step."""


@kernel
def view(address, sample):
    """The array at ``address`` with the element type of ``sample``; empty if there is none."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), sample.dtype)


@kernel
def f32(address):
    """Float32 numbers at ``address``; see :func:`view`."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.float32)


@kernel
def u16(address):
    """Numbers of 16 bits, float16 among them, at ``address``; see :func:`view`."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.uint16)


@kernel
def u8(address):
    """Bytes at ``address``; see :func:`view`."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.uint8)


@kernel
def i8(address):
    """Signed bytes at ``address``; see :func:`view`."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.int8)


@kernel
def i32(address):
    """Whole numbers of 32 bits at ``address``; see :func:`view`."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.int32)


@kernel
def i64(address):
    """Whole numbers of 64 bits at ``address``; see :func:`view`."""
    return numba.carray(pointer_to(address), (ANY if address != 0 else 0,), np.int64)
