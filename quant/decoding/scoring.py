"""How likely each of a few continuations is after one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..model import Session
from ..qtensor import Floats
from ..quantizers.divergence import log_softmax

Doubles = npt.NDArray[np.float64]


def score(
    session: Session,
    ids: Sequence[int],
    continuations: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Doubles | None:
    """Log-probability in nats of each continuation after ``ids``, float64 [len(continuations)].

    The prompt is read once: what the session already holds of it is kept, and each continuation
    branches off from its end. Ids that several begin with are read once, too, and the last id of
    each is not read at all, since the logits before it tell. Afterwards the session holds ``ids``.

    Example: after a prompt, ``[[7], [8, 9], [8, 10]]`` costs one step beside the prompt, that of 8;
    the results are log P(7), log P(8) + log P(9 | 8) and log P(8) + log P(10 | 8).

    Returns None where ``cancel``, asked between chunks of the prompt and between branches, said
    yes. Raises :class:`~quant.errors.InputError` for a continuation of no ids,
    :class:`~quant.errors.ContextFullError` for what does not fit, and
    :class:`~quant.errors.CacheError` where a sliding window has moved on so far that a branch
    cannot be taken back; a session whose context is no longer than the window never does.
    """
    if not all(continuations):
        raise InputError("A continuation without ids has no probability.")
    size = session.model.config.vocab_size
    if not all(0 <= token < size for each in continuations for token in each):
        raise InputError(f"A continuation has an id outside the model's vocabulary of {size}.")
    kept = session.reuse(ids)
    logits = session.feed(ids[kept:], progress=progress, cancel=cancel)
    results = np.zeros(len(continuations))
    if session.position < len(ids):
        return None
    done = _descend(session, logits, list(enumerate(continuations)), 0.0, results, cancel)
    session.trim(len(ids))
    return results if done else None


Branch = tuple[int, Sequence[int]]
"""The place of a continuation in the results, and what is left of it."""


def _descend(
    session: Session,
    logits: Floats,
    branches: Sequence[Branch],
    before: float,
    results: Doubles,
    cancel: Callable[[], bool] | None,
) -> bool:
    """Score ``branches``, which begin at the session's end with ``logits``; False if cancelled."""
    position = session.position
    chances = log_softmax(logits)
    groups: dict[int, list[Branch]] = {}
    for place, rest in branches:
        groups.setdefault(int(rest[0]), []).append((place, rest))
    for first, group in groups.items():
        here = before + float(chances[first])
        for place, rest in group:
            if len(rest) == 1:
                results[place] = here
        longer = [(place, rest) for place, rest in group if len(rest) > 1]
        if not longer:
            continue
        if cancel is not None and cancel():
            return False
        session.trim(position)
        # All that they share, but for the last id of the shortest, is read in one go.
        columns = zip(*(rest[:-1] for _, rest in longer), strict=False)
        run = [column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)]
        rows = session.feed(run, every=True)
        inner = log_softmax(rows[:-1])
        here += float(inner[np.arange(len(run) - 1), run[1:]].sum())
        ends = [(place, rest[len(run) :]) for place, rest in longer]
        if not _descend(session, rows[-1], ends, here, results, cancel):
            return False
    return True
