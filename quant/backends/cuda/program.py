"""The ``cuda`` backend: records a forward pass as launches, and runs them on one stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda
from numba.cuda.cudadrv.driver import CudaAPIError

from ...cache import KeyValues
from ...config import ModelConfig
from ...errors import DeviceError
from ...qtensor import Floats, QuantSpec, QuantTensor
from ...sampling import REPETITION_SPAN, Sampling
from ...weights import Matrix
from ..reference import rope_frequencies
from ..spans import Span
from . import attention as attend
from . import decode_attention, pointwise
from . import matvec as vectors
from .graphs import Graph
from .jit import THREADS
from .launches import Launch, Launches, kind_of_product
from .memory import arrays_of, check_memory, kind_of
from .sampling import CHOSEN, choose
from .sampling import THREADS as CHOOSERS
from .transfers import download, upload

Array = npt.NDArray[Any]

ROPE_THREADS = 32


class CudaProgram(Launches):
    """A recorded forward pass; :class:`~quant.backends.protocol.Program` tells what calls mean.

    ``shared`` holds what all sessions of a model have in common, the weights, by the identity of
    their arrays. Nothing is allocated before :meth:`compile`, which raises
    :class:`~quant.errors.DeviceError` with numbers where it does not fit. ``inputs`` are host
    arrays whose rows go to the device before a run, ``outputs`` those whose rows for the wanted
    logits come back.
    """

    def __init__(
        self, config: ModelConfig, tokens: int, planes: int, shared: dict[int, Any]
    ) -> None:
        super().__init__(tokens, planes, shared)
        self._config = config
        self._tokens = tokens
        self._launches: list[Launch] = []
        self._splits = 1
        self._graphs: dict[tuple[int, int, int, int], Graph] = {}
        self.inputs: list[Array] = []
        self.outputs: list[Array] = []
        self._fetched = False

    # Recording.

    def embed(self, table: Matrix, ids: npt.NDArray[np.int64], x: Floats) -> None:
        self.memory.note(table)
        self.memory.keep(ids, x)
        self.inputs.append(ids)

        def make() -> Launch:
            matrix = self.memory.matrix(table)
            rows = self.memory.on(ids), self.memory.on(x)
            kernel = pointwise.float_embed_row
            arguments: tuple[Any, ...] = matrix.floats, *rows
            if isinstance(table, QuantTensor):
                kernel = pointwise.embed_row(*kind_of_product(table.spec))
                arguments = *matrix.packed, matrix.columns, *rows
            return self._step((kernel, kernel), arguments, lambda count: count, THREADS)

        self._makers.append(make)

    def norm(
        self,
        x: Floats,
        delta: Floats | None,
        weight: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        added = x if delta is None else delta
        self.memory.keep(x, output, weight, added)
        epsilon = np.float32(self._config.rms_norm_eps)
        packed = [each for each in readers if isinstance(each, QuantTensor)]
        sizes = {each.spec.group_size for each in packed}
        # Where all readers want the same bytes, they are made at once.
        fused = len(packed) == len(readers) and len(sizes) == 1
        for size in sizes:
            self.memory.need_bytes(output, weight.size, size)

        def make() -> Launch:
            on = self.memory.on
            first = self._state[pointwise.HEAD_FIRST : pointwise.HEAD_FIRST + 1]
            arguments: tuple[Any, ...] = (
                on(x), on(added), delta is not None, on(weight), epsilon,
                first if head else self._zero,
            )  # fmt: skip
            kernels = pointwise.norm_row, pointwise.norm_row
            if fused:
                (size,) = sizes
                kernels = self._for_planes(lambda planes: pointwise.norm_bytes(size, planes))
                arguments += self.memory.rows(output, size).arrays
            else:
                arguments += (on(output),)
            return self._step(kernels, arguments, lambda count: count, pointwise.NORM_THREADS, head)

        self._makers.append(make)
        if not fused:
            self._turn_into_bytes(output, weight.size, readers, head)

    def matmul(
        self, x: Floats, products: Sequence[tuple[Matrix, Floats]], head: bool = False
    ) -> None:
        packed: dict[QuantSpec, list[tuple[QuantTensor, Floats]]] = {}
        for matrix, output in products:
            self.memory.note(matrix)
            self.memory.keep(x, output)
            if isinstance(matrix, QuantTensor):
                packed.setdefault(matrix.spec, []).append((matrix, output))
            else:
                self._makers.append(self._float_product(matrix, x, output, head))
        for spec, alike in packed.items():
            for start in range(0, len(alike), vectors.JOINED):
                part = alike[start : start + vectors.JOINED]
                self._makers.append(self._products(spec, x, part, head))
        if head:
            self.outputs = [products[-1][1]]  # the last of them are the logits

    def angles(self, cosines: Floats, sines: Floats) -> None:
        self.memory.keep(cosines, sines)

        def make() -> Launch:
            arguments = (
                self._state, cuda.to_device(rope_frequencies(self._config)),
                self.memory.on(cosines), self.memory.on(sines),
            )  # fmt: skip
            kernels = pointwise.rope_angles, pointwise.rope_angles
            return self._step(kernels, arguments, lambda count: count, ROPE_THREADS)

        self._makers.append(make)

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
        self.memory.keep(q, k, v, cosines, sines)
        self.memory.keep_ring(ring)
        self.memory.keep(*arrays_of(chunk))
        size = self._config.head_dim
        heads, shared = self._config.num_attention_heads, self._config.num_key_value_heads
        scale = np.float32(1 / np.sqrt(size))

        def make() -> Launch:
            on, kernel = self.memory.on, pointwise.rope(kind_of(ring), size)
            arguments = (
                self._state, on(q), heads, scale, on(k), on(v), on(cosines), on(sines),
            )  # fmt: skip
            to_rings, to_chunk = self.memory.parts_of_each(ring), self.memory.parts(chunk)

            def launch(run: Span) -> None:
                direct = run.tokens == 1
                kernel[(heads + shared, run.tokens), ROPE_THREADS, self._stream](
                    *arguments, direct, *(to_rings[run.sequence] if direct else to_chunk)
                )

            return launch

        self._makers.append(make)

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
        self.memory.keep(q, output)
        size = self._config.head_dim
        heads, shared = self._config.num_attention_heads, self._config.num_key_value_heads
        group = heads // shared
        kernel = attend.attention(kind_of(ring), size, group)
        single = None
        if decode_attention.fits(size):
            single = decode_attention.decode_attention(kind_of(ring), size, group)
        step = decode_attention.SPLIT
        # Splits begin at multiples of their length, so a window may touch one more.
        splits = -(-min(window or ring.slots, ring.slots) // step) + 1
        self._splits = max(self._splits, splits)
        tile = max(1, attend.QUERIES // group)

        sizes = {each.spec.group_size for each in readers if isinstance(each, QuantTensor)}
        packed = all(isinstance(each, QuantTensor) for each in readers) and len(sizes) == 1
        fused = packed and all(attend.as_bytes(size, group_size) for group_size in sizes)
        for group_size in sizes:
            self.memory.need_bytes(output, heads * size, group_size)

        def make() -> Launch:
            queries = self.memory.on(q)
            out: tuple[Any, ...] = (self.memory.on(output),)
            combine = attend.combine, attend.combine
            if fused:
                (group_size,) = sizes
                out = self.memory.rows(output, group_size).arrays
                combine = self._for_planes(
                    lambda planes: attend.combine_bytes(size, group_size, planes)
                )
            rings, fresh = self.memory.parts_of_each(ring), self.memory.parts(chunk)

            def launch(run: Span) -> None:
                _, count, _ = run.rows(head)
                if not count:
                    return
                one = run.tokens == 1
                held = rings[run.sequence]
                parts, cut = (splits, step) if one else (1, 0)
                parts_of = self._partials[one]
                if one and single is not None:
                    tiles = -(-group // decode_attention.QUERIES)
                    single[(parts, shared, tiles), decode_attention.THREADS, self._stream](
                        self._state, queries, window or 0, parts_of, *held
                    )
                else:
                    kernel[(parts, shared, -(-count // tile)), attend.THREADS, self._stream](
                        self._state, queries, head, window or 0, one, cut, parts_of,
                        *held, *fresh,
                    )  # fmt: skip
                combine[not one][(heads, count), attend.COMBINE_THREADS, self._stream](
                    self._state, parts_of, head, parts, window or 0, cut, *out
                )

            return launch

        self._makers.append(make)
        if not fused:
            self._turn_into_bytes(output, heads * size, readers, head)

    def commit(self, chunk: KeyValues, ring: KeyValues) -> None:
        shared = self._config.num_key_value_heads

        def make() -> Launch:
            kernel = pointwise.commit(kind_of(ring))
            arguments = self._state, *self.memory.parts(chunk)
            rings = self.memory.parts_of_each(ring)

            def launch(run: Span) -> None:
                if run.tokens > 1 and run.kept:  # a single token is there
                    kernel[(shared, run.tokens), ROPE_THREADS, self._stream](
                        *arguments, *rings[run.sequence]
                    )

            return launch

        self._makers.append(make)

    def gate(
        self,
        gate: Floats,
        up: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        self.memory.keep(gate, up, output)
        columns = self._config.intermediate_size
        if any(not isinstance(reader, QuantTensor) for reader in readers):

            def make() -> Launch:
                on, kernel = self.memory.on, pointwise.silu_mul_row
                arguments = on(gate), on(up), columns, on(output)
                return self._step((kernel, kernel), arguments, lambda count: count, THREADS, head)

            self._makers.append(make)
        self._turn_into_bytes(output, columns, readers, head, (gate, up))

    # Running.

    def compile(self) -> None:
        """Copy weights, make room, and prepare the launches; kernels compile at their first one.

        Raises :class:`~quant.errors.DeviceError` where the device has too little memory.
        """
        if self._launches:
            return
        check_memory(self.needed_bytes())
        try:
            self._prepare()
        except CudaAPIError as error:
            raise DeviceError(f"The GPU's driver refused: {error}.") from error

    def _prepare(self) -> None:
        self._stream = cuda.stream()
        self._state = cuda.to_device(np.zeros(4, np.int64))
        self._zero = cuda.to_device(np.zeros(1, np.int64))
        self._seen = cuda.to_device(np.zeros(REPETITION_SPAN, np.int64))
        self._scores = cuda.to_device(np.zeros(self._config.vocab_size, np.float64))
        self._result = cuda.to_device(np.zeros(2, np.int64))
        # A chunk's tokens have one part each, a single token one for each split.
        heads, width = self._config.num_attention_heads, self._config.head_dim + 2
        self._partials = tuple(
            cuda.device_array((rows, heads, splits, width), np.float32)
            for rows, splits in ((self._tokens, 1), (1, self._splits))
        )
        self.memory.allocate()
        self._launches = [make() for make in self._makers]

    def needed_bytes(self) -> int:
        """Bytes of the device that :meth:`compile` takes, beside what is there already."""
        heads, width = self._config.num_attention_heads, self._config.head_dim + 2
        partials = 4 * heads * width * (self._tokens + self._splits)
        return self.memory.needed_bytes() + partials

    def is_compiled(self) -> bool:
        return bool(self._launches)

    def run(self, spans: Sequence[Span]) -> None:
        """Sequences one after the other: here each of them reads the weights for itself."""
        self.compile()
        self._fetched = len(spans) > 1
        for span in spans:
            self._run(span)
            if self._fetched and span.wanted:
                for array in self.outputs:
                    rows = array[span.head_row : span.head_row + span.wanted]
                    download(self.memory.on(array), rows, span.wanted, self._stream)

    def _run(self, span: Span) -> None:
        tokens, first = span.tokens, span.tokens - span.wanted
        state = np.array([span.position, tokens, first, span.wanted], np.int64)
        upload(state, self._state, state.size, self._stream)
        for array in self.inputs:
            upload(array[span.row :], self.memory.on(array), tokens, self._stream)
        if tokens in (1, self._tokens):
            # Nothing else that launches are given changes between runs of one length.
            key = tokens, span.wanted, span.sequence, span.kept
            graph = self._graphs.setdefault(key, Graph())
            graph.run(self._stream, lambda: self._launch(span))
        else:
            self._launch(span)
        if tokens > 1:
            # So that whoever stops between chunks does not wait for those that follow. A token's
            # end is awaited with what it is for.
            self._stream.synchronize()

    def fetch(self, rows: int) -> None:
        if self._fetched:
            return
        for array in self.outputs if rows else ():
            self.memory.to_host(array, rows, self._stream)

    def choose(self, sampling: Sampling, history: Sequence[int], draw: float) -> int | None:
        penalty = sampling.repetition_penalty
        count = 0
        if penalty != 1:
            distinct = np.unique(np.asarray(history[-REPETITION_SPAN:], np.int64))
            count = distinct.size
            if count:
                upload(distinct, self._seen, count, self._stream)
        choose[1, CHOOSERS, self._stream](
            self.memory.on(self.outputs[0]), self._seen, count, float(penalty),
            float(sampling.temperature), sampling.top_k, float(sampling.top_p),
            float(sampling.min_p), float(draw), self._scores, self._result,
        )  # fmt: skip
        result = np.zeros(2, np.int64)
        download(self._result, result, result.size, self._stream)
        token, there = result
        return int(token) if there == CHOSEN else None

    def read_back(self) -> None:
        if self._launches:
            self._stream.synchronize()
            self.memory.read_back()

    def take_up(self) -> None:
        self.compile()
        self._stream.synchronize()
        self.memory.take_up()

    def copy(self, source: int, target: int, slots: int) -> None:
        self.compile()
        self.memory.copy(source, target, slots, self._stream)

    def _launch(self, span: Span) -> None:
        for launch in self._launches:
            launch(span)
