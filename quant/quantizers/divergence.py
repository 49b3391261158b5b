"""How far one model's next-token distribution is from another's."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..qtensor import Floats
from ..sampling import check_logits

ROWS_AT_ONCE = 16
"""Rows that are compared at once: those of a whole text in float64 would be hundreds of megabytes,
and going through them takes many times as long."""


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log-probabilities float64 of the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


@dataclass
class Divergence:
    """KL(reference || other) of each token in nats, and whether their likeliest tokens agree."""

    values: list[float] = field(default_factory=list)
    agreeing: int = 0

    def add(self, reference: Floats, other: Floats) -> None:
        """Count rows of logits [n, vocab] of the two models.

        Raises :class:`~quant.errors.NotFiniteError` for some that are no numbers.
        """
        check_logits(reference)
        check_logits(other)
        for start in range(0, len(reference), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            p, q = log_softmax(reference[rows]), log_softmax(other[rows])
            # Rounding may leave a sum of a few 1e-17 below zero.
            divergences = np.maximum((np.exp(p) * (p - q)).sum(-1), 0.0)
            self.values.extend(divergences.tolist())
        self.agreeing += int((reference.argmax(-1) == other.argmax(-1)).sum())

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Mean KL in nats."""
        return float(np.mean(self.values)) if self.values else 0.0

    @property
    def median(self) -> float:
        """Median KL in nats."""
        return float(np.median(self.values)) if self.values else 0.0

    @property
    def percentile_99(self) -> float:
        """The KL that one token in a hundred exceeds, in nats."""
        return float(np.percentile(self.values, 99)) if self.values else 0.0

    @property
    def agreement(self) -> float:
        """Share of tokens, 0 to 1, for which both models find the same one likeliest."""
        return self.agreeing / len(self.values) if self.values else 1.0
