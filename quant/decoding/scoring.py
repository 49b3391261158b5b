"""How likely each of a few continuations is after one prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..model import Session
from ..quantizers.divergence import log_softmax
from .tasks import Branches, Prompt, Task, carry_out

Doubles = npt.NDArray[np.float64]


def score(
    session: Session,
    ids: Sequence[int],
    continuations: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Doubles | None:
    """Log-probability in nats of each continuation after ``ids``, float64 [len(continuations)].

    The prompt is read once, of which what the session already holds is kept. The continuations
    branch off from its end, all in one pass if they fit into it; one that another begins with
    costs nothing beside it, and the last id of each is not read at all, since the logits before it
    tell. Afterwards the session holds ``ids``.

    Example: after a prompt, ``[[7], [8, 9], [8, 10]]`` costs one step beside the prompt, that of 8;
    the results are log P(7), log P(8) + log P(9 | 8) and log P(8) + log P(10 | 8).

    Returns None where ``cancel``, asked between chunks of the prompt and before the branches, said
    yes. Raises :class:`~quant.errors.InputError` for a continuation of no ids,
    :class:`~quant.errors.ContextFullError` for what does not fit, and
    :class:`~quant.errors.CacheError` where a sliding window has moved on so far that the session
    cannot go back to where this prompt differs from the last.
    """
    check_continuations(continuations, session.model.config.vocab_size)
    return carry_out(session, scoring(ids, continuations), progress, cancel)


def check_continuations(continuations: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Raise :class:`~quant.errors.InputError` for one of no ids, or of ids that there are not."""
    if not all(continuations):
        raise InputError("A continuation without ids has no probability.")
    if not all(0 <= token < vocab_size for each in continuations for token in each):
        raise InputError(
            f"A continuation has an id outside the model's vocabulary of {vocab_size}."
        )


def scoring(ids: Sequence[int], continuations: Sequence[Sequence[int]]) -> Task[Doubles]:
    """The task of :func:`score`."""
    logits = yield Prompt(ids)
    first = log_softmax(logits[-1])
    results = np.array([first[each[0]] for each in continuations])
    runs = _leaves([tuple(each[:-1]) for each in continuations if len(each) > 1])
    if not runs:
        return results
    chances = log_softmax((yield Branches(runs)))
    starts = np.cumsum([0, *map(len, runs)])
    for place, each in enumerate(continuations):
        inner = tuple(each[:-1])
        if inner:
            run = next(n for n, run in enumerate(runs) if run[: len(inner)] == inner)
            rows = starts[run] + np.arange(len(inner))
            results[place] += chances[rows, each[1:]].sum()
    return results


def _leaves(runs: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The runs that no other begins with, each once; in order, those with one start in a row."""
    ordered = sorted(set(runs))
    pairs = zip(ordered, [*ordered[1:], ()], strict=False)
    return [run for run, after in pairs if after[: len(run)] != run]
