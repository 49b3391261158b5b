"""The weights of one transformer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import ModelConfig
from .errors import CheckpointError
from .qtensor import Floats, QuantTensor

Matrix = QuantTensor | Floats
"""A matrix: packed, or float32 [rows, columns]."""

PAGE, PAGES = 4096, 8
"""Bytes of a page that is looked at in :meth:`Weights.fingerprint`, and how many of an array."""

MATRICES = ("q", "k", "v", "o", "gate", "up", "down")


@dataclass(frozen=True)
class Layer:
    """One block: attention, then SwiGLU. Matrices are [outputs, inputs]."""

    attention_norm: Floats  # [hidden]
    q: Matrix  # [heads * head_dim, hidden], rows of a head in the half-split order
    k: Matrix  # [kv heads * head_dim, hidden], as q
    v: Matrix  # [kv heads * head_dim, hidden]
    o: Matrix  # [hidden, heads * head_dim]
    mlp_norm: Floats  # [hidden]
    gate: Matrix  # [intermediate, hidden]
    up: Matrix  # [intermediate, hidden]
    down: Matrix  # [hidden, intermediate]


@dataclass(frozen=True)
class Weights:
    """All of a model's tensors. With tied embeddings ``head`` *is* ``embedding``."""

    embedding: Matrix  # [vocab, hidden]
    layers: tuple[Layer, ...]
    norm: Floats  # [hidden]
    head: Matrix  # [vocab, hidden]

    @property
    def nbytes(self) -> int:
        """Bytes of every tensor, tied ones once."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def bytes_per_token(self) -> int:
        """Bytes that decoding one token reads: all matrices but the embedding, and the norms."""
        return self.nbytes if self.head is self.embedding else self.nbytes - self.embedding.nbytes

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, by which weights are told from others.

        Of every tensor its layout and, where it is long, eight pages spread over it: whatever makes
        other weights of a model (other bits or groups, another method, more training) changes each
        tensor it touches all over, and to read 4 GB at each start would take as long as the start.
        One weight changed by hand in a large tensor may go unnoticed.
        """
        whole = hashlib.sha256()
        for tensor in self._tensors():
            whole.update(repr(tensor.spec if isinstance(tensor, QuantTensor) else None).encode())
            for array in _arrays(tensor):
                whole.update(repr((array.dtype.str, array.shape)).encode())
                flat = array.reshape(-1).view(np.uint8)
                if flat.size <= 2 * PAGES * PAGE:
                    whole.update(flat.data)
                    continue
                for page in range(PAGES):
                    start = page * (flat.size - PAGE) // (PAGES - 1)
                    whole.update(flat[start : start + PAGE].data)
        return whole.hexdigest()

    def _tensors(self) -> Iterator[Matrix]:
        yield self.embedding
        for layer in self.layers:
            yield layer.attention_norm
            yield layer.mlp_norm
            for name in MATRICES:
                yield getattr(layer, name)
        yield self.norm
        if self.head is not self.embedding:
            yield self.head


def _arrays(tensor: Matrix) -> list[npt.NDArray[Any]]:
    """The arrays that a matrix consists of."""
    if not isinstance(tensor, QuantTensor):
        return [tensor]
    minimums = [] if tensor.minimums is None else [tensor.minimums]
    return [tensor.codes, tensor.scales, *minimums]


def check_shapes(weights: Weights, config: ModelConfig) -> None:
    """Raise :class:`~quant.errors.CheckpointError`, naming the tensor, where a shape is wrong."""
    table = (config.vocab_size, config.hidden_size)
    _check("embedding", weights.embedding.shape, table)
    _check("head", weights.head.shape, table)
    _check("norm", weights.norm.shape, (config.hidden_size,))
    for i, layer in enumerate(weights.layers):
        for name in ("attention_norm", "mlp_norm"):
            _check(f"layer {i} {name}", getattr(layer, name).shape, (config.hidden_size,))
        for name, shape in config.matrices().items():
            _check(f"layer {i} {name}", getattr(layer, name).shape, shape)


def _check(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if tuple(shape) != expected:
        raise CheckpointError(
            f"The tensor {name} has the shape {tuple(shape)}; "
            f"the model's geometry asks for {expected}."
        )
