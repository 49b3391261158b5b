"""Whether a template wrote all that was said, told by the owners of the letters it wrote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates.owned import EMPTY, TEMPLATE, Owned

STRETCHES = 64
"""Parts that a message is told in: its beginning twice does not stand for its end."""

MOST_MESSAGES = 0x10FFFF // STRETCHES - 1

_THOUGHT = re.compile(r"(?:</|\[/|<\|/)[\w:|]*think\w*\|?[>\]]", re.IGNORECASE)
"""Where a model ends its thinking: ``</think>``, ``[/THINK]`` and their like."""


class Ledger:
    """The texts of ``messages`` with their owners, and what has become of them.

    Raises UsageError for more messages than there are owners.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        if len(messages) > MOST_MESSAGES:
            raise UsageError(
                f"The conversation has {len(messages)} messages; a chat template is given "
                f"{MOST_MESSAGES} at most."
            )
        self.messages = messages
        self.texts = [self._text(place, each.text) for place, each in enumerate(messages)]

    def place(self, owner: str) -> int | None:
        """Which message wrote a letter; None for the template."""
        return None if owner == TEMPLATE else (ord(owner) - 1) // STRETCHES

    def role(self, written: Owned) -> Role | None:
        """Whose the last of the letters is that are not the template's own."""
        said = written.owners.rstrip(TEMPLATE)
        place = self.place(said[-1]) if said else None
        return None if place is None else self.messages[place].role

    def left_out(self, written: Owned) -> int | None:
        """The first message of which not all is in what was written; None where all is.

        White space may go, and letters may be changed, to capitals or in JSON, say. Templates drop
        what an earlier answer thought before it was given; nothing else may be dropped.
        """
        runs = [
            (self.place(run.group(1)), written[run.start() : run.end()])
            for run in re.finditer(r"(.)\1*", written.owners, re.DOTALL)
        ]
        parts: dict[int | None, list[Owned]] = {}
        for place, run in runs:
            parts.setdefault(place, []).append(run)
        last = len(self.messages) - 1
        for place, text in enumerate(self.texts):
            there = EMPTY.join(parts.get(place, ()))
            thoughts = [match.end() for match in _THOUGHT.finditer(text.text)]
            earlier = self.messages[place].role is Role.ASSISTANT and place < last
            ways = [text, text[thoughts[-1] :]] if thoughts and earlier else [text]
            if any(_holds(there, said) for said in ways):
                continue
            # A template may have cut the text and put it together again.
            mended = EMPTY.join(run if each in (None, place) else _GAP for each, run in runs)
            if not any(_holds_mended(mended, said.text.strip()) for said in ways):
                return place
        return None

    @staticmethod
    def _text(place: int, text: str) -> Owned:
        """A message's text; each of its stretches has an owner of its own."""
        size = -(-len(text) // STRETCHES)
        owners = (chr(1 + place * STRETCHES + number) for number in range(STRETCHES))
        return Owned(text, "".join(owner * size for owner in owners)[: len(text)])


_GAP = Owned.of("\0")


def _holds(there: Owned, said: Owned) -> bool:
    """Whether all letters of a text are among those that its message has in what was written."""
    return said.text.strip() in there.text or not _letters(said) - _letters(there)


def _holds_mended(written: Owned, text: str) -> bool:
    """Whether a text stands somewhere with a letter that is not the template's own."""
    found = re.finditer(re.escape(text), written.text)
    return any(written.owners[each.start() : each.end()].strip(TEMPLATE) for each in found)


def _letters(text: Owned) -> Counter[str]:
    """How many letters that are no white space each owner has."""
    pairs = zip(text.text, text.owners, strict=True)
    return Counter(owner for letter, owner in pairs if not letter.isspace())


def end_of(written: Owned, ledger: Ledger, place: int) -> int:
    """Where the last letter of a message stands in what was written, and one more."""
    owners = reversed(written.owners)
    return len(written) - sum(1 for _ in takewhile(lambda o: ledger.place(o) != place, owners))
