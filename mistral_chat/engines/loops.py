"""Telling an answer that repeats itself without end."""

from __future__ import annotations

import numpy as np

LONGEST_PERIOD = 128
"""Tokens that one round of a repetition may have."""

ROUNDS = 6
LEAST_TOKENS = 96
"""A repetition counts once it has gone through that many rounds and that many tokens."""


class LoopDetector:
    """Watches ids as they come: for each period, how long the text has been repeating with it.

    With a period p, every new id that equals the one p before it goes on with the repetition; any
    other ends it. For example the ids 7 8 9 7 8 9 7 repeat with period 3 for 4 ids.
    """

    def __init__(self) -> None:
        self._last = np.full(LONGEST_PERIOD, -1, np.int64)  # the latest id first
        self._repeated = np.zeros(LONGEST_PERIOD, np.int64)
        periods = np.arange(1, LONGEST_PERIOD + 1)
        self._limits = np.maximum((ROUNDS - 1) * periods, LEAST_TOKENS - periods)

    def feed(self, token: int) -> bool:
        """Take in an id; whether the text is now in a loop."""
        self._repeated = np.where(self._last == token, self._repeated + 1, 0)
        self._last[1:] = self._last[:-1]
        self._last[0] = token
        return bool((self._repeated >= self._limits).any())
