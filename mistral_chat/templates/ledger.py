"""Whether a template wrote all that was said, told by the owners of the letters it wrote."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.templates.owned import TEMPLATE, Owned

STRETCHES = 64
"""Parts that a message is told in: its beginning twice does not stand for its end."""

MOST_MESSAGES = 0x10FFFF // STRETCHES - 1

_THOUGHT = re.compile(r"(?:</|\[/|<\|/)[\w:|]*think\w*\|?[>\]]", re.IGNORECASE)
"""Where a model ends its thinking: ``</think>``, ``[/THINK]`` and their like."""


class Ledger:
    """The texts of a conversation with their owners, and what has become of them.

    Raises UsageError for more messages than there are owners.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        if len(messages) > MOST_MESSAGES:
            raise UsageError(
                f"The conversation has {len(messages)} messages; a chat template is given "
                f"{MOST_MESSAGES} at most."
            )
        self._messages = messages
        self.texts = [self._text(place, each.text) for place, each in enumerate(messages)]

    def place(self, owner: str) -> int | None:
        """Which message wrote a letter; None for the template."""
        return None if owner == TEMPLATE else (ord(owner) - 1) // STRETCHES

    def role(self, written: Owned) -> Role | None:
        """Whose the last of the letters is that are not the template's own."""
        said = written.owners.rstrip(TEMPLATE)
        place = self.place(said[-1]) if said else None
        return None if place is None else self._messages[place].role

    def left_out(self, written: Owned) -> int | None:
        """The first message of which not all is in what was written; None where all is.

        White space may go, and letters may be changed, to capitals or in JSON, say. Templates drop
        what an earlier answer thought before it was given; nothing else may be dropped.
        """
        parts: dict[int | None, list[str]] = {}
        for run in re.finditer(r"(.)\1*", written.owners, re.DOTALL):
            place = self.place(run.group(1))
            parts.setdefault(place, []).append(written.text[run.start() : run.end()])
        last = len(self._messages) - 1
        counted: Counter[str] | None = None
        for place, text in enumerate(self.texts):
            there = "".join(parts.get(place, ()))
            if text.text.strip() in there:
                continue
            thoughts = [match.end() for match in _THOUGHT.finditer(text.text)]
            earlier = self._messages[place].role is Role.ASSISTANT and place < last
            said = text[thoughts[-1] :] if thoughts and earlier else text
            if said.text.strip() in there:
                continue
            counted = _letters(written) if counted is None else counted
            if _letters(said) - counted:
                return place
        return None

    @staticmethod
    def _text(place: int, text: str) -> Owned:
        """A message's text; each of its stretches has an owner of its own."""
        size = -(-len(text) // STRETCHES)
        owners = (chr(1 + place * STRETCHES + number) for number in range(STRETCHES))
        return Owned(text, "".join(owner * size for owner in owners)[: len(text)])


def _letters(text: Owned) -> Counter[str]:
    """How many letters that are no white space each owner has."""
    pairs = zip(text.text, text.owners, strict=True)
    return Counter(owner for letter, owner in pairs if not letter.isspace())


def end_of(written: Owned, ledger: Ledger, place: int) -> int:
    """Where the last letter of a message stands in what was written, and one more."""
    owners = reversed(written.owners)
    return len(written) - sum(1 for _ in takewhile(lambda o: ledger.place(o) != place, owners))
