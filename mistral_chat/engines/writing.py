"""Ids that come one after the other, as the text that a person sees of them."""

from __future__ import annotations

from mistral_chat.engines.loops import LoopDetector
from mistral_chat.tokenizers import Detokenizer, Tokenizer


class Writing:
    """An answer under way: ids are fed to it, and it is asked what it came to.

    ``goes_on`` says that it goes on with a text, of which ``pending`` is a character's beginning.
    With ``stop_loops`` it notes when the answer begins to repeat itself (``in_loop``).
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        goes_on: bool = False,
        pending: bytes = b"",
        stop_loops: bool = True,
    ) -> None:
        drop_space = tokenizer.space_prefix != "never" and not goes_on
        self._detokenizer = Detokenizer(tokenizer.token_bytes, drop_space, pending)
        self._loops = LoopDetector() if stop_loops else None
        self._pieces: list[str] = []
        self.ids: list[int] = []
        self.in_loop = False
        self.finish_reason = "cancelled"

    def feed(self, token: int) -> str:
        """The text that the next id adds; nothing while a character is not whole."""
        self.ids.append(token)
        if self._loops is not None and self._loops.feed(token):
            self.in_loop = True
        return self._add(self._detokenizer.feed(token))

    def end(self, reason: str | None) -> str:
        """The text that is left at the end, for the reason that there are no more ids."""
        self.finish_reason = "loop" if self.in_loop else reason or "cancelled"
        # A character that was cut off is not lost: the model may go on with it.
        return self._add(self._detokenizer.flush() if self.finish_reason == "stop" else "")

    def _add(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece

    @property
    def text(self) -> str:
        """All that was written."""
        return "".join(self._pieces)

    @property
    def pending(self) -> bytes:
        """The beginning of a character that the answer was cut in."""
        return self._detokenizer.pending
