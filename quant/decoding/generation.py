"""Prefill and decode as an iterator of token ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from ..errors import ContextFullError
from ..model import Session
from ..sampling import Sampler, Sampling


@dataclass
class Timings:
    """Counts of tokens, and seconds of wall clock. The prompt's include its first answer token."""

    prompt_tokens: int = 0
    prefill_seconds: float = 0.0
    generated_tokens: int = 0
    decode_seconds: float = 0.0


class Generation:
    """An iterator of generated ids; see :func:`generate`.

    ``finish_reason`` is ``None`` while it goes on, then ``stop`` (a stop id came), ``length``
    (``max_tokens`` reached), ``context`` (no room left) or ``cancelled``.
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
        self.finish_reason: str | None = None
        self.timings = Timings()
        self._sampler = Sampler(sampling)
        self._steps = self._run(session, ids, stop, cancel, max_tokens, progress)

    @property
    def seed(self) -> int:
        """The seed in use; with it the same ids come again."""
        return self._sampler.seed

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        return next(self._steps)

    def _run(
        self,
        session: Session,
        ids: Sequence[int],
        stop: Collection[int],
        cancel: Callable[[], bool] | None,
        max_tokens: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> Iterator[int]:
        start, before = time.perf_counter(), session.position
        token = session.next_token(ids, self._sampler, progress, cancel)
        self.timings.prompt_tokens = session.position - before
        self.timings.prefill_seconds = time.perf_counter() - start
        while True:
            if cancel is not None and cancel():
                self.finish_reason = "cancelled"
                return
            if max_tokens is not None and self.timings.generated_tokens >= max_tokens:
                self.finish_reason = "length"
                return
            if token in stop:
                self.finish_reason = "stop"
                return
            self.timings.generated_tokens += 1
            yield token
            if session.position >= session.max_context:
                self.finish_reason = "context"
                return
            if max_tokens is not None and self.timings.generated_tokens >= max_tokens:
                self.finish_reason = "length"  # the next token's logits are not needed
                return
            start = time.perf_counter()
            token = session.next_token([token], self._sampler)
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
