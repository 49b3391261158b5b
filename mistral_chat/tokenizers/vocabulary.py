"""What every kind of vocabulary shares: the one way out for ids of texts, and what it checks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property

from mistral_chat.errors import UsageError
from mistral_chat.tokenizers.fields import are_texts, is_text, library
from quant.errors import CheckpointError, UnsupportedError


class Vocabulary(ABC):
    """Texts to ids that are checked, and what follows from pieces alone.

    A kind of vocabulary implements ``_cut`` and the properties below it, and calls
    :meth:`_check_marks` when it is made.
    """

    @property
    @abstractmethod
    def controls(self) -> Mapping[str, int]:
        """Every control piece and its id."""

    @property
    @abstractmethod
    def text_size(self) -> int:
        """One more than the largest id that a text can give."""

    @abstractmethod
    def _cut(self, text: str, first: bool) -> list[int]:
        """Ids of a text as the library has them."""

    @abstractmethod
    def _coverage(self) -> tuple[int, bytes] | None:
        """Bytes of the longest piece, and which bytes of a text may give no id at all.

        None where nothing is known: a text may shrink before it is cut.
        """

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Ids of plain text. No text, whatever it spells, gives a control id.

        Without ``first`` no space is put before it. Raises UsageError for a text with half a
        character, and CheckpointError for a vocabulary that cannot cut the text, or cuts it into a
        control id.
        """
        if not is_text(text):
            raise UsageError("The text holds half of a character (a surrogate); take it out.")
        with library("The tokenizer cannot cut this text into tokens"):
            ids = self._cut(text, first)
        if not self._control_ids.isdisjoint(ids):
            token = next(token for token in ids if token in self._control_ids)
            raise UnsupportedError(
                f"The model's vocabulary gives the control token {token} for plain text, so that "
                "anybody could write one; choose another model."
            )
        return ids

    def control_id(self, piece: str) -> int | None:
        """The id of a control piece, or None."""
        return self.controls.get(piece)

    def swallows(self, piece: str) -> tuple[bool, bool]:  # noqa: ARG002 - most swallow nothing
        """Whether a control piece takes in the white space before it, and that after it."""
        return False, False

    def found(self, text: str) -> list[tuple[int, int]]:  # noqa: ARG002 - most look for nothing
        """Where a text spells tokens that are looked for before it is cut."""
        return []

    def least_tokens(self, text: str) -> int:
        """A number of tokens that ``text`` has at least, told without cutting it.

        It is the number of its bytes divided by those of the longest piece, and 0 where a text may
        shrink on its way into the vocabulary.
        """
        coverage = self._reach
        if coverage is None:
            return 0
        longest, lost = coverage
        data = text.encode("utf-8", "replace")
        return -(-len(data.translate(None, lost)) // longest) if longest else 0

    @cached_property
    def _reach(self) -> tuple[int, bytes] | None:
        return self._coverage()

    @cached_property
    def _control_ids(self) -> frozenset[int]:
        return frozenset(self.controls.values())


def check_marks(marks: Mapping[str, int], text_ids: Iterable[int]) -> None:
    """Raise where a control piece is no mark of its own, or has the id of a piece of text.

    UnsupportedError for a piece that plain text would give, CheckpointError for a damaged one.
    """
    if not are_texts(marks):
        raise CheckpointError(
            "A control token of the vocabulary is no UTF-8; fetch the file again."
        )
    for piece in marks:
        if len(piece) < 2:
            raise UnsupportedError(
                f"The model's vocabulary has a control token of one character ({piece!r}), which "
                "plain text would give; choose another model."
            )
    shared = {token: piece for piece, token in marks.items()}
    for token in text_ids:
        if token in shared:
            raise UnsupportedError(
                f"The model's vocabulary has a piece of text with the id {token} of the control "
                f"token {shared[token]!r}, so that anybody could write one; choose another model."
            )
