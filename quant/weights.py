"""The weights of one transformer."""

from __future__ import annotations

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


def check_weights(weights: Weights, config: ModelConfig) -> None:
    """See that tensors are what kernels, which are given their addresses, take them for.

    Raises :class:`~quant.errors.CheckpointError`, naming the tensor, where a shape is wrong, floats
    are not float32 side by side, or a number is not finite.
    """
    table = (config.vocab_size, config.hidden_size)
    _check("embedding", weights.embedding, table)
    if weights.head is not weights.embedding:
        _check("head", weights.head, table)
    _check("norm", weights.norm, (config.hidden_size,))
    for i, layer in enumerate(weights.layers):
        for name in ("attention_norm", "mlp_norm"):
            _check(f"layers.{i}.{name}", getattr(layer, name), (config.hidden_size,))
        for name, shape in config.matrices().items():
            _check(f"layers.{i}.{name}", getattr(layer, name), shape)
    if len(weights.layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"There are weights of {len(weights.layers)} layers; the model's geometry asks for "
            f"{config.num_hidden_layers}."
        )


def _check(name: str, tensor: Matrix, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise CheckpointError(
            f"The tensor {name} has the shape {tuple(tensor.shape)}; "
            f"the model's geometry asks for {expected}."
        )
    if not isinstance(tensor, QuantTensor) and (
        tensor.dtype != np.float32 or not tensor.flags.c_contiguous
    ):
        raise CheckpointError(f"The tensor {name} is not of float32 numbers side by side.")
    check_finite(name, tensor)


def check_finite(name: str, tensor: Matrix) -> None:
    """Raise :class:`~quant.errors.CheckpointError`, naming it, where a number is not finite."""
    arrays: tuple[npt.NDArray[Any] | None, ...] = (
        (tensor.scales, tensor.minimums) if isinstance(tensor, QuantTensor) else (tensor,)
    )
    if not all(_is_finite(array) for array in arrays if array is not None):
        raise CheckpointError(
            f"The tensor {name} holds numbers that are not finite; the file is damaged, or the "
            "model was made wrongly: fetch it again."
        )


def _is_finite(numbers: npt.NDArray[Any]) -> bool:
    """Whether all float16 or float32 numbers are: no exponent has all its bits set.

    >>> _is_finite(np.array([1, 65504], np.float16)), _is_finite(np.array([np.nan], np.float32))
    (True, False)
    """
    half = numbers.dtype == np.float16
    exponent = 0x7C00 if half else 0x7F800000
    flat = np.ascontiguousarray(numbers).reshape(-1).view(np.uint16 if half else np.uint32)
    parts = (flat[start : start + _TOGETHER] for start in range(0, flat.size, _TOGETHER))
    return all(int(np.bitwise_and(part, exponent).max()) < exponent for part in parts)


_TOGETHER = 1 << 18
"""Numbers looked at together: what is computed of them stays in a cache."""
