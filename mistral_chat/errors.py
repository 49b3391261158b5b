"""What can go wrong in the application, as one sentence and one exit code each."""

from __future__ import annotations

import errno
from enum import IntEnum

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
    if isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"The disk is full; free some space and try again{place}."
        return f"{error.strerror or type(error).__name__}{place}."
    return " ".join(str(error).split()) or type(error).__name__
