"""The application that commands are added to, and how they tell what they found."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

import typer

from mistral_chat import __version__
from mistral_chat.errors import ClosedPipeError
from mistral_chat.printable import printable, printable_json
from mistral_chat.settings import all_settings, check_text

PROGRAM = "mistral-chat"
DEFAULT_COMMAND = "chat"

Function = TypeVar("Function", bound=Callable[..., Any])


class _Group(typer.core.TyperGroup):
    """The commands. At a closed pipe Typer would end the process; here it is an error like any."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ClosedPipeError from error


class _Command(typer.core.TyperCommand):
    """A command. Its arguments are looked at before it runs, those of every command here."""

    def invoke(self, ctx: Any) -> Any:
        rows = {row.flag: row for row in all_settings()}
        for parameter in self.params:
            value = ctx.params.get(parameter.name)
            name = parameter.opts[0] if parameter.opts[0].startswith("-") else "the argument"
            for each in value if isinstance(value, list | tuple) else [value]:
                # Paths are no texts: the name of a file may be any bytes.
                if isinstance(each, str):
                    check_text(each, name)
            # One that may be repeated, such as bench's --prefill, is none of the settings.
            if value is not None and name in rows and not parameter.multiple:
                rows[name].check(value, name)
        return super().invoke(ctx)


class Application(typer.Typer):
    """A group of commands that look at their arguments first."""

    def command(self, name: str | None = None, **more: Any) -> Callable[[Function], Function]:
        """Add a command, as Typer does."""
        return super().command(name, cls=_Command, **more)


def tell(text: str, err: bool = False, end: str = "\n") -> None:
    """Print a line of what this program says, to be read: nothing in it steers a terminal."""
    typer.echo(printable(text) + end, nl=False, err=err)


def tell_json(text: str) -> None:
    """Print JSON; the same value everywhere, and nothing in it steers a terminal."""
    typer.echo(printable_json(text))


def tell_content(text: str) -> None:
    """Print what a person keeps: as it is into a pipe or a file, made printable on a terminal."""
    typer.echo(printable(text) if sys.stdout.isatty() else text)


class Told(Protocol):
    """What a command found: for a program, and for a person."""

    def to_json(self) -> str:
        """As JSON."""
        ...

    def sentences(self) -> list[str]:
        """What a person wants to know, a line each."""
        ...


def tell_result(result: Told, as_json: bool) -> None:
    """Print what a command found, as JSON or in sentences."""
    if as_json:
        tell_json(result.to_json())
        return
    for line in result.sentences():
        tell(line)


app = Application(
    name=PROGRAM,
    cls=_Group,
    help="Chat with a language model in this terminal: private, offline, on this computer.",
    epilog=f"'{PROGRAM} chat --help' lists the options of a question.",
    add_completion=False,
    # Rich help would import Rich before it is needed.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        tell(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Chat with a language model in this terminal: private, offline, on this computer."""
