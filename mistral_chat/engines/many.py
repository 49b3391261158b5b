"""Many conversations answered at once, by a model in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import quant
from mistral_chat.engines.events import Usage
from mistral_chat.engines.writing import Writing
from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates import ChatTemplate
from mistral_chat.tokenizers import Tokenizer
from quant.decoding.answers import Answer
from quant.decoding.scheduling import Running, Scheduler
from quant.errors import ContextFullError, QuantError


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation that is to be answered, and how."""

    messages: Sequence[Message]
    sampling: quant.Sampling
    max_tokens: int | None = None
    stop_loops: bool = True


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a conversation; its fields are those of ``Finished``."""

    text: str
    finish_reason: str
    usage: Usage
    seed: int | None


@dataclass(eq=False)
class _Ticket:
    number: int
    answer: Answer
    running: Running[None]
    writing: Writing


class Answers:
    """Answers conversations, so many at once as the scheduler has sequences.

    Example, for an engine with two sequences or more::

        answers = engine.answer_many(at_once=2)
        first, second = answers.ask(Asked(hello, sampling)), answers.ask(Asked(goodbye, sampling))
        while answers.waiting:
            for number, answered in answers.step():
                print(number == first, answered)
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        stop_ids: Sequence[int],
    ) -> None:
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._template = template
        self._stop_ids = stop_ids
        self._tickets: dict[int, _Ticket] = {}
        self._next = 0
        self.tokens = 0

    @property
    def waiting(self) -> int:
        """Conversations that were asked and not answered yet."""
        return len(self._tickets)

    def ask(self, asked: Asked) -> int:
        """Take in a conversation; its number.

        Raises UsageError for one that cannot be answered, and ContextFullError for one that does
        not fit.
        """
        if not asked.messages or asked.messages[-1].role is not Role.USER:
            raise UsageError("The last message of a conversation that is answered is the user's.")
        context = self._scheduler.batch.max_context
        least = sum(self._tokenizer.least_tokens(each.text) for each in asked.messages)
        if least > context:  # told before tokens are made, which takes long
            raise ContextFullError(least, context)
        ids = self._template.encode(asked.messages)
        answer = Answer(asked.sampling, self._stop_ids, asked.max_tokens, context - len(ids))
        running = self._scheduler.submit(answer.task(ids))
        writing = Writing(self._tokenizer, stop_loops=asked.stop_loops)
        self._next += 1
        self._tickets[self._next] = _Ticket(self._next, answer, running, writing)
        return self._next

    def step(self) -> list[tuple[int, Answered | QuantError]]:
        """Read and write on by one pass; those that it finished, in order of their numbers.

        Of one that could not be answered the error stands in place of the answer.
        """
        self._scheduler.step()
        finished: list[tuple[int, Answered | QuantError]] = []
        for ticket in list(self._tickets.values()):
            answer, writing = ticket.answer, ticket.writing
            for token in answer.ids[len(writing.ids) :]:
                self.tokens += 1
                writing.feed(token)
            if writing.in_loop:
                self._scheduler.cancel(ticket.running)
            if ticket.running.done:
                del self._tickets[ticket.number]
                finished.append((ticket.number, self._result(ticket)))
        return finished

    def _result(self, ticket: _Ticket) -> Answered | QuantError:
        answer, writing = ticket.answer, ticket.writing
        if ticket.running.error is not None:
            return ticket.running.error
        writing.end(answer.finish_reason)
        return Answered(
            writing.text,
            writing.finish_reason,
            Usage(ticket.running.prompt, ticket.running.cached, len(writing.ids)),
            answer.sampler.seed,
        )
