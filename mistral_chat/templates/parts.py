"""What a template writes before it is token ids: control pieces and texts, kept apart."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.tokenizers import Tokenizer
from quant.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Control:
    """A control piece, such as ``[INST]``, that stands for one id of its own."""

    piece: str


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is encoded in one go; ``start`` to ``stop`` of it was written by ``role``.

    The rest, such as the ``[INST] `` of v1, is the template's own. At ``breaks`` it is cut.
    """

    text: str
    role: Role | None
    start: int = 0
    stop: int | None = None
    breaks: tuple[int, ...] = ()


Part = Control | Text

_WHITE_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""What Unicode counts as white space. Python counts four separators of data among it, too."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Ids of one part: a control id, or a text and who wrote it (None: the template itself)."""

    ids: tuple[int, ...]
    role: Role | None
    control: bool


class ChatTemplate(ABC):
    """How one family of models writes a conversation.

    ``name`` is its short name, such as ``chatml`` or ``v3-tekken``; ``stop_ids`` are the ids that
    end an answer and are no part of its text.
    """

    name: str
    stop_ids: tuple[int, ...]

    judges = False
    """Whether it asks the model to call what was said ``safe`` or ``unsafe``, not to answer it."""

    @abstractmethod
    def segments(self, messages: Sequence[Message]) -> list[Segment]:
        """Ids of the conversation up to where the model's answer begins, part by part.

        Raises UsageError for a conversation whose roles are out of order.
        """

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of all segments; raises UsageError as :meth:`segments` does."""
        return [token for segment in self.segments(messages) for token in segment.ids]

    def transcript(self, messages: Sequence[Message]) -> list[Segment]:
        """Ids that ask for a verdict on the last message, which may be an answer.

        Raises UnsupportedError where the template does not judge.
        """
        raise UnsupportedError(
            f"The chat format {self.name} asks for an answer to {len(messages)} messages, not for "
            "a verdict on them; choose a model made to classify."
        )


def written(before: str, text: str, after: str, role: Role) -> Text:
    """``text`` as ``role`` wrote it, between words of the template."""
    return Text(before + text + after, role, len(before), len(before) + len(text))


def as_text(parts: Sequence[Part]) -> str:
    """The parts as one string, as a Jinja template would render them."""
    return "".join(part.piece if isinstance(part, Control) else part.text for part in parts)


def encode_parts(
    tokenizer: Tokenizer, parts: Sequence[Part], markers: Sequence[str] = ()
) -> list[Segment]:
    """The ids of each part.

    ``markers`` are words of the template that are plain text in its vocabulary. Where a person
    wrote one, it is encoded in two halves: the text is the same, the ids are not the marker's.
    A control piece may swallow the white space beside it, whoever wrote that. Raises
    UnsupportedError for a control piece that the vocabulary does not have.
    """
    segments = []
    for place, part in enumerate(parts):
        if isinstance(part, Control):
            segments.append(Segment((control_id(tokenizer, part.piece),), None, True))
            continue
        part = _beside(tokenizer, part, parts[place - 1 : place], parts[place + 1 : place + 2])
        if part.text:
            first = place == 0 or tokenizer.space_prefix == "always"
            ids = tuple(_encode(tokenizer, part, markers, first))
            segments.append(Segment(ids, part.role, False))
    return segments


def _beside(
    tokenizer: Tokenizer, part: Text, before: Sequence[Part], after: Sequence[Part]
) -> Text:
    """The text without the white space that the control pieces beside it swallow.

    White space that is a token of its own, which is looked for as control pieces are, stays.
    """
    begin, end = 0, len(part.text)
    for each in before:
        if isinstance(each, Control) and tokenizer.swallows(each.piece)[1]:
            begin = end - len(part.text.lstrip(_WHITE_SPACE))
            begin = min([begin, *(start for start, _ in tokenizer.found(part.text))])
    for each in after:
        if isinstance(each, Control) and tokenizer.swallows(each.piece)[0]:
            end = max(begin, len(part.text.rstrip(_WHITE_SPACE)))
            end = max([end, *(stop for _, stop in tokenizer.found(part.text))])
    if end - begin == len(part.text):
        return part
    moved = [min(max(place, begin), end) - begin for place in (part.start, *part.breaks)]
    stop = None if part.stop is None else min(max(part.stop, begin), end) - begin
    return Text(part.text[begin:end], part.role, moved[0], stop, tuple(moved[1:]))


def control_id(tokenizer: Tokenizer, piece: str) -> int:
    """The id of a control piece; raises UnsupportedError where the vocabulary has none."""
    token = tokenizer.control_id(piece)
    if token is None:
        raise UnsupportedError(
            f"The model's chat template uses {piece}, which its vocabulary does not have; "
            "choose another file of this model."
        )
    return token


def _encode(tokenizer: Tokenizer, part: Text, markers: Sequence[str], first: bool) -> list[int]:
    ids: list[int] = []
    begin = 0
    for cut in [*sorted({*_cuts(part, markers), *part.breaks}), len(part.text)]:
        ids.extend(tokenizer.encode(part.text[begin:cut], first=first and begin == 0))
        begin = cut
    return ids


def _cuts(part: Text, markers: Sequence[str]) -> list[int]:
    """Places in the written text where a marker is to be broken: amid its longest word."""
    stop = len(part.text) if part.stop is None else part.stop
    cuts = set()
    for marker in markers:
        middle = middle_of(marker)
        for match in re.finditer(f"(?={re.escape(marker)})", part.text):
            # One of which only a part was written by the person counts too.
            if match.start() < stop and match.start() + len(marker) > part.start:
                cuts.add(match.start() + middle)
    return sorted(cuts)


def middle_of(marker: str) -> int:
    """Where a marker is broken: amid its longest word."""
    word = max(re.finditer(r"\w+", marker), key=lambda match: len(match.group()))
    return (word.start() + word.end()) // 2


def check_roles(messages: Sequence[Message]) -> None:
    """Raise UsageError for a conversation that no template takes.

    The order is that of Mistral's reference encoder: a message from the assistant is followed by
    one from the user (or by more of its own), and the last one is from the user, to be answered.
    """
    if not messages:
        raise UsageError("The conversation is empty; it needs a message from user.")
    for place, message in enumerate(messages):
        before = messages[place - 1].role if place else None
        if message.role is Role.SYSTEM and before is Role.ASSISTANT:
            raise UsageError(
                f"Message {place + 1} of the conversation is from system, but one from assistant "
                "must be followed by one from user."
            )
        if message.role is Role.ASSISTANT and not message.text:
            raise UsageError(
                f"Message {place + 1} of the conversation, from assistant, is empty; leave it out."
            )
    last = messages[-1].role
    if last is not Role.USER:
        raise UsageError(
            f"The conversation ends with a message from {last.value}, but must end with one from "
            "user, to be answered."
        )
