"""The ``numpy`` backend: each step in plain NumPy and float32, to read and to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..cache import TILE, KeyValues, copy_slots
from ..config import ModelConfig
from ..qtensor import HALF_MAX, Floats, QuantTensor
from ..sampling import Sampling
from ..weights import Matrix
from .spans import Span, head_rows


def rope_frequencies(config: ModelConfig) -> npt.NDArray[np.float64]:
    """RoPE's radians a position, float64 [head_dim / 2]: ``theta ** (-2 i / head_dim)``."""
    pairs = np.arange(0, config.head_dim, 2, dtype=np.float64)
    return np.asarray(config.rope_theta ** (-pairs / config.head_dim))


def as_floats(matrix: Matrix) -> Floats:
    """A matrix as float32 [rows, columns]."""
    return matrix.dequantize() if isinstance(matrix, QuantTensor) else matrix


def rms_norm(x: Floats, weight: Floats, epsilon: float) -> Floats:
    """``x / sqrt(mean(x ** 2) + epsilon) * weight`` for rows of ``x``."""
    mean = (x.astype(np.float64) ** 2).mean(-1, keepdims=True)
    scaled: Floats = (x / np.sqrt(mean + epsilon)).astype(np.float32) * weight
    return scaled


def silu_mul(gate: Floats, up: Floats) -> Floats:
    """``gate / (1 + exp(-gate)) * up``."""
    product: Floats = gate / (1 + np.exp(-np.clip(gate, -87, None))) * up
    return product


def rotate(x: Floats, cosines: Floats, sines: Floats) -> Floats:
    """RoPE, half-split.

    ``x`` is [tokens, heads, head_dim], cosines and sines are [tokens, head_dim / 2].
    """
    a, b = np.split(x, 2, axis=-1)
    c, s = cosines[:, None], sines[:, None]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def store_slots(
    cache: KeyValues, slots: npt.NDArray[np.int64], keys: Floats, values: Floats
) -> None:
    """Write ``keys`` and ``values`` float32 [tokens, heads, head_dim] to ``slots`` [tokens]."""
    for array, scales, stored in (
        (cache.keys, cache.key_scales, keys),
        (cache.values, cache.value_scales, values),
    ):
        rows = stored.transpose(1, 0, 2)
        if array.dtype == np.uint8:
            scale = np.maximum(np.abs(rows).max(-1), np.float32(1e-30)) / np.float32(127)
            scales[:, slots] = scale
            coded = (np.rint(rows / scale[..., None]) + 128).astype(np.uint8)
        elif array.dtype == np.uint16:
            # What float16 cannot hold becomes its largest; what is not finite stays so.
            held = np.where(np.isfinite(rows), np.clip(rows, -HALF_MAX, HALF_MAX), rows)
            coded = held.astype(np.float16).view(np.uint16)
        else:
            coded = rows
        if array is cache.values:
            array[:, slots] = coded
        else:
            array[:, slots // 16, :, slots % 16] = coded.transpose(1, 0, 2)


def read_slots(cache: KeyValues) -> tuple[Floats, Floats]:
    """All keys and values as float32 [heads, padded slots, head_dim]."""
    heads, _, size, _ = cache.keys.shape
    keys = cache.keys.transpose(0, 1, 3, 2).reshape(heads, -1, size)
    return _floats(keys, cache.key_scales), _floats(cache.values, cache.value_scales)


def _floats(array: npt.NDArray[np.generic], scales: Floats) -> Floats:
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) * scales[..., None]
    if array.dtype == np.uint16:
        return array.view(np.float16).astype(np.float32)
    return array.astype(np.float32)


def attend(
    q: Floats,
    position: int,
    ring: KeyValues,
    window: int | None,
    chunk: KeyValues,
    aside: int = 0,
) -> Floats:
    """Attention of ``q`` float32 [tokens, heads, head_dim], already scaled, over ring and chunk.

    Token ``t`` is at ``position + t`` and sees the keys j with ``j <= i`` and ``j > i - window``.
    What is new lies in the chunk's slots from ``aside`` on.
    """
    tokens, heads, _ = q.shape
    held = np.arange(max(0, position - ring.slots), position)
    fresh = position + np.arange(tokens)
    parts = zip(read_slots(ring), read_slots(chunk), strict=True)
    keys, values = (
        np.concatenate(
            [old[:, held % ring.slots], new[:, aside + position % TILE + np.arange(tokens)]], 1
        )
        for old, new in parts
    )
    positions, here = np.concatenate([held, fresh]), fresh[:, None]
    seen = positions <= here
    if window is not None:
        seen &= positions > here - window
    group = heads // keys.shape[0]
    output = np.empty_like(q)
    for head in range(heads):
        scores = np.where(seen, q[:, head] @ keys[head // group].T, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        output[:, head] = weights @ values[head // group]
    return output


def _count(spans: Sequence[Span], head: bool) -> int:
    """Rows that a step works on."""
    return sum(span.rows(head)[1] for span in spans)


class ReferenceProgram:
    """A recorded forward pass; :class:`~quant.backends.protocol.Program` tells what calls mean."""

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._steps: list[Callable[[Sequence[Span]], None]] = []
        self._rings: list[KeyValues] = []

    def embed(self, table: Matrix, ids: npt.NDArray[np.int64], x: Floats) -> None:
        floats = as_floats(table)

        def step(spans: Sequence[Span]) -> None:
            n = _count(spans, False)
            x[:n, : floats.shape[1]] = floats[ids[:n]]

        self._steps.append(step)

    def norm(
        self,
        x: Floats,
        delta: Floats | None,
        weight: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        width = weight.size

        def step(spans: Sequence[Span]) -> None:
            count = _count(spans, head)
            wanted = np.array(head_rows(spans), np.int64) if head else np.arange(count)
            if delta is not None:
                x[wanted, :width] += delta[:count, :width]
            rows = x[wanted, :width]
            output[:count, :width] = rms_norm(rows, weight, self._config.rms_norm_eps)

        self._steps.append(step)

    def matmul(
        self, x: Floats, products: Sequence[tuple[Matrix, Floats]], head: bool = False
    ) -> None:
        floats = [(as_floats(matrix), output) for matrix, output in products]

        def step(spans: Sequence[Span]) -> None:
            count = _count(spans, head)
            for matrix, output in floats:
                rows, columns = matrix.shape
                output[:count, :rows] = x[:count, :columns] @ matrix.T

        self._steps.append(step)

    def angles(self, cosines: Floats, sines: Floats) -> None:
        frequencies = rope_frequencies(self._config)

        def step(spans: Sequence[Span]) -> None:
            for span in spans:
                angles = (span.position + np.arange(span.tokens))[:, None] * frequencies
                cosines[span.row : span.row + span.tokens] = np.cos(angles)
                sines[span.row : span.row + span.tokens] = np.sin(angles)

        self._steps.append(step)

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
        size = self._config.head_dim
        heads, shared = self._config.num_attention_heads, self._config.num_key_value_heads
        self._rings.append(ring)

        def step(spans: Sequence[Span]) -> None:
            n = _count(spans, False)
            query = q[:n, : heads * size].reshape(n, heads, size)
            key = k[:n, : shared * size].reshape(n, shared, size)
            value = v[:n, : shared * size].reshape(n, shared, size)
            rotated = rotate(query, cosines[:n], sines[:n]) / np.float32(np.sqrt(size))
            q[:n, : heads * size] = rotated.reshape(n, -1)
            begins = [span.aside + span.position % TILE for span in spans]
            slots = np.concatenate(
                [begin + np.arange(span.tokens) for begin, span in zip(begins, spans, strict=True)]
            )
            store_slots(chunk, slots, rotate(key, cosines[:n], sines[:n]), value)

        self._steps.append(step)

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
        heads, size = self._config.num_attention_heads, self._config.head_dim

        def step(spans: Sequence[Span]) -> None:
            for span in spans:
                rows = q[span.row : span.row + span.tokens, : heads * size]
                query = rows.reshape(span.tokens, heads, size)
                held = ring.of(span.sequence)
                result = attend(query, span.position, held, window, chunk, span.aside)
                first, count, row = span.rows(head)
                part = result[first : first + count].reshape(count, heads * size)
                output[row : row + count, : heads * size] = part

        self._steps.append(step)

    def commit(self, chunk: KeyValues, ring: KeyValues) -> None:
        def step(spans: Sequence[Span]) -> None:
            for span in spans:
                if not span.kept:
                    continue
                held = ring.of(span.sequence)
                tokens = np.arange(max(0, span.tokens - held.slots), span.tokens)
                to = (span.position + tokens) % held.slots
                at = span.aside + span.position % TILE + tokens
                held.keys[:, to // 16, :, to % 16] = chunk.keys[:, at // 16, :, at % 16]
                held.values[:, to] = chunk.values[:, at]
                if held.key_scales.size:
                    held.key_scales[:, to] = chunk.key_scales[:, at]
                    held.value_scales[:, to] = chunk.value_scales[:, at]

        self._steps.append(step)

    def gate(
        self,
        gate: Floats,
        up: Floats,
        output: Floats,
        readers: Sequence[Matrix],
        head: bool = False,
    ) -> None:
        width = self._config.intermediate_size

        def step(spans: Sequence[Span]) -> None:
            n = _count(spans, head)
            output[:n, :width] = silu_mul(gate[:n, :width], up[:n, :width])

        self._steps.append(step)

    def compile(self) -> None:
        """Nothing: NumPy is compiled."""

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
        return True

    def run(self, spans: Sequence[Span]) -> None:
        for step in self._steps:
            step(spans)
