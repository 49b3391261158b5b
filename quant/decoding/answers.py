"""An answer: ids chosen one after the other, until something ends it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..sampling import Sampler, Sampling
from .tasks import Further, Prompt, Task


class Answer:
    """The ids that follow a prompt, and why there are no more.

    ``finish_reason`` is ``None`` while it goes on, then ``stop`` (a stop id came), ``length``
    (``max_tokens`` reached) or ``context`` (no room left); whoever breaks it off may set another.
    ``room`` are the tokens that can be read after the prompt.

    >>> answer = Answer(quant.Sampling(temperature=0), {2}, 100, 500)     # doctest: +SKIP
    >>> running = scheduler.submit(answer.task(ids))                      # doctest: +SKIP
    """

    def __init__(
        self, sampling: Sampling, stop: Collection[int], max_tokens: int | None, room: int
    ) -> None:
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.sampler = Sampler(sampling)
        self._stop = stop
        self._most = max_tokens
        self._room = room

    def takes(self, token: int) -> bool:
        """Whether a token that was chosen belongs to the answer; if so it is added."""
        if self._most is not None and len(self.ids) >= self._most:
            self.finish_reason = "length"
        elif token in self._stop:
            self.finish_reason = "stop"
        else:
            self.ids.append(token)
        return self.finish_reason is None

    def goes_on(self) -> bool:
        """Whether the latest token is to be read, so that another can be chosen."""
        if len(self.ids) > self._room:
            self.finish_reason = "context"
        elif self._most is not None and len(self.ids) >= self._most:
            self.finish_reason = "length"  # the next token's logits are not needed
        return self.finish_reason is None

    def task(self, prompt: Sequence[int]) -> Task[None]:
        """The task of answering a prompt; see :mod:`quant.decoding.tasks`."""
        logits = yield Prompt(prompt)
        history = list(prompt)
        while True:
            token = self.sampler.choose(logits[-1], history)
            if not self.takes(token) or not self.goes_on():
                return
            history.append(token)
            logits = yield Further([token])
