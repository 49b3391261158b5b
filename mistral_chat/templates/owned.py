"""Texts of which each letter knows who wrote it, the template or a message.

A chat template makes one string of a conversation, in which the marks it wrote and those that a
person typed look alike. So while it runs, every text carries a second string of the same length, of
which each character names the owner of the letter beside it. Cutting and joining treat both alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mistral_chat.templates.budget import Budget

TEMPLATE = "\0"
"""The owner of what the template itself wrote."""


@dataclass(frozen=True, slots=True)
class Owned:
    r"""A text and its ``owners``, one character for each of its letters.

    Two are equal where their texts are, whoever wrote them.

    >>> mark = Owned.of("<s>") + Owned.of("a<s>", "\1")
    >>> mark.text, mark.owners.count(TEMPLATE)
    ('<s>a<s>', 3)
    """

    text: str
    owners: str = field(compare=False)

    @classmethod
    def of(cls, text: str, owner: str = TEMPLATE) -> Owned:
        """A text that is one owner's."""
        return cls(text, owner * len(text))

    def __len__(self) -> int:
        """The number of letters."""
        return len(self.text)

    def __bool__(self) -> bool:
        """Whether there is a letter."""
        return bool(self.text)

    def __getitem__(self, place: int | slice) -> Owned:
        """A letter or a part; raises IndexError."""
        return Owned(self.text[place], self.owners[place])

    def __add__(self, other: Owned) -> Owned:
        """Both, one behind the other."""
        return Owned(self.text + other.text, self.owners + other.owners)

    def __mul__(self, count: int) -> Owned:
        """The text ``count`` times."""
        return Owned(self.text * count, self.owners * count)

    def join(self, parts: Iterable[Owned]) -> Owned:
        """The parts with this text between them."""
        parts = list(parts)
        return Owned(
            self.text.join(part.text for part in parts),
            self.owners.join(part.owners for part in parts),
        )

    def cut(self, parts: Sequence[str]) -> list[Owned]:
        """``parts``, which stand in this text in this order, each with its owners.

        >>> [part.text for part in Owned.of("a b").cut(["a", "b"])]
        ['a', 'b']
        """
        found = []
        end = 0
        for part in parts:
            start = self.text.index(part, end)
            end = start + len(part)
            found.append(Owned(part, self.owners[start:end]))
        return found

    def strip(self, letters: str | None = None, left: bool = True, right: bool = True) -> Owned:
        """Without white space, or without any of ``letters``, at the ends."""
        stop = len(self.text.rstrip(letters)) if right else len(self.text)
        start = len(self.text) - len(self.text.lstrip(letters)) if left else 0
        return self[min(start, stop) : stop]

    def split(self, between: str | None, most: int = -1, right: bool = False) -> list[Owned]:
        """As ``str.split``, or ``str.rsplit``; raises ValueError for an empty ``between``."""
        if between is None:
            method = self.text.rsplit if right else self.text.split
            return self.cut(method(None, most))
        parts = self.text.rsplit(between, most) if right else self.text.split(between, most)
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part) + len(between))
        return [self[start : start + len(p)] for start, p in zip(starts, parts, strict=False)]

    def replace(self, old: str, new: Owned, count: int = -1) -> Owned:
        """As ``str.replace``. What comes in a person's letters' place counts as theirs.

        So a template that replaces what someone typed cannot be made to write a mark.
        """
        if not old:
            places = range(len(self) + 1 if count < 0 else min(count, len(self) + 1))
            parts = [new + self[place : place + 1] for place in places]
            return EMPTY.join([*parts, self[len(places) :]])
        parts, end = [], 0
        for part in self.split(old, count)[:-1]:
            start = end + len(part)
            end = start + len(old)
            parts += [part, new.claimed(self.owners[start:end])]
        return EMPTY.join([*parts, self[end:]])

    def claimed(self, owners: str) -> Owned:
        """The text with the template's letters given to those of ``owners`` who are not it.

        Each of these gets one that is no white space, if there are as many.
        """
        persons = owners.replace(TEMPLATE, "")
        if not persons:
            return self
        visible = sum(not letter.isspace() for letter in self.text)
        given = []
        seen = 0
        for letter, own in zip(self.text, self.owners, strict=True):
            share = persons[min(seen, visible - 1) * len(persons) // visible] if visible else ""
            given.append((share or persons[0]) if own == TEMPLATE else own)
            seen += not letter.isspace()
        return Owned(self.text, "".join(given))

    def mapped(self, budget: Budget, change: Callable[[str], str]) -> Owned:
        """The text that ``change`` makes of it, each letter with the owner of what it came from.

        Where letters become several, owner by owner is told; where that does not add up, all is
        a message's, if any of it was.
        """
        text = change(self.text)
        if len(text) == len(self.text):
            return Owned(text, self.owners)
        owners = ""
        for run in re.finditer(r"(.)\1*", self.owners, re.DOTALL):
            budget.spend()
            owners += run.group(1) * len(change(self.text[run.start() : run.end()]))
        if len(owners) != len(text):
            owners = max(self.owners, default=TEMPLATE) * len(text)
        return Owned(text, owners)

    def written_by(self, owner: str) -> str:
        """The letters of one owner, put together."""
        runs = re.finditer(f"{re.escape(owner)}+", self.owners)
        return "".join(self.text[run.start() : run.end()] for run in runs)

    def runs(self) -> list[tuple[bool, Owned]]:
        """The text cut where the template's own letters begin and end; True for those."""
        found = re.finditer(f"{TEMPLATE}+|[^{TEMPLATE}]+", self.owners)
        return [(run.group()[0] == TEMPLATE, self[run.start() : run.end()]) for run in found]


EMPTY = Owned("", "")
