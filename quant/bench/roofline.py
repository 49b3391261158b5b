"""What the machine could do at best: how fast it reads and multiplies, and what that allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backends.cpu import Crew
from ..batch import available_processors
from ..kernels import probes
from ..kernels.threads import BARRIER_SIZE
from ..qtensor import QuantTensor
from ..weights import MATRICES, Weights

SIZE, ROUNDS = 1 << 30, 4_000_000
"""Bytes and rounds of a probe that stands alone."""

SHORT_SIZE, SHORT_ROUNDS = 1 << 29, 2_000_000
"""Those of one that stands between two passes: some ten milliseconds, and more bytes than caches
hold."""


class Probes:
    """The two probes, ready to run: each call is one measurement by all threads together.

    ``size`` is how many bytes are read, ``rounds`` how often each thread multiplies 768 pairs of
    bytes out of registers.

    >>> probes = Probes(threads=2)                           # doctest: +SKIP
    >>> probes.read_bandwidth(), probes.dot_products()       # doctest: +SKIP
    (31.4, 602.8)
    """

    def __init__(
        self, threads: int | None = None, size: int = SHORT_SIZE, rounds: int = SHORT_ROUNDS
    ) -> None:
        self._crew = Crew(threads or available_processors())
        self._barrier = np.zeros(BARRIER_SIZE, np.int64)
        self._sink = np.empty(16 * max(64, self._crew.threads), np.float32)
        self._memory = np.ones(size // 4, np.float32)
        self._line = np.ones(128, np.int8)
        self._rounds = rounds
        # Compiled here, so that no thread waits in a barrier for one that compiles.
        few = np.ones(1024, np.float32)
        probes.read_memory(few, self._sink, self._barrier, 0, 1)
        probes.multiply(self._line, self._sink, 1, self._barrier, 0, 1)

    def read_bandwidth(self) -> float:
        """GB/s at which memory is read."""
        seconds = self._seconds(probes.read_memory, self._memory, self._sink)
        return self._memory.nbytes / 1e9 / seconds

    def dot_products(self) -> float:
        """Billions of byte products a second (GMAC/s)."""
        seconds = self._seconds(probes.multiply, self._line, self._sink, self._rounds)
        return self._rounds * probes.DOTS * 64 * self._crew.threads / 1e9 / seconds

    def _seconds(self, probe: Callable[..., None], *arguments: Any) -> float:
        start = time.perf_counter()
        self._crew.run(lambda thread: probe(*arguments, self._barrier, thread, self._crew.threads))
        return time.perf_counter() - start


def read_bandwidth(threads: int | None = None, size: int = SIZE) -> float:
    """GB/s at which all threads together read ``size`` bytes of memory; the median of nine."""
    return _typical(Probes(threads, size=size).read_bandwidth)


def dot_products(threads: int | None = None, rounds: int = ROUNDS) -> float:
    """Billions of byte products a second (GMAC/s) out of registers, all threads; median of nine."""
    return _typical(Probes(threads, size=0, rounds=rounds).dot_products)


def _typical(probe: Callable[[], float]) -> float:
    return statistics.median(probe() for _ in range(9))


@dataclass(frozen=True)
class Roofline:
    """What a pass asks of the machine: bytes of weights, and products of bytes for each token.

    Keys and values are not counted, so the share that is reached falls with the tokens in the
    cache. A layer's products count for every token, and so do the head's: logits of all of them
    are wanted.

    >>> roofline = Roofline(weight_bytes=1_000_000_000, multiply_adds=2_000_000_000)
    >>> roofline.seconds(1, 2, 40.0, 400.0)  # 25 ms to read, 10 ms to multiply
    0.025
    >>> roofline.seconds(16, 2, 40.0, 400.0)  # 25 ms to read, 160 ms to multiply
    0.16
    """

    weight_bytes: int
    multiply_adds: int

    @classmethod
    def of(cls, weights: Weights) -> Roofline:
        """Every matrix that is packed but the embedding, unless it is the head."""
        matrices = [getattr(layer, name) for layer in weights.layers for name in MATRICES]
        return cls(
            weights.bytes_per_token,
            sum(
                matrix.rows * matrix.columns
                for matrix in (*matrices, weights.head)
                if isinstance(matrix, QuantTensor)
            ),
        )

    def seconds(
        self, tokens: int, planes: int, gigabytes_per_second: float, gigamacs_per_second: float
    ) -> float:
        """The least seconds of a pass of ``tokens`` tokens, whose activations are in ``planes``.

        The larger of what reading takes and what multiplying takes, at the speeds given.
        """
        reading = self.weight_bytes / 1e9 / gigabytes_per_second
        multiplying = self.multiply_adds * planes * tokens / 1e9 / gigamacs_per_second
        return max(reading, multiplying)
