"""A text passed through a model one layer at a time, to see what each product's inputs are like.

GPTQ wants, for each matrix, the second moments of its inputs, with the layers before it already
quantized. So the texts' residual streams are kept, and each layer is run over them in stages as
its matrices become known: q, k, v, then o, then gate and up, then down. Only one layer's weights
are in memory. The stages are the steps of ``batch.record_forward``, recorded for one layer alone
and run by a backend's own kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..backends.protocol import Program, new_program
from ..backends.reference import rms_norm
from ..backends.scratch import Scratch
from ..backends.spans import lay_out
from ..cache import RollingCache
from ..config import ModelConfig
from ..qtensor import Floats
from ..weights import Matrix

ROWS_AT_ONCE = 2048
"""Rows of a Hessian that are added to at once."""

Tensors = Mapping[str, Matrix]
"""A layer's tensors by the names of :class:`~quant.weights.Layer`, as far as they are known."""


class LayerPass:
    """Residual streams of some texts, carried from layer to layer.

    ``embed`` gives float32 [n, hidden] for n ids. Texts are read each by itself from position 0.
    ``kv`` is the element of keys and values; ``f16`` has the kernels that a chat has.
    Memory: tokens * hidden * 4 bytes, and the buffers of a session as long as the longest text.
    """

    def __init__(
        self,
        config: ModelConfig,
        embed: Callable[[Sequence[int]], Floats],
        texts: Sequence[Sequence[int]],
        *,
        kv: str = "f16",
        backend: str = "cpu",
        threads: int = 1,
    ) -> None:
        self._config = config
        self._kv, self._backend, self._threads = kv, backend, threads
        self._streams = [np.array(embed(ids), np.float32) for ids in texts]
        self._longest = max(len(ids) for ids in texts)
        self._single = replace(config, num_hidden_layers=1, windows=(None,))
        self._scratch = Scratch.allocate(self._single, self._longest, kv)

    @property
    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(stream) for stream in self._streams)

    def normed(self, weight: Floats) -> Iterator[Floats]:
        """Each text's stream after RMSNorm with ``weight``, float32 [n, hidden]: inputs of q, k, v
        and of gate and up.
        """
        for stream in self._streams:
            yield rms_norm(stream, weight, self._config.rms_norm_eps)

    def attended(self, layer: Tensors, window: int | None) -> Iterator[Floats]:
        """What attention gives for each text, float32 [n, heads * head_dim]: inputs of o.

        ``layer`` has attention_norm, q, k and v.
        """
        program = self._attention(layer, window, ())
        width = self._config.num_attention_heads * self._config.head_dim
        for stream in self._streams:
            self._run(program, stream)
            yield self._scratch.h[: len(stream), :width]

    def add_attention(self, layer: Tensors, window: int | None) -> None:
        """Take up the attention block's output; ``layer`` has o as well."""
        program = self._attention(layer, window, (layer["o"],))
        program.matmul(self._scratch.h, ((layer["o"], self._scratch.delta),))
        self._take_up(program)

    def gated(self, layer: Tensors) -> Iterator[Floats]:
        """silu(gate) * up for each text, float32 [n, intermediate]: inputs of down.

        ``layer`` has mlp_norm, gate and up.
        """
        program = self._mlp(layer, ())
        for stream in self._streams:
            self._run(program, stream)
            yield self._scratch.h[: len(stream), : self._config.intermediate_size]

    def add_mlp(self, layer: Tensors) -> None:
        """Take up the feed-forward block's output; ``layer`` has down as well."""
        program = self._mlp(layer, (layer["down"],))
        program.matmul(self._scratch.h, ((layer["down"], self._scratch.delta),))
        self._take_up(program)

    def logits(self, norm: Floats, head: Matrix) -> Iterator[Floats]:
        """Each text's logits float32 [n, vocab], once all layers have been taken up."""
        program = self._program()
        s = self._scratch
        output = np.zeros((s.x.shape[0], -(-head.shape[0] // 64) * 64), np.float32)
        program.norm(s.x, None, norm, s.h, readers=(head,))
        program.matmul(s.h, ((head, output),))
        for stream in self._streams:
            self._run(program, stream)
            yield output[: len(stream), : head.shape[0]]

    def _attention(self, layer: Tensors, window: int | None, readers: Sequence[Matrix]) -> Program:
        s, program = self._scratch, self._program()
        ring = RollingCache(self._single, self._longest, None, self._kv).layers[0]
        q, k, v = layer["q"], layer["k"], layer["v"]
        program.angles(s.cosines, s.sines)
        program.norm(s.x, None, _floats(layer["attention_norm"]), s.h, readers=(q, k, v))
        program.matmul(s.h, ((q, s.q), (k, s.k), (v, s.v)))
        program.rope(s.q, s.k, s.v, s.cosines, s.sines, ring, s.chunk)
        program.attention(s.q, ring, window, s.chunk, s.h, readers=readers)
        return program

    def _mlp(self, layer: Tensors, readers: Sequence[Matrix]) -> Program:
        s, program = self._scratch, self._program()
        gate, up = layer["gate"], layer["up"]
        program.norm(s.x, None, _floats(layer["mlp_norm"]), s.h, readers=(gate, up))
        program.matmul(s.h, ((gate, s.gate), (up, s.up)))
        program.gate(s.gate, s.up, s.h, readers=readers)
        return program

    def _program(self) -> Program:
        return new_program(self._backend, self._single, self._longest, 2, self._threads, {})

    def _run(self, program: Program, stream: Floats) -> None:
        self._scratch.x[: len(stream), : stream.shape[1]] = stream
        program.run(lay_out([(0, len(stream), 0, len(stream), True)]))

    def _take_up(self, program: Program) -> None:
        for stream in self._streams:
            self._run(program, stream)
            stream += self._scratch.delta[: len(stream), : stream.shape[1]]


def second_moments(inputs: Iterator[Floats]) -> Floats:
    """X^T X over all rows of ``inputs``, float32 [n, n], divided by their number."""
    total: Floats | None = None
    rows = 0
    for part in inputs:
        if total is None:
            total = np.zeros((part.shape[1], part.shape[1]), np.float32)
        # Some rows at a time, since a product is a matrix of its own.
        for start in range(0, len(total), ROWS_AT_ONCE):
            columns = slice(start, start + ROWS_AT_ONCE)
            total[columns] += part[:, columns].T @ part
        rows += len(part)
    if total is None:
        return np.zeros((0, 0), np.float32)
    total /= np.float32(rows)
    return total


def mean_squares(inputs: Iterator[Floats]) -> Floats:
    """The diagonal of :func:`second_moments` alone, float32 [n]."""
    total: Floats = np.zeros(0, np.float32)
    rows = 0
    for part in inputs:
        squares = np.einsum("ij,ij->j", part, part)
        total = squares if rows == 0 else total + squares
        rows += len(part)
    return total / np.float32(max(rows, 1))


def _floats(tensor: Matrix) -> Floats:
    if not isinstance(tensor, np.ndarray):
        raise TypeError("A norm's weight must be floats.")
    return tensor
