"""What continuations of a prompt weigh, for those who judge by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import quant


class SessionScorer:
    """Scores continuations in a session of its own; what is shared with the last prompt stays."""

    def __init__(self, session: quant.Session) -> None:
        self._session = session

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and a continuation may have together."""
        return self._session.max_context

    def score(
        self,
        ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        cancel: Callable[[], bool] | None = None,
    ) -> list[float] | None:
        """Log-probability of each continuation in nats; None where cancelled."""
        scores = quant.score(self._session, ids, continuations, cancel=cancel)
        return None if scores is None else scores.tolist()
