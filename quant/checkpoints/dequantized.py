"""A quantized checkpoint taken for its floats, to be quantized anew."""

from __future__ import annotations

from ..qtensor import Floats, QuantSpec, QuantTensor
from ..weights import Matrix
from .checkpoint import Checkpoint


class Dequantized:
    """``inner`` with every packed tensor dequantized as it is read."""

    def __init__(self, inner: Checkpoint) -> None:
        self._inner = inner
        self._last: tuple[str, Floats] | None = None
        self.format, self.source, self.config = inner.format, inner.source, inner.config
        self.import_errors: dict[str, float] = {}

    def digest(self) -> str:
        return self._inner.digest()

    def stored(self, name: str) -> tuple[str, int]:
        return self._inner.stored(name)

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        return self._inner.describe(name)[0], None

    def read(self, name: str) -> Matrix:
        return self.read_rows(name, 0, self.describe(name)[0][0])

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        if self._inner.describe(name)[1] is None:
            return self._inner.read_rows(name, start, stop)
        # A matrix is asked for slab by slab; one is kept.
        if self._last is None or self._last[0] != name:
            tensor = self._inner.read(name)
            floats = tensor.dequantize() if isinstance(tensor, QuantTensor) else tensor
            self._last = (name, floats)
        return self._last[1][start:stop]
