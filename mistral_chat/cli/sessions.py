"""Commands for the talks that were kept, and for the settings."""

from __future__ import annotations

import json
import os
import time
from typing import Annotated

import typer

from mistral_chat.cli.application import Application, app, tell, tell_content, tell_json
from mistral_chat.cli.options import AsJson
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.settings import Paths

sessions = Application(
    help="List, search, rename, remove and export the talks that were kept.",
    invoke_without_command=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(sessions, name="sessions")


@sessions.callback()
def list_or_more(context: typer.Context, as_json: AsJson = False) -> int:
    """List, search, rename, remove and export the talks that were kept."""
    if context.invoked_subcommand is not None:
        return ExitCode.DONE
    return _list("", as_json)


@sessions.command()
def search(
    text: Annotated[str, typer.Argument(help="A text; case does not matter.")],
    as_json: AsJson = False,
) -> int:
    """List the sessions in which a text was said."""
    return _list(text, as_json)


@sessions.command()
def rename(
    name: Annotated[str, typer.Argument(help="A session's name.")],
    new_name: Annotated[str, typer.Argument(help="Its name from now on.")],
) -> int:
    """Give a session another name."""
    from mistral_chat.talk.sessions import SessionFile, find_session

    session = SessionFile.open(find_session(_folder().sessions, name))
    try:
        _tell(session.notice)
        session.rename(new_name)
    finally:
        session.close()
    return ExitCode.DONE


@sessions.command("rm")
def remove(name: Annotated[list[str], typer.Argument(help="Names of sessions.")]) -> int:
    """Remove sessions, and what was kept of what the model had read."""
    from mistral_chat.talk.sessions import remove_session, sweep

    sweep(_folder().sessions)
    for each in name:
        remove_session(_folder().sessions, each)
    return ExitCode.DONE


@sessions.command()
def export(
    name: Annotated[str, typer.Argument(help="A session's name.")],
    form: Annotated[
        str,
        typer.Option("--format", help="markdown, or json as 'mistral-chat template' reads it."),
    ] = "markdown",
) -> int:
    """Print a session as Markdown or JSON; of a damaged one what is whole, with exit code 1."""
    from mistral_chat.talk.sessions import (
        damage_told,
        find_session,
        read_session,
        to_json,
        to_markdown,
    )

    reading = read_session(find_session(_folder().sessions, name))
    if form not in ("markdown", "json"):
        raise UsageError(f"--format is markdown or json, not {form!r}.")
    talk = reading.talk
    if form == "json":
        tell_json(to_json(talk))
    else:
        tell_content(to_markdown(name, talk))
    _tell(damage_told(name, reading))
    return ExitCode.DONE if reading.damaged is None else ExitCode.FAILED


def _folder() -> Paths:
    return Paths.from_environment(os.environ)


def _tell(told: str | None) -> None:
    if told is not None:
        tell(told, err=True)


def _list(text: str, as_json: bool) -> int:
    from mistral_chat.talk.sessions import list_sessions, sweep

    sweep(_folder().sessions)
    entries = list_sessions(_folder().sessions, text, _tell)
    if as_json:
        rows = [
            {
                "name": entry.name,
                "path": str(entry.path),
                "modified": entry.modified,
                "turns": entry.turns,
                "title": entry.title,
                "cache_bytes": entry.cache_bytes,
                "damaged": entry.damaged,
            }
            for entry in entries
        ]
        tell_json(json.dumps(rows, ensure_ascii=False))
        return ExitCode.DONE
    for entry in entries:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified))
        kept = f"{entry.cache_bytes / 1e6:.0f} MB of cache" if entry.cache_bytes else ""
        tell(f"{entry.name}\t{when}\t{entry.turns} turns\t{kept}\t{entry.title}")
    return ExitCode.DONE
