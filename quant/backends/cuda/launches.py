"""Launches of which the steps of a program are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...qtensor import Floats, QuantSpec, QuantTensor
from ...weights import Matrix
from ..spans import Span
from . import matvec as vectors
from . import pointwise, tensor_cores
from .jit import THREADS, has_tensor_cores
from .matmul import TILE_BLOCKS, TILE_TOKENS, float_matmul, matmul
from .memory import DeviceMatrix, DeviceMemory

Launch = Callable[[Span], None]
Kernels = tuple[Any, Any]
"""A kernel for a single token, whose rows are in two planes always, and one for more."""


class Launches:
    """Makers of launches: each is called when the arrays that it names lie on the device."""

    def __init__(self, tokens: int, planes: int, shared: dict[int, Any]) -> None:
        self._planes = planes
        self._stream: Any = None  # there is one once everything lies on the device
        self._makers: list[Callable[[], Launch]] = []
        self.memory = DeviceMemory(tokens, shared)

    def _step(
        self,
        kernels: Kernels,
        arguments: tuple[Any, ...],
        grid: Callable[[int], Any],
        threads: int,
        head: bool = False,
    ) -> Launch:
        """A launch on ``grid(rows)`` blocks, of no rows none."""

        def launch(run: Span) -> None:
            _, count, _ = run.rows(head)
            if count:
                kernel = kernels[run.tokens > 1]
                kernel[grid(count), threads, self._stream](*arguments)

        return launch

    def _for_planes(self, kernel: Callable[[int], Any]) -> Kernels:
        """A kernel for two planes, in which a single token is read, and one for the prompt's."""
        return kernel(2), kernel(self._planes)

    def _float_product(
        self, matrix: Floats, x: Floats, output: Floats, head: bool
    ) -> Callable[[], Launch]:
        blocks = -(-matrix.shape[0] // THREADS)

        def make() -> Launch:
            twin = self.memory.matrix(matrix)
            arguments = twin.floats, self.memory.on(x), self.memory.on(output)
            kernels = float_matmul, float_matmul
            return self._step(kernels, arguments, lambda count: (blocks, count), THREADS, head)

        return make

    def _products(
        self, spec: QuantSpec, x: Floats, products: Sequence[tuple[QuantTensor, Floats]], head: bool
    ) -> Callable[[], Launch]:
        """Products that read the same bytes: one launch for a single token, else one for each."""
        kind = kind_of_product(spec)

        def make() -> Launch:
            data = self.memory.rows(x, spec.group_size).arrays
            twins = [(self.memory.matrix(matrix), self.memory.on(out)) for matrix, out in products]
            joined = [(*twin.flat, twin.rows, out) for twin, out in twins]
            # Row blocks end before those that only fill up the arguments.
            joined += joined[:1] * (vectors.JOINED - len(joined))
            row_blocks = sum(twin.codes.shape[0] for twin, _ in twins)
            split = vectors.split_for(row_blocks)
            blocks = vectors.blocks_for(row_blocks, split)
            one = vectors.matvec(*kind, split)
            lines = twins[0][0].codes.shape[1]
            operands = [each for five in joined for each in five]
            tiles = [self._tiles(kind, twin, data, out) for twin, out in twins]

            def launch(run: Span) -> None:
                _, count, _ = run.rows(head)
                if run.tokens == 1 and count:
                    one[blocks, vectors.THREADS, self._stream](*operands, lines, *data)
                elif count:
                    for each in tiles:
                        each(count)

            return launch

        return make

    def _tiles(
        self, kind: tuple[int, int, bool], twin: DeviceMatrix, data: tuple[Any, ...], output: Any
    ) -> Callable[[int], None]:
        """A product for so many tokens: on tensor cores where there are some, else by dp4a."""
        arguments = *twin.packed, *data, twin.rows
        blocks = twin.codes.shape[0]
        if has_tensor_cores():
            tile = tensor_cores.tile_for(kind[1])
            kernel = tensor_cores.matmul(*kind, self._planes, tile)
            height, width, threads = tile.row_blocks, tile.tokens, tile.threads
        else:
            kernel = matmul(*kind, self._planes)
            height, width, threads = TILE_BLOCKS, TILE_TOKENS, 16 * TILE_TOKENS

        def launch(count: int) -> None:
            grid = -(-blocks // height), -(-count // width)
            kernel[grid, threads, self._stream](*arguments, count, output)

        return launch

    def _turn_into_bytes(
        self,
        buffer: Floats,
        columns: int,
        readers: Sequence[Matrix],
        head: bool,
        gated: tuple[Floats, Floats] | None = None,
    ) -> None:
        """Rows of ``buffer``, or of a gate and its up, as bytes for the readers that want them."""
        sizes = {each.spec.group_size for each in readers if isinstance(each, QuantTensor)}
        for size in sorted(sizes):
            self.memory.need_bytes(buffer, columns, size)
            self._makers.append(self._byte_maker(gated, buffer, columns, size, head))

    def _byte_maker(
        self,
        gated: tuple[Floats, Floats] | None,
        buffer: Floats,
        columns: int,
        size: int,
        head: bool,
    ) -> Callable[[], Launch]:
        blocks = -(-columns // (4 * THREADS))

        def make() -> Launch:
            sources = [self.memory.on(each) for each in gated or (buffer, buffer)]
            arguments = *sources, columns, *self.memory.rows(buffer, size).arrays
            kernels = self._for_planes(
                lambda planes: pointwise.row_bytes(size, planes, gated is not None)
            )
            return self._step(kernels, arguments, lambda count: (blocks, count), THREADS, head)

        return make


def kind_of_product(spec: QuantSpec) -> tuple[int, int, bool]:
    """What kernels are made for: bits, group size, whether it is symmetric."""
    return spec.bits, spec.group_size, spec.symmetric
