"""Logits to a token id."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import NotFiniteError, SamplingError
from .qtensor import Floats

REPETITION_SPAN = 256
"""Latest tokens that the repetition penalty looks at."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    The order is: repetition penalty, temperature, top-k, top-p, min-p, draw. ``temperature`` 0
    takes the likeliest token. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1
    are off. ``seed`` ``None`` takes one from the system. Raises
    :class:`~quant.errors.SamplingError`.

    Example: for probabilities 0.5, 0.3, 0.15, 0.05, ``top_p=0.75`` keeps the first two (0.5 alone
    is less than 0.75), ``min_p=0.2`` keeps those of at least 0.2 * 0.5 = 0.1, the first three.
    """

    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 100)
        _check("top_k", self.top_k, 0, 1 << 31)
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100)
        if self.seed is not None:
            _check("seed", self.seed, 0, (1 << 64) - 1)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:  # also true of NaN
        raise SamplingError(f"{name} must be between {low} and {high}, not {value}.")


def check_logits(logits: Floats) -> None:
    """Raise :class:`~quant.errors.NotFiniteError` unless all of ``logits`` are finite numbers."""
    if not np.isfinite(logits).all():
        raise NotFiniteError


class Sampler:
    """A :class:`Sampling` with its random numbers. ``seed`` is the seed in use."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self.seed = secrets.randbits(32) if sampling.seed is None else sampling.seed
        self._random = np.random.default_rng(self.seed)

    def draw(self) -> float:
        """The next random number, 0 to 1; none is taken where nothing is left to chance."""
        return 0.0 if self.sampling.temperature == 0 else float(self._random.random())

    def choose(self, logits: Floats, history: Sequence[int], draw: float | None = None) -> int:
        """A token id for ``logits`` float32 [vocab] after the ids of ``history``.

        ``draw`` is the random number to use, by default the next.
        """
        scores = logits.astype(np.float64)
        s = self.sampling
        if s.repetition_penalty != 1:
            scores = penalize(scores, history[-REPETITION_SPAN:], s.repetition_penalty)
        if s.temperature == 0:
            return int(scores.argmax())
        ids, weights = candidates(scores, s)
        number = self.draw() if draw is None else draw
        return int(ids[np.searchsorted(weights.cumsum(), number * weights.sum())])


def penalize(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], history: Sequence[int], penalty: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Make the tokens of ``history`` less likely: positive scores / penalty, negative * penalty.

    Source: CTRL (Keskar et al. 2019), section 4.1, with the sign rule of later implementations.
    """
    seen = np.unique(np.asarray(history, np.int64))
    result = scores.copy()
    values = result[seen]
    result[seen] = np.where(values > 0, values / penalty, values * penalty)
    return result


def candidates(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], sampling: Sampling
) -> tuple[
    np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.float64]]
]:
    """The ids that may be drawn, likeliest first, and their weights (largest 1, not normalized)."""
    weights = np.exp((scores - scores.max()) / sampling.temperature)
    total = weights.sum()
    if 0 < sampling.top_k < scores.size:
        # Of equal ones at the edge the smaller ids, so that every backend keeps the same.
        edge = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        above, equal = np.flatnonzero(scores > edge), np.flatnonzero(scores == edge)
        ids = np.sort(np.concatenate([above, equal[: sampling.top_k - above.size]]))
    else:
        # With weights below this no token is drawn or kept by top-p; sorting fewer is faster.
        ids = np.flatnonzero(weights >= max(sampling.min_p, 1e-12))
    order = np.argsort(-weights[ids], kind="stable")
    ids = ids[order]
    kept = weights[ids]
    if sampling.top_k:
        total = kept.sum()
    if sampling.top_p < 1:
        before = np.concatenate([[0.0], kept.cumsum()[:-1]])
        count = max(1, int((before < sampling.top_p * total).sum()))
        ids, kept = ids[:count], kept[:count]
    if sampling.min_p > 0:
        count = max(1, int((kept >= sampling.min_p * kept[0]).sum()))
        ids, kept = ids[:count], kept[:count]
    return ids.astype(np.int64), kept
