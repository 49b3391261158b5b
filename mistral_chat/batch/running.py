"""A batch from its lines to its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from mistral_chat.batch.lines import Lines
from mistral_chat.batch.records import Record, answer_record, error_record, is_error, is_refused
from mistral_chat.batch.requests import Named, Request, named, read_request
from mistral_chat.batch.results import Results
from mistral_chat.engines.events import Usage
from mistral_chat.engines.many import Answered, Asked
from mistral_chat.guardrail.judging import Judged
from mistral_chat.guardrail.moderation import Moderator
from mistral_chat.messages import Role
from mistral_chat.settings import Settings
from mistral_chat.talk.inputs import most_bytes
from quant.errors import QuantError

AHEAD = 2
"""For each sequence so many lines are taken in, so that there is always one to go on with."""


class Answering(Protocol):
    """Who answers many conversations at once; see Answers."""

    tokens: int

    @property
    def waiting(self) -> int:
        """Conversations that were asked and not answered yet."""

    def ask(self, asked: Asked) -> int:
        """Take in a conversation; its number."""

    def step(self) -> list[tuple[int, Answered | QuantError]]:
        """Go on; those that were finished."""


@dataclass(slots=True)
class Progress:
    """How far a batch is: lines that are done of all, and tokens that were written."""

    done: int
    total: int
    tokens: int = 0


@dataclass
class Run:
    """A batch under way. ``moderator`` judges questions and answers, where there is one.

    After :meth:`go`, ``failed`` lines could not be answered and ``refused`` ones were not let pass.
    """

    answers: Answering
    results: Results
    settings: Settings
    model: str
    at_once: int
    moderator: Moderator | None = None
    failed: int = 0
    refused: int = 0
    _asked: dict[int, tuple[int, Request, list[Judged]]] = field(default_factory=dict)

    def go(
        self,
        lines: Lines,
        progress: Callable[[Progress], None],
        cancel: Callable[[], bool],
    ) -> bool:
        """Answer all lines of which there are no results yet; whether it came to the end.

        Raises OSError where a record cannot be written.
        """
        for record in self.results.records():
            self._count(record)
        done = self.results.done
        told = Progress(len(done), lines.count)
        coming = self._coming(lines, done)
        more = True
        while True:
            while more and self.answers.waiting < AHEAD * self.at_once and not cancel():
                taken = next(coming, None)
                more = taken is not None
                if taken is not None:
                    told.done += self._take(*taken, cancel)
            if cancel():
                return False
            if not self.answers.waiting:
                return True
            for number, answered in self.answers.step():
                told.done += 1
                self._finish(*self._asked.pop(number), answered)
            told.tokens = self.answers.tokens
            progress(told)

    def _coming(self, lines: Lines, done: set[int]) -> Iterator[tuple[int, bytes | Exception]]:
        for number, line in lines.numbered(*most_bytes(self.settings.context)):
            if number not in done:
                yield number, line

    def _take(self, line: int, data: bytes | Exception, cancel: Callable[[], bool]) -> bool:
        """Ask what a line asks; whether it is done with already."""
        self.results.expect(line)
        name = Named()
        try:
            if isinstance(data, Exception):
                raise data
            name = named(data)
            request = read_request(data, self.settings)
            judged: list[Judged] = []
            if self.moderator is not None:
                verdict = self.moderator.judge(request.question, cancel=cancel)
                if verdict is None:
                    return False
                judged.append(Judged(Role.USER, verdict))
                if verdict.refused:
                    nothing = Answered("", "refused", Usage(0, 0, 0), None)
                    self._put(line, answer_record(line, request, nothing, judged, self.model))
                    return True
            self._asked[self.answers.ask(request.asked)] = line, request, judged
        except QuantError as error:
            self._put(line, error_record(line, name, error))
            return True
        return False

    def _finish(
        self, line: int, request: Request, judged: list[Judged], answered: Answered | QuantError
    ) -> None:
        try:
            if isinstance(answered, QuantError):
                raise answered
            answered = self._judged(request, judged, answered)
        except QuantError as error:
            self._put(line, error_record(line, request.named, error))
        else:
            self._put(line, answer_record(line, request, answered, judged, self.model))

    def _judged(self, request: Request, judged: list[Judged], answered: Answered) -> Answered:
        """An answer as it may be told; the verdict on it is added to those that are ``judged``."""
        if self.moderator is None or not answered.text.strip():
            return answered
        # Judged to the end, also after Ctrl-C: a batch that stops loses nothing that is finished.
        verdict = self.moderator.judge(answered.text, Role.ASSISTANT, request.question)
        if verdict is None:
            return answered
        judged.append(Judged(Role.ASSISTANT, verdict))
        return replace(answered, text="", finish_reason="refused") if verdict.refused else answered

    def _put(self, line: int, record: Record) -> None:
        self.results.put(line, record)
        self._count(record)

    def _count(self, record: Record) -> None:
        """Count a record that failed or was refused, also one of an earlier run."""
        self.failed += is_error(record)
        self.refused += is_refused(record)
