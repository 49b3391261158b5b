"""How fast the machine itself is: reading memory, and multiplying bytes."""

from __future__ import annotations

from .jit import entry
from .simd import LANES, load, store, to_f32
from .threads import wait_for_all
from .tiles import dot_tile_int4, load_lines, zeros_i32

DOTS = 12
"""Sums that :func:`multiply` keeps apart, so that none has to wait for another."""


@entry
def read_memory(source, sink, barrier, thread, threads):
    """Read ``source`` (float32), each thread its share, and return when all have."""
    step = 4 * LANES
    share = source.size // threads // step * step
    start = thread * share
    a = load(source, start)
    b = a
    c = a
    d = a
    for i in range(start, start + share, step):
        a = a + load(source, i)
        b = b + load(source, i + LANES)
        c = c + load(source, i + 2 * LANES)
        d = d + load(source, i + 3 * LANES)
    store(sink, thread * LANES, (a + b) + (c + d))
    wait_for_all(barrier, threads)


@entry
def multiply(source, sink, rounds, barrier, thread, threads):
    """``rounds * DOTS`` dot products of 64 bytes by each thread; ``source`` is 128 bytes."""
    totals = zeros_i32(DOTS)
    lines = load_lines(source, 64, 0, 0, 1)
    for i in range(rounds):
        totals = dot_tile_int4(totals, lines, source, i & 63, 0)
    result = to_f32(totals[0])
    for i in range(1, DOTS):
        result = result + to_f32(totals[i])
    store(sink, thread * LANES, result)
    wait_for_all(barrier, threads)
