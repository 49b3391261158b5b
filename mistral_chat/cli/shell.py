"""Commands about this computer, the settings and the shell."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Annotated, Any

import typer

from mistral_chat.cli.application import DEFAULT_COMMAND, app, tell, tell_json
from mistral_chat.cli.options import AsJson, with_settings
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.printable import printable
from mistral_chat.settings import Paths, all_settings, resolve

MODEL_ARGUMENTS = ("info", "plan", "perplexity", "quantize-weights", "pull", "rm")
SESSION_ARGUMENTS = ("rename", "rm", "export")


@app.command()
@with_settings()
def config(as_json: AsJson = False, *, flags: dict[str, Any]) -> int:
    """Show each setting, and where its value comes from."""
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)
    rows = [
        {"name": name, "value": getattr(settings, name), "source": settings.source(name)}
        for name in (row.name for row in all_settings())
    ]
    if as_json:
        tell_json(json.dumps({"file": str(paths.config_file), "settings": rows}))
        return ExitCode.DONE
    width = max(len(str(row["name"])) for row in rows)
    shown = {None: "(not set)", True: "on", False: "off"}
    for row in rows:
        value = row["value"]
        if value is None or isinstance(value, bool):
            value = shown[value]
        tell(f"{row['name']:<{width}}  {value}  ({row['source']})")
    tell(f"The file is {paths.config_file}.", err=True)
    return ExitCode.DONE


@app.command()
@with_settings()
def doctor(as_json: AsJson = False, *, flags: dict[str, Any]) -> int:
    """Show what this computer is, what of it is used, and what is amiss."""
    from mistral_chat.doctor import examine
    from mistral_chat.system.screen import Screen

    paths = Paths.from_environment(os.environ)
    report = examine(resolve(flags, os.environ, paths), paths, os.environ)
    if as_json:
        tell_json(report.to_json())
    else:
        report.print(Screen(soft_wrap=True))
    return ExitCode.DONE


@app.command("completions")
def print_completions(
    shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell.")],
) -> int:
    """Print what completes this command in a shell, to be read at its start."""
    from mistral_chat.terminal.shells import SCRIPTS

    if shell not in SCRIPTS:
        raise UsageError(f"Completions are for {', '.join(SCRIPTS)}, not {shell!r}.")
    tell(SCRIPTS[shell], end="")
    return ExitCode.DONE


@app.command("complete", hidden=True)
def complete(words: Annotated[list[str] | None, typer.Argument()] = None) -> int:
    """Print what may stand in place of the last word, a line each."""
    for word in candidates(words or [""], Paths.from_environment(os.environ)):
        tell(word)
    return ExitCode.DONE


def candidates(words: list[str], paths: Paths) -> list[str]:
    """What the last of ``words`` may become; the command's own name is not among them."""
    *before, last = words
    commands: Any = typer.main.get_command(app)
    command = commands.commands[DEFAULT_COMMAND]
    path = []
    group = commands
    for word in before:
        chosen = getattr(group, "commands", {}).get(word)
        if chosen is None:
            break
        command = group = chosen
        path.append(word)
    found: Iterable[str]
    previous = before[-1] if before else ""
    if previous in ("--model", "-m", "--against"):
        found = _models(paths)
    elif previous == "--session":
        found = _sessions(paths)
    elif (choices := _choices(previous)) is not None:
        found = choices
    elif last.startswith("-"):
        found = [
            name
            for parameter in command.params
            for name in (*parameter.opts, *parameter.secondary_opts)
            if name.startswith("--")
        ]
    elif path[:1] == ["sessions"] and path[1:] and path[1] in SESSION_ARGUMENTS:
        found = _sessions(paths)
    elif path and path[-1] in MODEL_ARGUMENTS:
        found = _models(paths)
    elif path == ["completions"]:
        found = ("bash", "zsh", "fish", "powershell")
    elif len(path) == len(before):
        inner = getattr(group, "commands", {})
        found = [name for name, each in inner.items() if not each.hidden]
    else:
        found = ()
    # A name that cannot be shown as it is cannot be typed either.
    return sorted({word for word in found if word.startswith(last) and printable(word) == word})


def _choices(flag: str) -> tuple[str, ...] | None:
    rows = {row.flag: row for row in all_settings()}
    return rows[flag].choices or None if flag in rows else None


def _models(paths: Paths) -> list[str]:
    from mistral_chat.models.names import list_models

    return [entry.name for entry in list_models(paths)]


def _sessions(paths: Paths) -> list[str]:
    from mistral_chat.talk.sessions import list_sessions

    return [entry.name for entry in list_sessions(paths.sessions)]
