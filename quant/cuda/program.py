"""The ``cuda`` backend: records a forward pass as launches, and runs them on one stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import cuda

from ..cache import KeyValues
from ..config import ModelConfig
from ..qtensor import Floats, QuantTensor
from ..reference import Chunk, rope_frequencies
from ..sampling import REPETITION_SPAN, Sampling
from ..weights import Matrix
from . import attention as attend
from . import pointwise
from .graphs import Graph
from .jit import THREADS
from .matmul import PARTS, TILE_BLOCKS, TILE_TOKENS, float_matmul, matmul, matvec
from .memory import (
    DeviceMatrix,
    DeviceRows,
    arrays_of,
    check_memory,
    kind_of,
    rows_in_bytes,
    to_device,
)
from .sampling import CHOSEN, choose
from .sampling import THREADS as CHOOSERS

Array = npt.NDArray[Any]
Launch = Callable[[Chunk], None]


class CudaProgram:
    """A recorded forward pass; see :class:`~quant.backend.Program` for what each call means.

    ``shared`` holds what all sessions of a model have in common, the weights, by the identity of
    their arrays. Nothing is allocated before :meth:`compile`, which raises
    :class:`~quant.errors.DeviceError` with numbers where it does not fit. ``inputs`` are host
    arrays whose rows go to the device before a run, ``outputs`` those whose rows for the wanted
    logits come back.
    """

    def __init__(
        self, config: ModelConfig, tokens: int, planes: int, shared: dict[int, Any]
    ) -> None:
        self._config = config
        self._tokens = tokens
        self._planes = planes
        self._shared = shared
        self._makers: list[Callable[[], Launch]] = []
        self._launches: list[Launch] = []
        self._matrices: dict[int, Matrix] = {}
        # By identity of a host array: its bytes as the device takes them, and its twin there.
        self._host: dict[int, Array] = {}
        self._twins: dict[int, Any] = {}
        self._rings: list[KeyValues] = []
        self._rows: dict[tuple[int, int], DeviceRows] = {}
        self._columns: dict[tuple[int, int], int] = {}  # of those rows
        self._splits = 1
        self._graph = Graph()
        self.inputs: list[Array] = []
        self.outputs: list[Array] = []

    # Recording.

    def embed(self, table: Matrix, ids: npt.NDArray[np.int64], x: Floats) -> None:
        self._note(table)
        self._keep(ids, x)
        self.inputs.append(ids)

        def make() -> Launch:
            matrix, where, rows = self._matrix(table), self._on(ids), self._on(x)
            kernel = pointwise.float_embed_row
            arguments: tuple[Any, ...] = matrix.floats, where, rows
            if isinstance(table, QuantTensor):
                spec = table.spec
                kernel = pointwise.embed_row(spec.bits, spec.group_size, spec.symmetric)
                arguments = (
                    matrix.codes, matrix.scales, matrix.minimums, matrix.columns, where, rows,
                )  # fmt: skip
            return lambda run: kernel[run.tokens, THREADS, self._stream](*arguments)

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
        self._keep(x, output, weight, *([] if delta is None else [delta]))
        epsilon = np.float32(self._config.rms_norm_eps)

        def make() -> Launch:
            rows, out, weights = self._on(x), self._on(output), self._on(weight)
            added = rows if delta is None else self._on(delta)
            first = self._state[pointwise.HEAD_FIRST : pointwise.HEAD_FIRST + 1]
            first = first if head else self._zero

            def launch(run: Chunk) -> None:
                _, count = run.rows(head)
                if count:
                    pointwise.norm_row[count, THREADS, self._stream](
                        rows, added, delta is not None, weights, epsilon, first, out
                    )

            return launch

        self._makers.append(make)
        self._quantize(output, weight.size, readers, head)

    def matmul(
        self, x: Floats, products: Sequence[tuple[Matrix, Floats]], head: bool = False
    ) -> None:
        for matrix, output in products:
            self._note(matrix)
            self._keep(x, output)
            self._makers.append(partial(self._product, matrix, x, output, head))
            if head:
                self.outputs = [output]  # the last of them are the logits

    def angles(self, cosines: Floats, sines: Floats) -> None:
        self._keep(cosines, sines)

        def make() -> Launch:
            frequencies = cuda.to_device(rope_frequencies(self._config))
            c, s = self._on(cosines), self._on(sines)
            return lambda run: pointwise.rope_angles[run.tokens, 32, self._stream](
                self._state, frequencies, c, s
            )

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
        self._keep(q, k, v, cosines, sines)
        self._keep_ring(ring)
        self._keep_ring(chunk)
        self._rings.append(ring)
        size = self._config.head_dim
        heads, shared = self._config.num_attention_heads, self._config.num_key_value_heads
        scale = np.float32(1 / np.sqrt(size))
        store = pointwise.store_keys(kind_of(ring), size)

        def make() -> Launch:
            queries, keys, values = self._on(q), self._on(k), self._on(v)
            c, s = self._on(cosines), self._on(sines)
            to_ring, to_chunk = self._parts(ring), self._parts(chunk)

            def launch(run: Chunk) -> None:
                n, direct = run.tokens, run.tokens == 1
                pointwise.rotate_queries[(heads, n), 32, self._stream](queries, size, scale, c, s)
                store[(shared, n), 32, self._stream](
                    self._state, keys, values, c, s, direct, *(to_ring if direct else to_chunk)
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
        self._keep(q, output)
        size = self._config.head_dim
        heads, shared = self._config.num_attention_heads, self._config.num_key_value_heads
        group = heads // shared
        kernel = attend.attention(kind_of(ring), size, group)
        step = attend.SPLIT
        # Splits begin at multiples of their length, so a window may touch one more.
        splits = -(-min(window or ring.slots, ring.slots) // step) + 1
        self._splits = max(self._splits, splits)
        tile = max(1, attend.QUERIES // group)

        def make() -> Launch:
            queries, out = self._on(q), self._on(output)
            held, fresh = self._parts(ring), self._parts(chunk)

            def launch(run: Chunk) -> None:
                _, count = run.rows(head)
                if not count:
                    return
                one = run.tokens == 1
                parts = splits if one else 1
                parts_of = self._partials[one]
                kernel[(parts, shared, -(-count // tile)), attend.THREADS, self._stream](
                    self._state, queries, head, window or 0, one, step if one else 0,
                    parts_of, *held, *fresh,
                )  # fmt: skip
                attend.combine[(heads, count), 32, self._stream](
                    self._state, parts_of, head, parts, out
                )

            return launch

        self._makers.append(make)
        self._quantize(output, heads * size, readers, head)

    def commit(self, chunk: KeyValues, ring: KeyValues) -> None:
        kernel = pointwise.commit(kind_of(ring))
        shared = self._config.num_key_value_heads

        def make() -> Launch:
            source, target = self._parts(chunk), self._parts(ring)

            def launch(run: Chunk) -> None:
                if run.tokens > 1:  # else it is there
                    kernel[(shared, run.tokens), 32, self._stream](self._state, *source, *target)

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
        self._keep(gate, up, output)
        columns = self._config.intermediate_size
        if any(not isinstance(reader, QuantTensor) for reader in readers):

            def make() -> Launch:
                arguments = self._on(gate), self._on(up), columns, self._on(output)

                def launch(run: Chunk) -> None:
                    _, count = run.rows(head)
                    if count:
                        pointwise.silu_mul_row[count, THREADS, self._stream](*arguments)

                return launch

            self._makers.append(make)
        self._quantize(output, columns, readers, head, (gate, up))

    # Running.

    def compile(self) -> None:
        """Copy weights, make room, and prepare the launches; kernels compile at their first one.

        Raises :class:`~quant.errors.DeviceError` where the device has too little memory.
        """
        if self._launches:
            return
        check_memory(self.needed_bytes())
        self._stream = cuda.stream()
        self._state = cuda.to_device(np.zeros(4, np.int64))
        self._zero = cuda.to_device(np.zeros(1, np.int64))
        self._no_scales = cuda.to_device(np.zeros((1, 1), np.float32))
        self._seen = cuda.to_device(np.zeros(REPETITION_SPAN, np.int64))
        self._scores = cuda.to_device(np.zeros(self._config.vocab_size, np.float64))
        self._result = cuda.to_device(np.zeros(2, np.int64))
        # A chunk's tokens have one part each, a single token one for each split.
        heads, width = self._config.num_attention_heads, self._config.head_dim + 2
        self._partials = tuple(
            cuda.device_array((rows, heads, splits, width), np.float32)
            for rows, splits in ((self._tokens, 1), (1, self._splits))
        )
        for key, array in self._host.items():
            self._twins[key] = cuda.to_device(array)
        for (buffer, size), columns in self._columns.items():
            self._rows[buffer, size] = rows_in_bytes(self._tokens, columns, size)
        for matrix in self._matrices.values():
            self._matrix(matrix)
        self._launches = [make() for make in self._makers]

    def is_compiled(self) -> bool:
        return bool(self._launches)

    def run(self, tokens: int, position: int, head_first: int, head_tokens: int) -> None:
        self.compile()
        chunk = Chunk(tokens, position, head_first, head_tokens)
        state = np.array([position, tokens, head_first, head_tokens], np.int64)
        self._state.copy_to_device(state, stream=self._stream)
        self._copy(self.inputs, tokens, to_device=True)
        if tokens == 1 and head_tokens == 1:
            self._graph.run(self._stream, lambda: self._launch(chunk))
        else:
            self._launch(chunk)
        self._stream.synchronize()

    def fetch(self, rows: int) -> None:
        self._copy(self.outputs, rows, to_device=False)
        self._stream.synchronize()

    def choose(self, sampling: Sampling, history: Sequence[int], draw: float) -> int | None:
        penalty = sampling.repetition_penalty
        seen = np.zeros(REPETITION_SPAN, np.int64)
        count = 0
        if penalty != 1:
            distinct = np.unique(np.asarray(history[-REPETITION_SPAN:], np.int64))
            count = distinct.size
            seen[:count] = distinct
        self._seen.copy_to_device(seen, stream=self._stream)
        choose[1, CHOOSERS, self._stream](
            self._on(self.outputs[0]), self._seen, count, penalty, float(sampling.temperature),
            sampling.top_k, float(sampling.top_p), float(sampling.min_p), draw, self._scores,
            self._result,
        )  # fmt: skip
        token, there = self._result.copy_to_host(stream=self._stream)
        self._stream.synchronize()
        return int(token) if there == CHOSEN else None

    def _launch(self, chunk: Chunk) -> None:
        for launch in self._launches:
            launch(chunk)

    def _copy(self, arrays: Sequence[Array], rows: int, to_device: bool) -> None:
        for array in arrays:
            if not rows:
                continue
            twin = self._twins[id(array)][:rows]
            if to_device:
                twin.copy_to_device(array[:rows], stream=self._stream)
            else:
                twin.copy_to_host(array[:rows], stream=self._stream)

    def read_back(self) -> None:
        """Copy the rings to the host's cache."""
        if self._launches:
            for array in self._ring_arrays():
                self._on(array).copy_to_host(self._host[id(array)])

    def take_up(self) -> None:
        """Copy the host's cache to the rings."""
        self.compile()
        for array in self._ring_arrays():
            self._on(array).copy_to_device(self._host[id(array)])

    def _ring_arrays(self) -> list[Array]:
        return [array for ring in self._rings for array in arrays_of(ring) if array.size]

    # What lies on the device.

    def needed_bytes(self) -> int:
        """Bytes of the device that :meth:`compile` takes, beside what is there already."""
        weights = sum(
            matrix.nbytes for key, matrix in self._matrices.items() if key not in self._shared
        )
        buffers = sum(array.nbytes for array in self._host.values())
        planes = sum(
            2 * self._tokens * columns + 8 * self._tokens * columns // group_size
            for (_, group_size), columns in self._columns.items()
        )
        heads, width = self._config.num_attention_heads, self._config.head_dim + 2
        return weights + buffers + planes + 4 * heads * width * (self._tokens + self._splits)

    def _keep(self, *arrays: Array) -> None:
        """Note host arrays that need a twin on the device."""
        for array in arrays:
            self._host[id(array)] = array

    def _keep_ring(self, ring: KeyValues) -> None:
        for array in arrays_of(ring):
            if array.size:
                halves = array.dtype == np.uint16
                self._host[id(array)] = array.view(np.float16) if halves else array

    def _note(self, matrix: Matrix) -> None:
        self._matrices[id(matrix)] = matrix

    def _on(self, array: Array) -> Any:
        return self._twins[id(array)]

    def _parts(self, ring: KeyValues) -> tuple[Any, ...]:
        """Keys, values and their scales on the device."""
        return tuple(
            self._on(array) if array.size else self._no_scales for array in arrays_of(ring)
        )

    def _matrix(self, matrix: Matrix) -> DeviceMatrix:
        """The twin of a matrix, which all sessions share."""
        if id(matrix) not in self._shared:
            self._shared[id(matrix)] = to_device(matrix)
        twin: DeviceMatrix = self._shared[id(matrix)]
        return twin

    # Steps that several others are made of.

    def _product(self, matrix: Matrix, x: Floats, output: Floats, head: bool) -> Launch:
        twin, out = self._matrix(matrix), self._on(output)
        rows = twin.rows
        if not isinstance(matrix, QuantTensor):
            source = self._on(x)

            def floats(run: Chunk) -> None:
                _, count = run.rows(head)
                if count:
                    blocks = -(-rows // THREADS), count
                    float_matmul[blocks, THREADS, self._stream](twin.floats, source, out)

            return floats
        spec = matrix.spec
        kind = spec.bits, spec.group_size, spec.symmetric
        data = self._rows[id(x), spec.group_size]
        operands = (
            twin.codes, twin.scales, twin.minimums, data.high, data.low, data.factors, data.sums,
            rows,
        )  # fmt: skip
        blocks = twin.codes.shape[0]
        # A single token is read in two planes always, as on the processor.
        one, many = matvec(*kind), matmul(*kind, self._planes)

        def launch(run: Chunk) -> None:
            _, count = run.rows(head)
            if run.tokens == 1 and count:
                one[blocks, 16 * PARTS, self._stream](*operands, out)
            elif count:
                tiles = -(-blocks // TILE_BLOCKS), -(-count // TILE_TOKENS)
                many[tiles, 16 * TILE_TOKENS, self._stream](*operands, count, out)

        return launch

    def _quantize(
        self,
        buffer: Floats,
        columns: int,
        readers: Sequence[Matrix],
        head: bool,
        gated: tuple[Floats, Floats] | None = None,
    ) -> None:
        """Rows of ``buffer``, or of a gate and its up, in bytes for the readers that want them."""
        packed = [each for each in readers if isinstance(each, QuantTensor)]
        for size in sorted({each.spec.group_size for each in packed}):
            self._columns[id(buffer), size] = max(columns, self._columns.get((id(buffer), size), 0))
            self._makers.append(
                partial(self._quantizer, gated or (buffer, buffer), buffer, columns, size, head)
            )

    def _quantizer(
        self,
        sources: tuple[Floats, Floats],
        buffer: Floats,
        columns: int,
        group_size: int,
        head: bool,
    ) -> Launch:
        x, up = (self._on(each) for each in sources)
        data = self._rows[id(buffer), group_size]
        groups = columns // group_size
        gated = sources[0] is not buffer
        threads = group_size // 4, pointwise.QUANTIZED_GROUPS
        one = pointwise.quantize_row(group_size, 2, gated)
        many = pointwise.quantize_row(group_size, self._planes, gated)
        blocks = -(-groups // pointwise.QUANTIZED_GROUPS)

        def launch(run: Chunk) -> None:
            _, count = run.rows(head)
            if count:
                kernel = one if run.tokens == 1 else many
                kernel[(blocks, count), threads, self._stream](
                    x, up, groups, data.high, data.low, data.factors, data.sums
                )

        return launch
