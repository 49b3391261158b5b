"""What a person gives the command: words, files and standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from mistral_chat.errors import TextTooLongError, UsageError
from mistral_chat.system.files import (
    MOST_BYTES,
    TooLong,
    decode,
    longer_than,
    read_file,
    read_stream,
)
from mistral_chat.tokenizers import Tokenizer

STDIN = "-"

BYTES_PER_TOKEN = 4096
"""Bytes of text that no token stands for: the longest pieces of vocabularies have some hundred."""


LONG_TEXT = 1 << 20
"""Characters of a text whose tokens take noticeably long to make, and some hundred megabytes."""


def gather(
    words: Sequence[str],
    files: Sequence[Path],
    stdin: BinaryIO | None,
    example: str = 'mistral-chat "your question"',
    most: int = MOST_BYTES,
    refused: TooLong | None = None,
) -> str:
    """The prompt: files, standard input and the words of the command line, a blank line between.

    ``example`` tells how to write one, where it is empty. ``stdin`` is None where nothing is to be
    read from it. Raises UsageError for text that is not UTF-8, a file that cannot be read, or
    nothing but blanks, and the error of ``refused`` where there are more than ``most`` bytes.
    """
    read_stdin = stdin is not None
    refused = refused or longer_than(most)
    parts = []
    for file in files:
        if str(file) != STDIN:
            data = read_file(file, most, refused)
            most -= len(data)
            parts.append(decode(data, str(file)))
    if stdin is not None:
        parts.append(decode(read_stream(stdin, "standard input", most, refused), "standard input"))
    parts.append(" ".join(word for word in words if not (read_stdin and word == STDIN)))
    prompt = "\n\n".join(part for part in (part.strip("\r\n") for part in parts) if part.strip())
    if not prompt:
        raise UsageError(f"The prompt is empty; write it after the command: {example}.")
    return prompt


def most_bytes(context: int) -> tuple[int, TooLong]:
    """How many bytes are read for a context of so many tokens, and the error for more.

    Far more than fits: a text that is refused here needs no model to tell that it is too long.
    """
    if context * BYTES_PER_TOKEN > MOST_BYTES:
        return MOST_BYTES, longer_than(MOST_BYTES)
    return context * BYTES_PER_TOKEN, lambda _place: TextTooLongError(context + 1, context)


def least_tokens(tokenizer: Tokenizer, text: str) -> int:
    """How many tokens a text has at least, told from its bytes; 0 for one that is soon encoded."""
    return 0 if len(text) < LONG_TEXT else tokenizer.least_tokens(text)


def decode_typed(line: str) -> str:
    r"""A line as typed; bytes that are not UTF-8, which arrive as lone surrogates, are replaced.

    >>> decode_typed("caf\udce9") == "caf\ufffd"
    True
    """
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_input(file: Path | None, most: int = MOST_BYTES, refused: TooLong | None = None) -> bytes:
    """The bytes of a file, or of standard input for None or ``-``; raises UsageError."""
    if file is not None and str(file) != STDIN:
        return read_file(file, most, refused)
    if sys.stdin is None or (file is None and sys.stdin.isatty()):
        raise UsageError("There is no input; name a file, or pipe text into the command.")
    return read_stream(sys.stdin.buffer, "standard input", most, refused)


def standard_input(words: Sequence[str], files: Sequence[Path]) -> BinaryIO | None:
    """Standard input where it is part of the prompt: named by ``-``, or not a terminal."""
    named = STDIN in words or any(str(file) == STDIN for file in files)
    # Python gives None where standard input is closed.
    if sys.stdin is None:
        return None
    return sys.stdin.buffer if named or not sys.stdin.isatty() else None
