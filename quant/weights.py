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
    if not all(_is_finite(array) for array in _arrays(tensor) if array.dtype != np.uint8):
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
