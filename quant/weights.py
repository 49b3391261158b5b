"""The weights of one transformer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import ModelConfig
from .errors import CheckpointError
from .qtensor import Floats, QuantTensor

Matrix = QuantTensor | Floats
"""A matrix: packed, or float32 [rows, columns]."""

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
