"""Token ids to text while they arrive."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class Detokenizer:
    r"""Turns ids into text one at a time, holding back a character until all its bytes are there.

    Joined, the pieces equal the bytes of all the ids decoded at once with errors replaced by
    U+FFFD.

    >>> stream = Detokenizer({7: b"caf", 8: b"\xc3", 9: b"\xa9"}.__getitem__)
    >>> [stream.feed(7), stream.feed(8), stream.feed(9), stream.flush()]
    ['caf', '', 'é', '']
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """The text that this token completes, which may be empty."""
        return self._decoder.decode(self._token_bytes(token))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was never finished."""
        return self._decoder.decode(b"", final=True)
