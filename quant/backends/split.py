"""A forward pass on two devices: the first layers on the processor, the rest on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ..cache import KeyValues
from ..qtensor import Floats
from ..sampling import Sampling
from ..weights import Matrix
from .cpu import CpuProgram
from .cuda.program import CudaProgram
from .spans import Span

NORMS = 2
"""Norms of a layer; the first of them begins it."""


class SplitProgram:
    """Records what comes before layer ``layers`` into ``host``, all else into ``device``.

    Between them the residual stream and the last branch, a few kilobytes a token, go over the bus.
    """

    def __init__(self, host: CpuProgram, device: CudaProgram, layers: int) -> None:
        self._host = host
        self._device = device
        self._left = NORMS * layers
        self._here: CpuProgram | CudaProgram = host

    def embed(self, table: Matrix, ids: npt.NDArray[np.int64], x: Floats) -> None:
        self._host.embed(table, ids, x)

    def angles(self, cosines: Floats, sines: Floats) -> None:
        self._host.angles(cosines, sines)
        self._device.angles(cosines, sines)

    def norm(
        self,
        x: Floats,
        delta: Floats | None,
        weight: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        if self._left == 0 and self._here is self._host:
            self._here = self._device
            self._device.inputs += [x] if delta is None else [x, delta]
        self._left -= 1
        self._here.norm(x, delta, weight, output, readers, head)

    def matmul(
        self, x: Floats, products: Sequence[tuple[Matrix, Floats]], head: bool = False
    ) -> None:
        self._here.matmul(x, products, head)

    def rope(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        cosines: Floats,
        sines: Floats,
        ring: KeyValues,
        chunk: KeyValues,
    ) -> None:
        self._here.rope(q, k, v, cosines, sines, ring, chunk)

    def attention(
        self,
        q: Floats,
        ring: KeyValues,
        window: int | None,
        chunk: KeyValues,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        self._here.attention(q, ring, window, chunk, output, readers, head)

    def commit(self, chunk: KeyValues, ring: KeyValues) -> None:
        self._here.commit(chunk, ring)

    def gate(
        self,
        gate: Floats,
        up: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        self._here.gate(gate, up, output, readers, head)

    def compile(self) -> None:
        self._device.compile()
        self._host.compile()

    def is_compiled(self) -> bool:
        return self._host.is_compiled() and self._device.is_compiled()

    def run(self, spans: Sequence[Span]) -> None:
        self._host.run(spans)
        self._device.run(spans)

    def fetch(self, rows: int) -> None:
        self._device.fetch(rows)

    def choose(self, sampling: Sampling, history: Sequence[int], draw: float) -> int | None:
        return self._device.choose(sampling, history, draw)

    def read_back(self) -> None:
        self._device.read_back()

    def take_up(self) -> None:
        self._device.take_up()

    def copy(self, source: int, target: int, slots: int) -> None:
        self._host.copy(source, target, slots)
        self._device.copy(source, target, slots)
