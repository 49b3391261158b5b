"""What continuations of a prompt weigh, for those who judge by it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar

import quant
from mistral_chat.guardrail.moderation import Asking
from mistral_chat.models.planning import sequences_that_fit
from quant.decoding.scoring import check_continuations
from quant.decoding.tasks import Task

Result = TypeVar("Result")

HELD_BACK = 16
"""Results for each that is asked at once which may wait for an earlier one, so that a long text
holds up nobody; a verdict has some kilobytes."""


class SessionScorer:
    """Scores continuations of prompts of ``model``, each one after the other or many at once.

    The former in a session of its own, of which what is shared with the last prompt stays, the
    latter in passes that they share. Either is made when it is first needed. Raises
    :class:`~quant.errors.ConfigError` for ``options`` that cannot be.
    """

    def __init__(self, model: quant.Model, options: quant.SessionOptions) -> None:
        self._model = model
        self._options = options
        self._context = options.checked_context(model.config)
        self._scheduler: tuple[int, quant.Scheduler] | None = None

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and a continuation may have together."""
        return self._context

    def score(
        self,
        ids: Sequence[int],
        continuations: Sequence[Sequence[int]],
        cancel: Callable[[], bool] | None = None,
    ) -> list[float] | None:
        """Log-probability of each continuation in nats; None where cancelled."""
        scores = quant.score(self._session, ids, continuations, cancel=cancel)
        return None if scores is None else scores.tolist()

    def score_all(
        self,
        askings: Iterable[Asking[Result]],
        continuations: Sequence[Sequence[int]],
        at_once: int,
        cancel: Callable[[], bool] | None = None,
    ) -> Iterator[Result | None]:
        """The results of all that ask, in their order; None, and no more, where cancelled.

        Up to ``at_once`` of them, or as many as memory bears if that is less, share their passes,
        and twice as many have been begun at most. In exact mode each is sent the same scores, to
        the last bit, as it would be by :meth:`score`. ``cancel`` is asked before each pass. What
        one of them raises, or scoring for it, is raised in its place, after the results before it.
        """
        check_continuations(continuations, self._model.config.vocab_size)
        sequences, scheduler = self._shared(at_once)
        coming = iter(askings)
        under_way: deque[quant.Running[Result]] = deque()
        try:
            while True:
                while _room_for_more(under_way, sequences) and (asking := next(coming, None)):
                    under_way.append(_handed_in(scheduler, _scored(asking, continuations)))
                if not under_way:
                    return
                if under_way[0].done:
                    first = under_way.popleft()
                    if first.error is not None:
                        raise first.error
                    yield first.result
                elif cancel is not None and cancel():
                    yield None
                    return
                else:
                    scheduler.step()
        finally:
            for running in under_way:
                scheduler.cancel(running)

    @cached_property
    def _session(self) -> quant.Session:
        return self._model.open(self._options)

    def _shared(self, at_once: int) -> tuple[int, quant.Scheduler]:
        """The scheduler for so many at once, and for how many it is."""
        if self._scheduler is None or at_once != self._scheduler[0]:
            self._scheduler = None  # its memory counts as free for the next
            # Weights that are mapped from a file count as free, too, and must not lose their place.
            model, options = self._model, self._options
            sequences = sequences_that_fit(
                model.config, model.weight_bytes, self._context, options.kv, at_once
            )
            # Nobody waits for a next token, so branches do not make a pass shorter.
            scheduler = quant.Scheduler(model, options, sequences, budget=options.chunk)
            self._scheduler = at_once, scheduler
        _, scheduler = self._scheduler
        return len(scheduler.batch.caches), scheduler


def _scored(asking: Asking[Result], continuations: Sequence[Sequence[int]]) -> Task[Result]:
    """The task of one that asks: each prompt that it yields is scored by :func:`quant.scoring`."""
    scores = None
    while True:
        try:
            ids = next(asking) if scores is None else asking.send(scores)
        except StopIteration as end:
            result: Result = end.value
            return result
        scores = (yield from quant.scoring(ids, continuations)).tolist()


def _room_for_more(under_way: Sequence[quant.Running[Any]], sequences: int) -> bool:
    unfinished = sum(not running.done for running in under_way)
    return unfinished < 2 * sequences and len(under_way) < HELD_BACK * sequences


def _handed_in(scheduler: quant.Scheduler, task: Task[Result]) -> quant.Running[Result]:
    """A task as the scheduler has it, or with the error that it began with."""
    try:
        return scheduler.submit(task)
    except quant.QuantError as error:
        return quant.Running(task, done=True, error=error)
