"""Prefill and decode as an iterator of token ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ..errors import ContextFullError
from ..model import Session
from ..sampling import Sampling
from .answers import Answer


@dataclass
class Timings:
    """Counts of tokens, and seconds of wall clock. The prompt's include its first answer token."""

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    decode_seconds: float = 0.0


class Generation:
    """An iterator of generated ids; see :func:`generate`.

    ``finish_reason`` is ``None`` while it goes on, then one of :class:`~quant.decoding.answers.
    Answer`, or ``cancelled``.
    """

    def __init__(
        self,
        session: Session,
        ids: Sequence[int],
        sampling: Sampling,
        stop: Collection[int],
        cancel: Callable[[], bool] | None,
        max_tokens: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        available = session.max_context - session.position
        if len(ids) > available:
            raise ContextFullError(len(ids), available)
        self.timings = Timings()
        self._answer = Answer(sampling, stop, max_tokens, available - len(ids))
        self._steps = self._run(session, ids, cancel, progress)

    @property
    def finish_reason(self) -> str | None:
        """Why there are no more ids; None while there are."""
        return self._answer.finish_reason

    @property
    def seed(self) -> int:
        """The seed in use; with it the same ids come again."""
        return self._answer.sampler.seed

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._steps)

    def _run(
        self,
        session: Session,
        ids: Sequence[int],
        cancel: Callable[[], bool] | None,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[int]:
        answer = self._answer
        start, before = time.perf_counter(), session.position
        token = session.next_token(ids, answer.sampler, progress, cancel)
        self.timings.prompt_tokens = session.position - before
        self.timings.prefill_seconds = time.perf_counter() - start
        while True:
            if cancel is not None and cancel():
                answer.finish_reason = "cancelled"
                return
            if not answer.takes(token):
                return
            self.timings.generated_tokens = len(answer.ids)
            yield token
            if not answer.goes_on():
                return
            start = time.perf_counter()
            token = session.next_token([token], answer.sampler)
            self.timings.decode_seconds += time.perf_counter() - start


def generate(
    session: Session,
    ids: Sequence[int],
    sampling: Sampling,
    stop: Collection[int] = (),
    cancel: Callable[[], bool] | None = None,
    max_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Generation:
    """Read ``ids``, then yield one generated id after the other.

    A stop id ends the answer and is not yielded. ``cancel()`` is asked between chunks of the prompt
    and between tokens. A yielded token is fed when the next one is asked for, so after a break
    ``session.ids`` holds all but perhaps the last.

    Raises :class:`~quant.errors.ContextFullError` at once if the ids do not fit, and
    :class:`~quant.errors.InputError` on the first token for ids that the model does not have.
    """
    return Generation(session, ids, sampling, stop, cancel, max_tokens, progress)
