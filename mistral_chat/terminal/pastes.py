"""What stands in the line: blocks of several lines, and marks in place of long pastes."""

from __future__ import annotations

from mistral_chat.talk.inputs import decode_typed

BLOCK = '"""'
LONGEST_SHOWN = 20_000
"""Characters of a paste that are put into the line; a longer one stands there as a short mark."""


def is_open_block(text: str) -> bool:
    '''Whether a block of lines was opened and not closed yet.

    >>> is_open_block('"""one'), is_open_block('"""one"""'), is_open_block("one")
    (True, False, False)
    '''
    stripped = text.strip()
    if not stripped.startswith(BLOCK):
        return False
    return len(stripped) < 2 * len(BLOCK) or not stripped.endswith(BLOCK)


def unwrap_block(text: str) -> str:
    r'''The text of a block without its marks; any other text as it is.

    >>> unwrap_block('"""one\ntwo"""')
    'one\ntwo'
    '''
    stripped = text.strip()
    if stripped.startswith(BLOCK) and not is_open_block(text):
        return stripped[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text


class Pastes:
    """Long pastes, which the line holds as marks: an editor of lines is no place for megabytes."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """What to put into the line for a paste."""
        text = decode_typed(text).replace("\r\n", "\n").replace("\r", "\n")
        if len(text) <= LONGEST_SHOWN:
            return text
        mark = f"[paste {len(self._texts) + 1}: {len(text)} characters]"
        self._texts[mark] = text
        return mark

    def line(self, text: str) -> str:
        """What one would type to ask ``text``.

        >>> Pastes().line("/etc is what?")
        '//etc is what?'
        """
        slash = "/" if text.startswith("/") else ""
        return slash + self.mark(text)

    def expand(self, line: str) -> str:
        """The line with its pastes in place of their marks."""
        for mark, text in self._texts.items():
            line = line.replace(mark, text)
        return line
