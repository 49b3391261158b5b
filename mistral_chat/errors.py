"""What can go wrong in the application, as one sentence and one exit code each."""

from __future__ import annotations

import errno
import os
from enum import IntEnum
from typing import TypeGuard

from mistral_chat.printable import one_line
from quant.errors import ContextFullError, QuantError, SamplingError


class ExitCode(IntEnum):
    """The exit codes of every command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    REFUSED = 3
    CONTEXT_FULL = 4
    MODEL_MISSING = 5
    INTERRUPTED = 130


class ChatError(QuantError):
    """Root of the application's own errors; its text is a sentence that says what to do."""

    exit_code = ExitCode.FAILED


class UsageError(ChatError):
    """What the person asked for makes no sense: a flag, a setting, an empty prompt."""

    exit_code = ExitCode.USAGE


class NotKeptError(ChatError):
    """An answer is whole, but its turn could not be written to the session."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(f"This turn is not kept in the session: {sentence(reason)}")


class JudgingError(ChatError):
    """A moderator gave probabilities that are no numbers, so there is no verdict."""

    def __init__(self) -> None:
        super().__init__(
            "The moderator's probabilities are no numbers, so nothing was judged; choose another "
            "moderator, or fetch this one again."
        )


class ModelMissingError(ChatError):
    """The model is not on this computer and could not be brought here."""

    exit_code = ExitCode.MODEL_MISSING


class DownloadError(ChatError):
    """A download failed for a reason that is not the person's: no pip, an answer of a server."""


class MemoryShortError(ChatError):
    """A model would need more memory than this computer has free."""


class IntegrityError(ChatError):
    """A downloaded file is not, byte for byte, the one that was published."""


class TextTooLongError(ContextFullError):
    """A text has so many bytes that it cannot fit into the context, whatever its tokens are.

    ``needed`` is the least count of tokens, ``available`` that of the context.
    """

    def __init__(self, needed: int, available: int) -> None:
        super().__init__(needed, available)
        self.args = (
            f"The text needs at least {needed} tokens, but only {available} are left in the "
            "context; shorten it, or ask for a longer context.",
        )


class ClosedPipeError(ChatError):
    """Whoever read the output has stopped reading. Nobody is left to be told."""

    exit_code = ExitCode.DONE


def exit_code(error: BaseException) -> ExitCode:
    """The exit code that stands for an error.

    >>> exit_code(UsageError("The prompt is empty.")).value
    2
    >>> exit_code(KeyboardInterrupt()).value
    130
    """
    if isinstance(error, ChatError):
        return error.exit_code
    if isinstance(error, ContextFullError):
        return ExitCode.CONTEXT_FULL
    if isinstance(error, SamplingError):
        return ExitCode.USAGE
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED
    return ExitCode.FAILED


def sentence(error: BaseException) -> str:
    """The one sentence a person sees for an error, without a traceback.

    >>> sentence(OSError(errno.ENOSPC, "No space left on device", "/data/model"))
    'The disk is full; free some space and try again (/data/model).'
    """
    return one_line(_told(error)) or type(error).__name__


def _told(error: BaseException) -> str:
    if isinstance(error, OSError):
        # A name may be bytes, and comes out of a folder: it is shown as any other text is.
        place = f" ({os.fsdecode(error.filename)})" if _is_name(error.filename) else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"The disk is full; free some space and try again{place}."
        return f"{error.strerror or type(error).__name__}{place}."
    if isinstance(error, MemoryError):
        return (
            "There is not enough memory for that; ask for a smaller --context, for --kv int8 or a "
            "smaller model, or close other programs."
        )
    if isinstance(error, RecursionError):
        return "Something in a file is nested too deeply to be read; choose another one."
    if lacks_threads(error):
        return (
            "This computer starts no more threads; ask for fewer with --threads, or close other "
            "programs ('ulimit -u' tells the limit)."
        )
    return str(error)


def _is_name(name: object) -> TypeGuard[str | bytes]:
    return isinstance(name, str | bytes) and bool(name)


def lacks_threads(error: BaseException) -> bool:
    """Whether an error says that the system starts no more threads; Python has no type for it."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def is_told(error: BaseException) -> bool:
    """Whether an error is told in a sentence; any other is a fault of this program.

    >>> is_told(MemoryError()), is_told(KeyError("cache"))
    (True, False)
    """
    known = (QuantError, OSError, MemoryError, RecursionError)
    return isinstance(error, known) or lacks_threads(error)
