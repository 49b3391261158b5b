"""The functions of :mod:`quant.backends.cuda.intrinsics` for Numba's simulator, in plain Python."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

WARP = 32


def _bytes(word: Any, kind: type[np.generic]) -> Any:
    """The four bytes of a 32-bit word, the lowest first."""
    return np.array([int(word) & 0xFFFFFFFF], "<u4").view(kind).astype(np.int64)


def dp4a(codes: Any, values: Any, total: Any) -> int:
    """``total`` + the sum of four products: unsigned bytes of ``codes``, signed of ``values``.

    >>> dp4a(0x01_02_03_FF, 0x01_01_01_FF, 10)
    -239
    """
    return int(total) + int(_bytes(codes, np.uint8) @ _bytes(values, np.int8))


def to_whole(x: Any) -> np.int32:
    """The whole number nearest to a float32, half-way cases to the even one.

    >>> int(to_whole(2.5)), int(to_whole(-1.75))
    (2, -2)
    """
    return np.int32(np.rint(x))


def load2(array: Any, index: tuple[int, ...]) -> tuple[Any, ...]:
    """``array[index]`` and the element after it."""
    return _load(array, index, 2)


def load4(array: Any, index: tuple[int, ...]) -> tuple[Any, ...]:
    """``array[index]`` and the three elements after it."""
    return _load(array, index, 4)


read4 = load4


def exchange(value: Any, distance: int) -> Any:
    """What the thread of the warp has whose number differs in the bit ``distance``.

    Every warp of the block has to call it equally often: they wait for each other.
    """
    thread: Any = threading.current_thread()
    number = thread.thread_id
    values = thread._manager.__dict__.setdefault("values", {})
    values[number] = value
    thread.syncthreads()
    other = values[number ^ distance]
    thread.syncthreads()
    return other


def _load(array: Any, index: tuple[int, ...], count: int) -> tuple[Any, ...]:
    *before, last = index
    if last % count:
        raise IndexError(f"{count} elements at {last} are not aligned")
    return tuple(array[(*before, last + i)] for i in range(count))


def mma(a: Any, b: Any, c: Any) -> tuple[int, ...]:
    """``c`` + A x B of a warp's threads together; where each word belongs its twin tells.

    Every warp of the block has to call it equally often: they wait for each other.
    """
    thread: Any = threading.current_thread()
    warp, lane = divmod(thread.thread_id, WARP)
    shares = thread._manager.__dict__.setdefault("shares", {})
    shares[warp, lane] = a, b
    thread.syncthreads()
    g, t = divmod(lane, 4)
    total = [int(each) for each in c]
    for entry in range(4):
        row, column = g + 8 * (entry // 2), 2 * t + entry % 2
        for k in range(4):
            # Of rows from 8 on, the words are the second and fourth of a thread.
            codes = shares[warp, 4 * (row % 8) + k][0]
            values = shares[warp, 4 * column + k][1]
            for half in range(2):
                word = codes[2 * half + row // 8]
                total[entry] = dp4a(word, values[half], total[entry])
    thread.syncthreads()
    return tuple(total)
