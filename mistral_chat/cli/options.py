"""The options that commands share; those that settings have are made from the table of settings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from mistral_chat.settings import all_settings, setting

MOST_AT_ONCE = 1024
"""Texts that may be read at once: more would not make a pass any cheaper."""

SHORT_FLAGS = {"model": "-m", "system": "-s", "temperature": "-t", "max_tokens": "-n"}


def option(name: str) -> Any:
    """The option of a setting: its flag and help come from the table of settings."""
    row = setting(name)
    words = [row.help]
    if row.choices:
        words.append(f"One of: {', '.join(row.choices)}.")
    if row.default is not None:
        default = ("on" if row.default else "off") if row.kind is bool else row.default
        words.append(f"[default: {default}]")
    words.append(f"[env: {row.environment}]")
    flag = f"{row.flag}/--no-{row.flag[2:]}" if row.kind is bool else row.flag
    short = [SHORT_FLAGS[name]] if name in SHORT_FLAGS else []
    return typer.Option(flag, *short, help=" ".join(words), show_default=False)


Command = Callable[..., int]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command an option for each of these settings, or for every one if none is named.

    They stand behind the command's own, and it gets their values as ``flags``, a dict.
    """
    rows = [setting(name) for name in names] or all_settings()
    options = [
        inspect.Parameter(
            row.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[row.kind | None, option(row.name)],
        )
        for row in rows
    ]

    def add(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [each for name, each in signature.parameters.items() if name != "flags"]

        @functools.wraps(command)
        def run(**arguments: Any) -> int:
            flags = {row.name: arguments.pop(row.name) for row in rows}
            return command(**arguments, flags=flags)

        # Typer reads both.
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*own, *options]
        )
        run.__annotations__ = {each.name: each.annotation for each in [*own, *options]}
        return run

    return add


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing beside the result.")]
IgnoreMemory = Annotated[
    bool, typer.Option("--ignore-memory", help="Go on even if memory seems too short.")
]
NoCheck = Annotated[
    bool, typer.Option("--no-check", help="Do not compare the result with its source.")
]
ModelArgument = Annotated[str, typer.Argument(help="A model's name, folder or GGUF file.")]
Threads = Annotated[int | None, option("threads")]
