"""The rolling buffer of keys and values (Mistral 7B, section 2, figure 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .config import ModelConfig
from .errors import CacheError

LANES = 16
"""Positions of a block of keys."""

TILE = 64
"""Positions that attention takes at once. A ring holds whole tiles, so a tile never wraps."""

STORED: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.uint16),
    "int8": np.dtype(np.uint8),
}
"""Element types: float32; float16, held as its bits; int8 + 128 with a float32 scale."""

Array = npt.NDArray[Any]


def element_type(kind: str) -> np.dtype[Any]:
    """The dtype of a cache of ``kind``; raises :class:`~quant.errors.CacheError` for no kind."""
    if kind not in STORED:
        raise CacheError(f"A cache holds {', '.join(STORED)}, not {kind!r}.")
    return STORED[kind]


@dataclass(frozen=True)
class KeyValues:
    """Keys and values of one layer, in a number of slots that is a multiple of ``TILE``.

    Where several sequences have theirs one behind the other, each array has an axis for them first.
    """

    keys: Array  # [kv heads, slots / 16, head_dim, 16]
    values: Array  # [kv heads, slots, head_dim]
    key_scales: npt.NDArray[np.float32]  # [kv heads, slots] for int8, else [0]
    value_scales: npt.NDArray[np.float32]  # [kv heads, slots] for int8, else [0]

    @classmethod
    def allocate(
        cls, config: ModelConfig, positions: int, kind: str, sequences: int | None = None
    ) -> KeyValues:
        """Zeroed room for ``positions`` or a few more in the element type ``kind``."""
        heads, size = config.num_key_value_heads, config.head_dim
        slots = -(-positions // TILE) * TILE
        stored = element_type(kind)
        each = () if sequences is None else (sequences,)
        scales = (*each, heads, slots) if kind == "int8" else (0,)
        return cls(
            np.zeros((*each, heads, slots // LANES, size, LANES), stored),
            np.zeros((*each, heads, slots, size), stored),
            np.zeros(scales, np.float32),
            np.zeros(scales, np.float32),
        )

    def of(self, sequence: int) -> KeyValues:
        """One sequence's part, a view."""
        if self.values.ndim == 3:
            return self
        scales = (self.key_scales, self.value_scales)
        return KeyValues(
            self.keys[sequence],
            self.values[sequence],
            *(each[sequence] if each.size else each for each in scales),
        )

    @property
    def slots(self) -> int:
        return int(self.values.shape[-2])

    @property
    def nbytes(self) -> int:
        return sum(
            array.nbytes for array in (self.keys, self.values, self.key_scales, self.value_scales)
        )


def copy_slots(source: KeyValues, target: KeyValues, slots: int) -> None:
    """Copy the first ``slots`` slots, a multiple of 64, of one sequence's ring to another's."""
    target.keys[:, : slots // LANES] = source.keys[:, : slots // LANES]
    target.values[:, :slots] = source.values[:, :slots]
    if source.key_scales.size:
        target.key_scales[:, :slots] = source.key_scales[:, :slots]
        target.value_scales[:, :slots] = source.value_scales[:, :slots]


def narrowed(config: ModelConfig, window: int | None) -> tuple[int | None, ...]:
    """Each layer's window, none wider than ``window``; raises CacheError for one of no tokens."""
    if window is not None and window < 1:
        raise CacheError("A window must hold at least one token.")
    return tuple(own if window is None else min(window, own or window) for own in config.windows)


def rings(
    config: ModelConfig,
    context: int,
    windows: tuple[int | None, ...],
    kind: str,
    sequences: int | None = None,
) -> tuple[KeyValues, ...]:
    """Room for each layer's keys and values: as many slots as its window, or as the context."""
    return tuple(
        KeyValues.allocate(config, min(window or context, context), kind, sequences)
        for window in windows
    )


class RollingCache:
    """Keys and values of every layer, position ``p`` in slot ``p mod slots``.

    A layer with a window of W has W slots, rounded up to whole tiles of 64; one without has as many
    as the context. Keys are stored after RoPE at their absolute position and never rotated again.

    Example, with tiles of one position: a window of 4 and a chunk of 3 tokens after 6 others.
    ``position`` is 6 and the slots hold positions 4, 5, 2, 3. Token 6 sees 3 4 5 6, token 8 sees
    5 6 7 8. The chunk is kept aside, read together with the ring, and written to it *after*, when
    slots 2, 3 and 0 take 6, 7 and 8; written before, 8 would have overwritten 4, which token 7
    still needs. ``position`` is now 9 and the slots hold 8, 5, 6, 7. (A single token, or a chunk
    that overwrites nothing, goes to the ring at once.)
    """

    def __init__(
        self,
        config: ModelConfig,
        context: int,
        window: int | None,
        kind: str,
        layers: tuple[KeyValues, ...] | None = None,
    ) -> None:
        self.kind = kind
        self.context = context
        self.position = 0
        self.furthest = 0
        self.windows = narrowed(config, window)
        self.layers = rings(config, context, self.windows, kind) if layers is None else layers

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and scales of all layers."""
        return sum(layer.nbytes for layer in self.layers)

    def claim(self, tokens: int) -> None:
        """Say that the next ``tokens`` positions are about to be written.

        Until :meth:`advance` follows they count as overwritten but not as there, so a chunk that
        was broken off half-way is never trusted.
        """
        self._check_held(self.position)
        self.furthest = max(self.furthest, self.position + tokens)

    def advance(self, tokens: int) -> None:
        """Note that the ``tokens`` positions that were claimed have been written."""
        self.position += tokens

    def trim(self, position: int) -> None:
        """Forget every position from ``position`` on.

        Raises :class:`~quant.errors.CacheError` where the ring has meanwhile overwritten a key that
        the next token would need; then the ids have to be fed again from the start.
        """
        if not 0 <= position <= self.position:
            raise CacheError(f"Position {position} is not among the {self.position} in the cache.")
        if position == 0:
            self.furthest = 0
        self._check_held(position)
        self.position = position

    def follow(self, other: RollingCache, position: int) -> int:
        """Stand where ``other`` had read ``position`` tokens; the count of its slots to be copied.

        Raises :class:`~quant.errors.CacheError` where it no longer holds what the next token sees.
        """
        if not 0 <= position <= other.position:
            raise CacheError(f"Position {position} is not among the {other.position} in the cache.")
        other._check_held(position)
        wrapped = any(other.furthest > layer.slots for layer in other.layers)
        self.position = position
        self.furthest = other.furthest if wrapped else position
        return -(-self.furthest // TILE) * TILE

    def _check_held(self, position: int) -> None:
        for layer, window in zip(self.layers, self.windows, strict=True):
            oldest_held = max(0, self.furthest - layer.slots)
            oldest_needed = max(0, position - (window or self.context) + 1)
            if oldest_held > oldest_needed:
                raise CacheError(
                    "The rolling buffer has overwritten what came before; feed it again."
                )
