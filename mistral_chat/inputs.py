"""What a person gives the command: words, files and standard input."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from mistral_chat.errors import UsageError

STDIN = "-"


def gather(
    words: Sequence[str],
    files: Sequence[Path],
    stdin: BinaryIO | None,
    example: str = 'mistral-chat "your question"',
) -> str:
    """The prompt: files, standard input and the words of the command line, a blank line between.

    ``example`` tells how to write one, where it is empty. ``stdin`` is None where nothing is to be
    read from it. Raises UsageError for text that is not UTF-8, a file that cannot be read, or
    nothing but blanks.
    """
    read_stdin = stdin is not None
    parts = [_decode(read_file(file), str(file)) for file in files if str(file) != STDIN]
    if stdin is not None:
        parts.append(_decode(stdin.read(), "standard input"))
    parts.append(" ".join(word for word in words if not (read_stdin and word == STDIN)))
    prompt = "\n\n".join(part for part in (part.strip("\r\n") for part in parts) if part.strip())
    if not prompt:
        raise UsageError(f"The prompt is empty; write it after the command: {example}.")
    # Arguments that were not UTF-8 arrive as lone surrogates.
    _decode(prompt.encode("utf-8", errors="surrogateescape"), "the prompt")
    return prompt


def decode_typed(line: str) -> str:
    r"""A line as typed; bytes that are not UTF-8, which arrive as lone surrogates, are replaced.

    >>> decode_typed("caf\udce9") == "caf\ufffd"
    True
    """
    return line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def read_input(file: Path | None) -> bytes:
    """The bytes of a file, or of standard input for None or ``-``; raises UsageError."""
    if file is not None and str(file) != STDIN:
        return read_file(file)
    if sys.stdin is None or (file is None and sys.stdin.isatty()):
        raise UsageError("There is no input; name a file, or pipe text into the command.")
    return sys.stdin.buffer.read()


def read_file(file: Path) -> bytes:
    """The bytes of a file; raises UsageError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"What came from {place} is not UTF-8 text (byte {error.start}); convert it first, "
            "for example with iconv."
        ) from error


def read_text(file: Path) -> str:
    """The text of a file; raises UsageError where it cannot be read or is not UTF-8."""
    return _decode(read_file(file), str(file))


def standard_input(words: Sequence[str], files: Sequence[Path]) -> BinaryIO | None:
    """Standard input where it is part of the prompt: named by ``-``, or not a terminal."""
    named = STDIN in words or any(str(file) == STDIN for file in files)
    # Python gives None where standard input is closed.
    if sys.stdin is None:
        return None
    return sys.stdin.buffer if named or not sys.stdin.isatty() else None
