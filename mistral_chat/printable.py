"""Texts made fit for a terminal: nothing that comes out of a file steers the screen it is read on.

A terminal obeys more than letters: escape sequences set its clipboard and its title and clear it,
and marks of writing direction show a text in another order than it is in.
"""

from __future__ import annotations

KEPT = "\n\t"
"""Control characters that a text may hold."""

DIRECTIONS = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Embeddings, overrides and isolates of writing direction (Unicode Standard Annex 9)."""

_CODES = (
    *(code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in KEPT),
    *(0x2028, 0x2029),  # separators that some terminals take for a new line
    *DIRECTIONS,
    *range(0xD800, 0xE000),  # halves of pairs: no encoding writes them
)
_VISIBLE = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CODES}
_IN_JSON = {code: f"\\u{code:04x}" for code in _CODES}
_DROPPED = dict.fromkeys(_CODES)


def printable(text: str) -> str:
    r"""``text`` with every character that steers a terminal shown instead: ``\x1b``, ``\u202e``.

    Newlines and tabs stay; the two characters by which some files end a line become a newline.

    >>> printable("\x1b[2J\x9b") == r"\x1b[2J\x9b"
    True
    >>> printable("one\r\n\ttwo") == "one\n\ttwo"
    True
    """
    return text.replace("\r\n", "\n").translate(_VISIBLE)


def printable_json(text: str) -> str:
    r"""JSON of the same value that holds no character which steers a terminal.

    In JSON such characters can only stand in a string, where they may be written as ``\u009b``.

    >>> printable_json('["\x9b"]') == r'["\u009b"]'
    True
    """
    return text.translate(_IN_JSON)


def without_controls(text: str) -> str:
    r"""``text`` without the characters that :func:`printable` shows: as an answer is drawn.

    >>> without_controls("a\x1b[31mb")
    'a[31mb'
    """
    return text.translate(_DROPPED)


def one_line(text: str) -> str:
    r"""``text`` as part of a sentence: printable, with a blank for each run of blanks and newlines.

    >>> one_line("two\n lines\x07") == r"two lines\x07"
    True
    """
    return printable(" ".join(text.split()))
