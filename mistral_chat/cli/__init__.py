"""The ``mistral-chat`` command.

Heavy modules are imported by the commands that need them, so ``--help`` answers at once.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import typer

# Importing a module of commands adds them to the application, in the order of the help.
from mistral_chat.cli import (  # noqa: F401
    chat,
    inspect,
    measure,
    models,
    moderate,
    quantize,
    sessions,
    shell,
)  # fmt: skip
from mistral_chat.cli.application import DEFAULT_COMMAND, PROGRAM, app
from mistral_chat.errors import ClosedPipeError, ExitCode, UsageError, exit_code, sentence
from quant.errors import QuantError


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
        typer.echo(f"{error.format_message()} See '{PROGRAM} --help'.", err=True)
        return ExitCode.USAGE
    except (BrokenPipeError, ClosedPipeError):
        _drop_output()
        return ExitCode.DONE
    except (QuantError, OSError) as error:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:  # a full disk under standard output, most likely the error itself
            _drop_output()
        typer.echo(sentence(error), err=True)
        return exit_code(error)
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED


def _drop_output() -> None:
    """Send what is still buffered nowhere: the interpreter flushes at exit and would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The entry point: run the command line of this process and exit with its code."""
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks becomes a question mark, not an error.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(int(_run(sys.argv[1:])))
