"""What a template may cost, and what can be wrong with one.

A chat template is a program from elsewhere. It is run by an interpreter that counts: each step,
each letter of each text it makes and each item of each list. Nothing that it is made of takes
longer, or more memory, than what is counted for it, so the count is a limit of both.
"""

from __future__ import annotations

LONGEST = 1 << 20
"""Letters that one text in a template may have, beside four times those of the messages."""

STEPS = 400_000
"""Steps that a template may take, about a second's work; a real one takes 50 for each message."""

STEPS_FOR_A_MESSAGE = 1000
STEPS_FOR_A_LETTER = 2

LETTERS_IN_A_STEP = 64
"""Letters of a text that are copied or looked at in the time of a step, and less."""

LARGEST = 1 << 63
"""Whole numbers are smaller; those of Python have no end."""


class TemplateFaultError(Exception):
    """A template does what is not possible, or what is not allowed here; the text says what."""


class TemplateLimitError(Exception):
    """A template takes more than it may; the text goes on from "The chat template ..."."""


class TemplateRefusalError(Exception):
    """A template called ``raise_exception``; the text is its own."""


class Budget:
    """What is left of the steps for one run, for a conversation of so many messages and letters."""

    def __init__(self, messages: int, letters: int) -> None:
        self.longest = LONGEST + 4 * letters
        self._left = STEPS + STEPS_FOR_A_MESSAGE * messages + STEPS_FOR_A_LETTER * letters

    def spend(self, steps: int = 1) -> None:
        """Count steps; raises TemplateLimitError where there are no more."""
        self._left -= steps
        if self._left < 0:
            raise TemplateLimitError("takes too long to run")

    def letters(self, count: int) -> None:
        """Count a text that is about to be made; raises TemplateLimitError for one too long."""
        if count > self.longest:
            raise TemplateLimitError("takes too much memory: a text in it grows without end")
        self.look(count)

    def look(self, count: int) -> None:
        """Count the letters of a text that is about to be looked at."""
        self.spend(1 + count // LETTERS_IN_A_STEP)

    def search(self, text: str, part: str) -> None:
        """Count what looking for ``part`` takes, which may begin at each letter of the text."""
        if len(part) <= len(text):
            self.look(len(text) * (1 + len(part) // 16))


def checked(number: float) -> float:
    """The number; raises TemplateFaultError for a whole one that is too large."""
    if isinstance(number, int) and not -LARGEST < number < LARGEST:
        raise TemplateFaultError("a number in it is too large")
    return number
