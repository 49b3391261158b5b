"""Ids that come one after the other, as the text that a person sees of them."""

from __future__ import annotations

from collections.abc import Iterator

import quant
from mistral_chat.engines.events import TextDelta
from mistral_chat.engines.loops import LoopDetector
from mistral_chat.tokenizers import Detokenizer, Tokenizer


class Writing:
    """An answer under way: to be iterated over once, and then to be asked what it came to.

    ``goes_on`` says that it goes on with a text, of which ``pending`` is a character's beginning.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        generation: quant.Generation,
        goes_on: bool,
        pending: bytes,
        stop_loops: bool,
    ) -> None:
        drop_space = tokenizer.space_prefix != "never" and not goes_on
        self._generation = generation
        self._detokenizer = Detokenizer(tokenizer.token_bytes, drop_space, pending)
        self._loops = LoopDetector() if stop_loops else None
        self._pieces: list[str] = []
        self.ids: list[int] = []
        self.finish_reason = "cancelled"

    def __iter__(self) -> Iterator[TextDelta]:
        in_loop = False
        for token in self._generation:
            self.ids.append(token)
            piece = self._detokenizer.feed(token)
            if piece:
                self._pieces.append(piece)
                yield TextDelta(piece)
            if self._loops is not None and self._loops.feed(token):
                in_loop = True
                break
        self.finish_reason = "loop" if in_loop else self._generation.finish_reason or "cancelled"
        # A character that was cut off is not lost: the model may go on with it.
        tail = self._detokenizer.flush() if self.finish_reason == "stop" else ""
        if tail:
            self._pieces.append(tail)
            yield TextDelta(tail)

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self._pieces)

    @property
    def pending(self) -> bytes:
        """The beginning of a character that the answer was cut in."""
        return self._detokenizer.pending
