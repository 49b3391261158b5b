"""Token ids to text while they arrive."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    r"""Turns ids into text one at a time, holding back a character until all its bytes are there.

    Joined, the pieces equal the bytes of all the ids decoded at once with errors replaced by
    U+FFFD. With ``drop_space`` one space at the very beginning is left out: where a tokenizer puts
    a space before a text, an answer begins with one that is not its own. ``pending`` is what an
    earlier stream held back, where this one goes on.

    >>> stream = Detokenizer({7: b" caf", 8: b"\xc3", 9: b"\xa9"}.__getitem__, drop_space=True)
    >>> [stream.feed(7), stream.feed(8), stream.feed(9), stream.flush()]
    ['caf', '', 'é', '']
    """

    def __init__(
        self,
        token_bytes: Callable[[int], bytes],
        drop_space: bool = False,
        pending: bytes = b"",
    ) -> None:
        self._token_bytes = token_bytes
        self._drop_space = drop_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._decoder.decode(pending)

    @property
    def pending(self) -> bytes:
        """The bytes of a character that is not finished."""
        return self._decoder.getstate()[0]

    def feed(self, token: int) -> str:
        """The text that this token completes, which may be empty."""
        data = self._token_bytes(token)
        if self._drop_space and data:
            self._drop_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished."""
        return self._decoder.decode(b"", final=True)
