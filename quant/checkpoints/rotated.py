"""A checkpoint with its residual stream turned, tensor by tensor as they are read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..qtensor import Floats, QuantSpec, QuantTensor
from ..quantizers.rotation import random_rotation
from ..weights import Matrix
from .checkpoint import Checkpoint

_READS = {"q": "attention_norm", "k": "attention_norm", "v": "attention_norm"} | {
    "gate": "mlp_norm",
    "up": "mlp_norm",
}
"""Matrices that read the stream, and the norm whose gains they take up."""


class Rotated:
    """``inner``, of floats, turned by a rotation from ``seed``; norms become ones.

    Embedding and output, which differ then, are no longer shared.
    """

    def __init__(self, inner: Checkpoint, seed: int) -> None:
        self._inner = inner
        self._turn = random_rotation(inner.config.hidden_size, seed)
        self._last: tuple[str, Floats] | None = None
        self.format, self.source = inner.format, inner.source
        self.config = replace(inner.config, tie_word_embeddings=False)
        self.import_errors: dict[str, float] = {}

    def digest(self) -> str:
        return self._inner.digest()

    def stored(self, name: str) -> tuple[str, int]:
        return self._inner.stored(self._origin(name))

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        return self._inner.describe(self._origin(name))[0], None

    def read(self, name: str) -> Matrix:
        return self.read_rows(name, 0, self.describe(name)[0][0])

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        part = name.rsplit(".", 1)[-1]
        if part.endswith("norm"):
            return np.ones(stop - start, np.float32)
        if part in ("o", "down"):
            # Their outputs are turned, so that each row is made of all; one matrix is kept.
            if self._last is None or self._last[0] != name:
                rows = self.describe(name)[0][0]
                self._last = (name, self._turn.T @ self._inner.read_rows(name, 0, rows))
            return self._last[1][start:stop]
        floats = self._inner.read_rows(self._origin(name), start, stop)
        if part == "head":
            floats = floats * self._gains("norm")
        elif part in _READS:
            floats = floats * self._gains(name.removesuffix(part) + _READS[part])
        turned: Floats = floats @ self._turn
        return turned

    def _origin(self, name: str) -> str:
        return "embedding" if name == "head" and self._inner.config.tie_word_embeddings else name

    def _gains(self, name: str) -> Floats:
        gains = self._inner.read(name)
        return gains.dequantize() if isinstance(gains, QuantTensor) else gains
