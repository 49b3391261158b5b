"""What every kind of checkpoint offers."""

from __future__ import annotations

from typing import Protocol

from ..config import ModelConfig
from ..qtensor import Floats, QuantSpec
from ..weights import Matrix


class Checkpoint(Protocol):
    """A model in files, read tensor by tensor under the engine's names (see ``names.py``).

    ``format`` is what kind of checkpoint it is, in words; ``source`` the name of the file or folder
    that the weights came from. ``import_errors`` has for each tensor read so far that could not be
    taken over exactly the relative error that this left.
    """

    format: str
    source: str
    config: ModelConfig
    import_errors: dict[str, float]

    def digest(self) -> str:
        """SHA-256 of the file that the weights came from (of several: one after the other)."""

    def stored(self, name: str) -> tuple[str, int]:
        """The type that a tensor has in the file, such as ``BF16`` or ``Q4_K``, and its bytes."""

    def describe(self, name: str) -> tuple[tuple[int, ...], QuantSpec | None]:
        """Shape, and how the tensor is packed once it is read; ``None`` for floats."""

    def read(self, name: str) -> Matrix:
        """The tensor: packed as described, or float32."""

    def read_rows(self, name: str, start: int, stop: int) -> Floats:
        """Rows of a float matrix as float32 [stop - start, columns], in the engine's order.

        For ``q`` and ``k``, whose rows may lie in another order, whole heads must be asked for.
        """
