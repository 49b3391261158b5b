"""A conversation as a model is given it: every token, and who wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count, takewhile
from typing import TextIO

from rich.text import Text

from mistral_chat.messages import Message, Role
from mistral_chat.printable import printable, printable_json
from mistral_chat.system.screen import Screen
from mistral_chat.templates import ChatTemplate, Segment
from mistral_chat.tokenizers import Tokenizer

# Two shades for each role, taken in turn, so that one sees where a token ends.
_SHADES = {
    "control": ("bold white on magenta", "bold white on dark_magenta"),
    "template": ("black on grey70", "black on grey85"),
    "system": ("black on yellow3", "black on light_goldenrod2"),
    "user": ("black on steel_blue1", "black on light_sky_blue1"),
    "guardrail": ("black on light_salmon1", "black on sandy_brown"),
    "assistant": ("black on dark_sea_green3", "black on pale_green1"),
}
# Control characters as the pictures that Unicode has of them, one column each.
_PICTURES = {
    **{code: 0x2400 + code for code in range(0x20)},
    0x7F: 0x2421,
}


@dataclass(frozen=True, slots=True)
class Piece:
    """One token: its id, its text (control pieces show) and its source.

    That is ``control``, ``template`` (words of the template itself), ``guardrail`` or the role that
    wrote it.
    """

    token: int
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class TemplateView:
    """The tokens of a conversation; ``text`` is all of them as one text."""

    template: str
    pieces: tuple[Piece, ...]
    text: str

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        messages: Sequence[Message],
        guardrail: str | None = None,
    ) -> TemplateView:
        """The view of ``messages``; raises UsageError as the template does.

        The tokens of the text of a ``guardrail`` that a system message holds are shown as its own,
        wherever the template puts it; the same text in another message is not.
        """
        segments = template.segments(messages)
        starts = _starts(tokenizer, template, messages, guardrail)
        pieces = [
            Piece(token, tokenizer.show([token]), "guardrail" if guarded else _source(segment))
            for place, segment in enumerate(segments)
            for token, guarded in zip(
                segment.ids,
                _within(tokenizer, segment, starts.get(place), guardrail),
                strict=True,
            )
        ]
        return cls._of_pieces(tokenizer, template, pieces)

    @classmethod
    def before_question(
        cls,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        messages: Sequence[Message],
        guardrail: str | None = None,
    ) -> TemplateView:
        """The view of what stands before a question that comes next, whatever it is.

        ``messages`` are system messages. Raises UsageError as the template does.
        """
        one, other = (
            cls.of(tokenizer, template, [*messages, Message(Role.USER, question)], guardrail).pieces
            for question in "0A"
        )
        same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
        return cls._of_pieces(tokenizer, template, [piece for piece, _ in same])

    @classmethod
    def _of_pieces(
        cls, tokenizer: Tokenizer, template: ChatTemplate, pieces: Sequence[Piece]
    ) -> TemplateView:
        text = tokenizer.show([piece.token for piece in pieces])
        return cls(template.name, tuple(pieces), text)

    def to_json(self) -> str:
        """One JSON object with ``ids``, ``text`` and the name of the ``template``."""
        ids = [piece.token for piece in self.pieces]
        return json.dumps(
            {"ids": ids, "text": self.text, "template": self.template}, ensure_ascii=False
        )

    def print(self, stream: TextIO) -> None:
        """In colour, the pieces side by side; without, a line for each: id, source and piece."""
        console = Screen(file=stream, highlight=False, soft_wrap=True)
        if console.color_system is None or console.no_color:
            for piece in self.pieces:
                text = printable_json(json.dumps(piece.text, ensure_ascii=False))
                stream.write(f"{piece.token}\t{piece.source}\t{text}\n")
            return
        shown = Text()
        for place, piece in enumerate(self.pieces):
            # A newline ends the line, after a sign that shows it.
            lines = piece.text.split("\n")
            visible = "↵\n".join(printable(line.translate(_PICTURES)) for line in lines)
            shown.append(visible, _SHADES[piece.source][place % 2])
        console.print(shown)
        legend = Text(f"{len(self.pieces)} tokens, template {self.template}: ")
        for source, shades in _SHADES.items():
            if any(piece.source == source for piece in self.pieces):
                legend.append(f" {source} ", shades[0]).append(" ")
        console.print(legend)


def _starts(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], text: str | None
) -> dict[int, int]:
    """In which segments the ``text`` of a system message stands, and from which byte on.

    Templates put it where they like, and a person may have typed the same text. So the conversation
    is written once more with another text in its place, one that nothing else holds.
    """
    if text is None:
        return {}
    texts = [message.text for message in messages]
    marks = map("guardrail {}".format, count())
    mark = next(mark for mark in marks if not any(mark in each for each in texts))
    marked = [
        replace(each, text=each.text.replace(text, mark, 1)) if each.role is Role.SYSTEM else each
        for each in messages
    ]
    starts = {}
    for place, segment in enumerate(template.segments(marked)):
        written = b"" if segment.control else b"".join(map(tokenizer.token_bytes, segment.ids))
        before, found, _ = written.partition(mark.encode("utf-8"))
        if found:
            starts[place] = len(before)
    return starts


def _within(
    tokenizer: Tokenizer, segment: Segment, start: int | None, text: str | None
) -> list[bool]:
    """Which tokens of a segment belong to ``text``, which begins at the byte ``start`` of it."""
    if start is None or text is None:
        return [False] * len(segment.ids)
    parts = [tokenizer.token_bytes(token) for token in segment.ids]
    end = start + len(text.encode("utf-8"))
    places = [sum(map(len, parts[:number])) for number in range(len(parts))]
    return [
        place < end and place + len(part) > start for place, part in zip(places, parts, strict=True)
    ]


def _source(segment: Segment) -> str:
    if segment.control:
        return "control"
    return segment.role.value if segment.role else "template"
