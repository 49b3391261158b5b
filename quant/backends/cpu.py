"""The ``cpu`` backend: writes the table of steps that ``quant.kernels.program`` runs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache import TILE, KeyValues, copy_slots, element_type
from ..config import ModelConfig
from ..kernels import table as steps
from ..kernels.attention import QUERIES, SPLIT
from ..kernels.jit import is_compiled
from ..kernels.program import run
from ..kernels.threads import BARRIER_SIZE, SPACING
from ..qtensor import Floats, QuantTensor
from ..sampling import Sampling
from ..weights import Matrix
from .reference import rope_frequencies
from .scratch import padded_tokens
from .spans import Span, head_rows


@dataclass(frozen=True)
class Activation:
    """A buffer's rows in bytes, for weights with groups of ``group_size``."""

    columns: int
    group_size: int
    high: npt.NDArray[np.int8]  # [T, columns]
    low: npt.NDArray[np.int8]  # [T, columns], the second plane
    scales: Floats  # [T, groups]
    sums: npt.NDArray[np.int32]  # [T, groups] sums of the whole numbers
    totals: Floats  # [T, groups] scale * sum

    @classmethod
    def allocate(cls, tokens: int, columns: int, group_size: int) -> Activation:
        rows = padded_tokens(tokens)
        groups = (rows, columns // group_size)
        return cls(
            columns,
            group_size,
            np.zeros((rows, columns), np.int8),
            np.zeros((rows, columns), np.int8),
            np.zeros(groups, np.float32),
            np.zeros(groups, np.int32),
            np.zeros(groups, np.float32),
        )


def compile_kernels(kv: str) -> None:
    """Compile the kernels for caches of element type ``kv``, or load them from disk.

    They are the same for every model. Raises :class:`~quant.errors.CacheError` for a type that
    does not exist.
    """
    run(*_nothing(np.empty(0, element_type(kv))))


def kernels_compiled(kv: str) -> bool:
    """Whether :func:`compile_kernels` has nothing to compile: it is in memory, or on disk."""
    return is_compiled(run, *_nothing(np.empty(0, element_type(kv))))


def _nothing(kv: npt.NDArray[Any]) -> tuple[Any, ...]:
    """Arguments with which ``run`` returns at once, for a cache of elements as in ``kv``."""
    counters, barrier = np.zeros(SPACING, np.int64), np.zeros(BARRIER_SIZE, np.int64)
    none = np.zeros(0, np.int64)
    return (
        np.zeros(0, steps.STEP), counters, barrier, 0, 1, np.zeros(0, steps.SPAN), none, none, kv
    )  # fmt: skip


class CpuProgram:
    """A recorded forward pass; :class:`~quant.backends.protocol.Program` tells what calls mean."""

    def __init__(self, config: ModelConfig, tokens: int, planes: int, threads: int) -> None:
        self._config = config
        self._tokens = tokens
        self._planes = planes
        self._steps: list[dict[str, Any]] = []
        self._kept: list[Any] = []  # arrays whose addresses the steps hold
        self._activations: dict[tuple[int, int], Activation] = {}
        self._crew = Crew(threads)
        self._kv = np.empty(0, np.float32)
        self._rings: list[KeyValues] = []
        self._table: npt.NDArray[Any] | None = None
        self._barrier = np.zeros(BARRIER_SIZE, np.int64)
        group = config.num_attention_heads // config.num_key_value_heads
        width = -(-max(group, QUERIES) // 8) * 8
        # Queries, a split's output and all splits' output; scores; two states; factors.
        room = width * (3 * config.head_dim + TILE + 5)
        self._attention_scratch = np.zeros((self._crew.threads, -(-room // 16) * 16), np.float32)
        self._parts: Floats | None = None
        self._frequencies = rope_frequencies(config)

    # Recording.

    def embed(self, table: Matrix, ids: npt.NDArray[np.int64], x: Floats) -> None:
        self._add(
            steps.EMBED,
            **self._matrix(table),
            ids=self._address(ids),
            output=self._address(x),
            output_stride=x.shape[1],
        )

    def norm(
        self,
        x: Floats,
        delta: Floats | None,
        weight: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        self._quantized(
            steps.NORM,
            output,
            readers,
            x=self._address(x),
            x_stride=x.shape[1],
            delta=self._address(delta),
            delta_stride=0 if delta is None else delta.shape[1],
            weight=self._address(weight),
            columns=self._config.hidden_size,
            epsilon=self._config.rms_norm_eps,
            head=head,
        )

    def matmul(
        self, x: Floats, products: Sequence[tuple[Matrix, Floats]], head: bool = False
    ) -> None:
        for matrix, output in products:
            fields = self._matrix(matrix)
            if isinstance(matrix, QuantTensor):
                fields |= self._bytes_of(matrix.columns, matrix.spec.group_size)
            self._add(
                steps.MATMUL if isinstance(matrix, QuantTensor) else steps.FLOAT_MATMUL,
                **fields,
                x=self._address(x),
                x_stride=x.shape[1],
                output=self._address(output),
                output_stride=output.shape[1],
                head=head,
                barrier=(matrix is products[-1][0]),
            )

    def angles(self, cosines: Floats, sines: Floats) -> None:
        self._add(
            steps.ANGLES,
            frequencies=self._address(self._frequencies),
            half=self._frequencies.size,
            cosines=self._address(cosines),
            sines=self._address(sines),
        )

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
        self._rings.append(ring)
        self._add(
            steps.ROPE,
            **self._heads(),
            **self._slots("ring", ring),
            **self._slots("chunk", chunk),
            x=self._address(q),
            x_stride=q.shape[1],
            key=self._address(k),
            value=self._address(v),
            kv_stride=k.shape[1],
            cosines=self._address(cosines),
            sines=self._address(sines),
        )

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
        columns = self._config.num_attention_heads * self._config.head_dim
        self._add(
            steps.ATTENTION,
            **self._heads(),
            **self._slots("ring", ring),
            **self._slots("chunk", chunk),
            x=self._address(q),
            x_stride=q.shape[1],
            window=window or 0,
            output=self._address(output),
            output_stride=output.shape[1],
            scratch=self._address(self._attention_scratch),
            scratch_stride=self._attention_scratch.shape[1],
            parts=self._address(self._room_for_parts(ring.slots)),
            head=head,
        )
        self._add(
            steps.MERGE,
            **self._heads(),
            window=window or 0,
            output=self._address(output),
            parts=self._address(self._parts),
            head=head,
        )
        for group_size in _group_sizes(readers):
            self._add(
                steps.QUANTIZE,
                **self._bytes_of(columns, group_size),
                output=self._address(output),
                output_stride=output.shape[1],
                head=head,
            )

    def commit(self, chunk: KeyValues, ring: KeyValues) -> None:
        self._add(
            steps.COMMIT,
            **self._heads(),
            **self._slots("ring", ring),
            **self._slots("chunk", chunk),
        )

    def gate(
        self,
        gate: Floats,
        up: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        self._quantized(
            steps.GATE,
            output,
            readers,
            gate=self._address(gate),
            up=self._address(up),
            head=head,
            x_stride=gate.shape[1],
            columns=self._config.intermediate_size,
        )

    # Running.

    def run(self, spans: Sequence[Span]) -> None:
        if self._table is None:
            self._table = self._assemble(self._steps)
        self._walk(self._table, spans)

    def part(self, kinds: Collection[int]) -> Callable[[Sequence[Span]], None]:
        """A function like :meth:`run` that runs only the steps of some kinds.

        They work on whatever lies in the buffers, and leave the cache with nothing of use; this is
        for measuring. ``program.part({steps.ATTENTION})`` is the attention of all layers.
        """
        table = self._assemble([step for step in self._steps if step["op"] in kinds])
        return partial(self._walk, table)

    def compile(self) -> None:
        run(*_nothing(self._kv))

    def fetch(self, rows: int) -> None:
        """Nothing: they are there."""

    def choose(self, sampling: Sampling, history: Sequence[int], draw: float) -> None:
        """The caller chooses."""

    def read_back(self) -> None:
        """Nothing: it is there."""

    def take_up(self) -> None:
        """Nothing: it is there."""

    def copy(self, source: int, target: int, slots: int) -> None:
        for ring in self._rings:
            copy_slots(ring.of(source), ring.of(target), slots)

    def is_compiled(self) -> bool:
        return is_compiled(run, *_nothing(self._kv))

    def _walk(self, table: npt.NDArray[Any], spans: Sequence[Span]) -> None:
        counters = np.zeros(table.size * SPACING, np.int64)
        threads = self._crew.threads
        told = np.array([astuple(span) for span in spans], steps.SPAN)
        span_of = np.repeat(np.arange(len(spans)), [span.tokens for span in spans])
        wanted = np.array(head_rows(spans), np.int64)

        def work(thread: int) -> None:
            run(
                table, counters, self._barrier, thread, threads,
                told, span_of, wanted, self._kv,
            )  # fmt: skip

        self._crew.run(work)

    def _assemble(self, recorded: list[dict[str, Any]]) -> npt.NDArray[Any]:
        self.compile()  # so that no thread waits in a barrier for one that compiles
        table = np.zeros(len(recorded), steps.STEP)
        for row, fields in zip(table, recorded, strict=True):
            for name, value in fields.items():
                row[name] = value
        table[-1]["barrier"] = 1
        return table

    # How operands are written down.

    def _add(self, op: int, **fields: Any) -> None:
        self._steps.append({"op": op, "barrier": 1, "planes": self._planes, **fields})

    def _quantized(self, op: int, output: Floats, readers: Sequence[Matrix], **fields: Any) -> None:
        """A step whose output rows become bytes on the spot, and for further group sizes after."""
        columns = fields["columns"]
        fields |= {"output": self._address(output), "output_stride": output.shape[1]}
        first, *others = _group_sizes(readers) or [0]
        if first:
            fields |= self._bytes_of(columns, first)
        self._add(op, **fields)
        for group_size in others:
            self._add(
                steps.QUANTIZE,
                **self._bytes_of(columns, group_size),
                output=self._address(output),
                output_stride=output.shape[1],
                head=fields.get("head", False),
            )

    def _address(self, array: npt.NDArray[Any] | None) -> int:
        if array is None or array.size == 0:
            return 0
        self._kept.append(array)
        return int(array.ctypes.data)

    def _matrix(self, matrix: Matrix) -> dict[str, int]:
        if not isinstance(matrix, QuantTensor):
            rows, columns = matrix.shape
            return {"bits": 32, "weight": self._address(matrix), "rows": rows, "columns": columns}
        return {
            "bits": matrix.spec.bits,
            "zero": matrix.spec.zero,
            "rows": matrix.rows,
            "columns": matrix.columns,
            "group_size": matrix.spec.group_size,
            "codes": self._address(matrix.codes),
            "scales": self._address(matrix.scales),
            "minimums": self._address(matrix.minimums),
        }

    def _bytes_of(self, columns: int, group_size: int) -> dict[str, int]:
        key = (columns, group_size)
        if key not in self._activations:
            self._activations[key] = Activation.allocate(self._tokens, columns, group_size)
        activation = self._activations[key]
        return {
            "columns": columns,
            "group_size": group_size,
            "high": self._address(activation.high),
            "low": self._address(activation.low),
            "x_scales": self._address(activation.scales),
            "x_sums": self._address(activation.sums),
            "x_totals": self._address(activation.totals),
        }

    def _room_for_parts(self, slots: int) -> Floats:
        """Room for the splits of a single token: [splits, heads, head_dim + 2], for all layers."""
        splits = slots // SPLIT + 2
        if self._parts is None or self._parts.shape[0] < splits:
            heads, size = self._config.num_attention_heads, self._config.head_dim
            self._parts = np.zeros((splits, heads, size + 2), np.float32)
        return self._parts

    def _heads(self) -> dict[str, int]:
        return {
            "heads": self._config.num_attention_heads,
            "kv_heads": self._config.num_key_value_heads,
            "half": self._config.head_dim // 2,
        }

    def _slots(self, name: str, slots: KeyValues) -> dict[str, int]:
        self._kv = np.empty(0, slots.keys.dtype)
        return {
            f"{name}_keys": self._address(slots.keys),
            f"{name}_values": self._address(slots.values),
            f"{name}_key_scales": self._address(slots.key_scales),
            f"{name}_value_scales": self._address(slots.value_scales),
            f"{name}_slots": slots.slots,
        }


def _group_sizes(readers: Sequence[Matrix]) -> list[int]:
    return sorted({matrix.spec.group_size for matrix in readers if isinstance(matrix, QuantTensor)})


class Crew:
    """Threads that run one function together, the caller as number 0.

    They are Python's own threads, which hold no lock while a kernel runs, so what they cost does
    not depend on Numba's threading layer. The function must bring them together itself at its end.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._queues: list[SimpleQueue[Callable[[int], None] | None]] = []
        weakref.finalize(self, _dismiss, self._queues)

    def run(self, work: Callable[[int], None]) -> None:
        """Call ``work(0)`` here and ``work(i)`` in each other thread."""
        if not self._queues and self.threads > 1:
            for number in range(1, self.threads):
                queue: SimpleQueue[Callable[[int], None] | None] = SimpleQueue()
                threading.Thread(
                    target=_serve, args=(queue, number), name=f"quant-{number}", daemon=True
                ).start()
                self._queues.append(queue)
        for queue in self._queues:
            queue.put(work)
        work(0)


def _serve(queue: SimpleQueue[Callable[[int], None] | None], number: int) -> None:
    while (work := queue.get()) is not None:
        work(number)
        del work  # a session's arrays must not live on in an idle thread


def _dismiss(queues: list[SimpleQueue[Callable[[int], None] | None]]) -> None:
    for queue in queues:
        queue.put(None)
