"""The ``mistral-chat`` command.

Heavy modules are imported by the commands that need them, so ``--help`` answers at once.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import TextIO

import typer

# Importing a module of commands adds them to the application, in the order of the help.
from mistral_chat.cli import (  # noqa: F401
    batch,
    chat,
    inspect,
    measure,
    models,
    moderate,
    quantize,
    sessions,
    shell,
)  # fmt: skip
from mistral_chat.cli.application import DEFAULT_COMMAND, PROGRAM, app, tell
from mistral_chat.errors import ClosedPipeError, ExitCode, UsageError, exit_code, is_told, sentence
from mistral_chat.printable import one_line, printable

LONGEST = 400
"""Characters of a sentence about an argument; of a longer one the middle is left out."""


def with_default_command(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The arguments, after ``chat`` unless they begin with a command or a global option.

    >>> with_default_command(["What is this?"], ["chat", "models"])
    ['chat', 'What is this?']
    >>> with_default_command(["models", "--json"], ["chat", "models"])
    ['models', '--json']
    """
    first = arguments[0] if arguments else ""
    if first in names or first in ("--help", "-h", "--version"):
        return list(arguments)
    return [DEFAULT_COMMAND, *arguments]


def _run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit code. Errors come out as one sentence on stderr."""
    names = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    try:
        # Python gives None where standard output was closed from the start.
        if sys.stdout is None:
            raise UsageError("Standard output is closed, so an answer has nowhere to go.")
        result = app(
            with_default_command(arguments, names), prog_name=PROGRAM, standalone_mode=False
        )
        sys.stdout.flush()
        return int(result or 0)
    except typer.TyperException as error:
        tell(f"{_shortened(one_line(error.format_message()))} See '{PROGRAM} --help'.", err=True)
        return ExitCode.USAGE
    except (BrokenPipeError, ClosedPipeError):
        _drop_output()
        return ExitCode.DONE
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except SystemExit:
        raise
    except BaseException as error:  # those of libraries in Rust are no Exception
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # a full disk under standard output, most likely the error itself
            _drop_output()
        if is_told(error):
            tell(sentence(error), err=True)
            return exit_code(error)
        # A fault of this program: all that helps to mend it, which may quote files, too.
        tell(traceback.format_exc(), err=True, end="")
        return ExitCode.FAILED


def _shortened(text: str) -> str:
    """A sentence about an argument, without the middle of one that is longer than ``LONGEST``."""
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST // 2]} ... {text[-LONGEST // 4 :]}"


def _drop_output() -> None:
    """Send what is still buffered nowhere: the interpreter flushes at exit and would complain."""
    _lead_nowhere(sys.stdout)


def _lead_nowhere(stream: TextIO) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Notes(io.TextIOWrapper):
    """Standard error, of which nothing is left once it cannot be written to.

    What is said beside an answer is no reason to lose it, nor to call a whole one a failure.
    """

    def write(self, text: str) -> int:
        """Write a text, or lose it."""
        try:
            return super().write(text)
        except OSError:
            _lead_nowhere(self)
            return len(text)

    def flush(self) -> None:
        """Write what is kept, or lose it."""
        try:
            super().flush()
        except OSError:
            _lead_nowhere(self)


class _Printable(logging.Formatter):
    """Logs are read on a terminal, too, and quote what went wrong with a file."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def main() -> None:
    """The entry point: run the command line of this process and exit with its code."""
    # A character that the terminal's encoding lacks becomes a question mark, not an error.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    own = sys.__stderr__
    if isinstance(own, io.TextIOWrapper) and sys.stderr is own:
        encoding = own.encoding
        sys.stderr = _Notes(own.detach(), encoding, errors="replace", line_buffering=True)
    logs = logging.StreamHandler()
    logs.setFormatter(_Printable())
    logging.getLogger().addHandler(logs)
    sys.exit(int(_run(sys.argv[1:])))
