"""What the last prompt and answer left behind: of a new prompt only what differs is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import quant
from mistral_chat.messages import Message, Role
from mistral_chat.templates import ChatTemplate
from mistral_chat.tokenizers import Tokenizer
from quant.batch import shared_start
from quant.errors import CacheError


@dataclass(frozen=True, slots=True)
class Answer:
    """The last answer as it was written: ``ids`` after those of a prompt, and their text.

    ``pending`` is the beginning of a character that the answer was cut in; ``text`` is without it.
    """

    prompt: list[int]
    ids: list[int]
    text: str
    pending: bytes


class Memory:
    """A session, what it has read, and the ids of the answer that was written last."""

    def __init__(
        self,
        open_session: Callable[[], quant.Session],
        tokenizer: Tokenizer,
        template: ChatTemplate,
    ) -> None:
        self._open_session = open_session
        self._tokenizer = tokenizer
        self._template = template
        self._answer: Answer | None = None
        self.session = open_session()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation; of an answer to go on with, the ids that were read of it."""
        if not messages or messages[-1].role is not Role.ASSISTANT:
            return self._template.encode(messages)
        ids, text = self._template.encode(messages[:-1]), messages[-1].text
        begun = self.begun(messages)
        if begun is not None:
            return ids + begun.ids + self._further(text[len(begun.text) :])
        there = self.session.ids
        if there[: len(ids)] == ids:
            data = b"".join(map(self._tokenizer.token_bytes, there[len(ids) :]))
            written = data.decode("utf-8", "replace")
            rest = text.removeprefix(written.removeprefix(" "))
            # The last token of an answer may not have been read yet.
            if written and len(rest) < len(text):
                return there + self._further(rest)
        return ids + self._tokenizer.encode(text)

    def begun(self, messages: Sequence[Message]) -> Answer | None:
        """The last answer, if it is what the last message of a conversation begins with."""
        begun, text = self._answer, messages[-1].text
        if begun is None or begun.prompt != self._template.encode(messages[:-1]):
            return None
        goes_beyond = len(text) > len(begun.text)
        if not text.startswith(begun.text) or (goes_beyond and begun.pending):
            return None
        return begun

    def note(self, prompt: list[int], ids: list[int], text: str, pending: bytes) -> None:
        """Remember an answer as it was written."""
        self._answer = Answer(prompt, ids, text, pending)

    def rewind(self, ids: Sequence[int]) -> int | None:
        """Forget what a new prompt does not share with the last; the count of ids kept.

        None where the rolling buffer no longer holds what the prompt begins with, so that all of it
        is read again.
        """
        try:
            return self.session.reuse(ids)
        except CacheError:
            self.session = self._open_session()
            return None

    def save(self, path: Path, messages: Sequence[Message], identity: str) -> int:
        """Write what was read of a conversation to a file; the bytes it takes. Raises OSError.

        What was read beyond it, such as a question that was broken off or an answer that was
        refused, is forgotten first.
        """
        try:
            self.session.trim(shared_start(self.session.ids, self.encode(messages)))
        except CacheError:
            self.session = self._open_session()
        return self.session.save(path, identity)

    def _further(self, rest: str) -> list[int]:
        return self._tokenizer.encode(rest, first=False) if rest else []
