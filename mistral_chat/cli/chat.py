"""``mistral-chat chat``, which is also what runs where no command is named."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mistral_chat.cli.application import DEFAULT_COMMAND, PROGRAM, app
from mistral_chat.cli.options import IgnoreMemory, with_settings
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.settings import Paths, Settings, resolve

if TYPE_CHECKING:
    from mistral_chat.models.download import Progress
    from mistral_chat.talk.chat import Chat
    from mistral_chat.talk.sessions import SessionFile
    from mistral_chat.terminal.render import Notes


Words = Annotated[
    list[str] | None,
    typer.Argument(help="The question; '-' is standard input.", show_default=False),
]
Files = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", help="Put a file before the question; may be repeated."),
]
GoOn = Annotated[bool, typer.Option("--continue", "-c", help="Go on with the latest session.")]
SessionName = Annotated[
    str | None,
    typer.Option(help="Go on with the session of that name, or begin it.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")]
AsJsonLines = Annotated[
    bool, typer.Option("--jsonl", help="Print a JSON object for each piece as it comes.")
]
NoStream = Annotated[
    bool, typer.Option("--no-stream", help="Print the answer when it is complete.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing beside the answer.")]


@app.command(DEFAULT_COMMAND)
@with_settings()
def chat(
    prompt: Words = None,
    file: Files = None,
    go_on: GoOn = False,
    session: SessionName = None,
    as_json: AsJson = False,
    as_jsonl: AsJsonLines = False,
    no_stream: NoStream = False,
    quiet: Quiet = False,
    ignore_memory: IgnoreMemory = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Answer a question, or talk where there is none. The word 'chat' may be left out."""
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)

    from mistral_chat.engines.options import sampling_of
    from mistral_chat.guardrail.categories import load_taxonomy
    from mistral_chat.talk.inputs import gather, most_bytes, standard_input
    from mistral_chat.terminal.oneshot import Form, answer
    from mistral_chat.terminal.render import Notes

    # Made to be checked: a value out of range is told before anything is fetched or loaded.
    sampling_of(settings)
    if settings.categories is not None:
        load_taxonomy(settings.categories)
    notes = Notes(quiet, settings.plain)
    words, files = prompt or [], file or []
    stdin = standard_input(words, files)
    if words or files or stdin is not None:
        most, refused = most_bytes(settings.context)
        text = gather(words, files, stdin, most=most, refused=refused)
        form = Form(as_json, as_jsonl, not no_stream)
        with closing(_store(settings, paths, notes, go_on, session)) as store:
            with notes.progress() as progress:
                talk = _open(settings, paths, notes, progress, store, ignore_memory)
            code = answer(talk, text, notes, form, sys.stdout)
            talk.keep_cache(notes.warn)
        return code
    if sys.stdin is None or not sys.stdout.isatty() or as_json or as_jsonl:
        raise UsageError(
            f'There is nothing to answer; write a question: {PROGRAM} "your question".'
        )
    kept = _store(settings, paths, notes, go_on, session) or _new_store(settings, paths)
    with closing(kept) as store:
        _talk(settings, paths, notes, store, ignore_memory)
    return ExitCode.DONE


def _open(
    settings: Settings,
    paths: Paths,
    notes: Notes,
    progress: Progress,
    store: SessionFile | None,
    ignore_memory: bool,
) -> Chat:
    """The chat, with its model loaded, and the moderator where one is asked for."""
    from mistral_chat.engines.local import ChatEngine
    from mistral_chat.engines.opening import open_engine
    from mistral_chat.guardrail.moderation import moderator_settings
    from mistral_chat.settings import MODERATING
    from mistral_chat.talk.chat import Chat

    def load_now(name: str) -> ChatEngine:
        return open_engine(moderator_settings(settings, name), paths, progress, ignore_memory)

    def load_later(name: str) -> ChatEngine:
        with notes.progress() as later:
            return open_engine(moderator_settings(settings, name), paths, later, ignore_memory)

    engine = open_engine(settings, paths, progress, ignore_memory)
    talk = Chat(engine, settings, store=store, load_moderator=load_now)
    if settings.guardrail in MODERATING:
        # Now, so that categories or a model that cannot be used are told before a question.
        talk.moderator()
    talk.load_moderator = load_later
    talk.restore_cache()
    return talk


@contextmanager
def closing(store: SessionFile | None) -> Iterator[SessionFile | None]:
    """``store``, let go of at the end."""
    try:
        yield store
    finally:
        if store is not None:
            store.close()


def _store(
    settings: Settings, paths: Paths, notes: Notes, go_on: bool, session: str | None
) -> SessionFile | None:
    """The session that was asked for, if one was. Raises UsageError for what cannot be.

    What is damaged of it is told at once: loading the model may fail, or take long.
    """
    from mistral_chat.talk.sessions import SUFFIX, SessionFile, checked_name, list_sessions, sweep

    if not go_on and session is None:
        return None
    if settings.private:
        raise UsageError("A private talk is not kept, so there is no session to go on with.")
    if session is not None:
        if go_on:
            raise UsageError("--continue and --session exclude each other; give one of them.")
        path = paths.sessions / (checked_name(session) + SUFFIX)
    else:
        entries = list_sessions(paths.sessions)
        if not entries:
            raise UsageError("No session was kept yet; begin one without --continue.")
        path = entries[0].path
    sweep(paths.sessions)
    store = SessionFile.open(path)
    if store.notice is not None:
        notes.warn(store.notice)
    return store


def _new_store(settings: Settings, paths: Paths) -> SessionFile | None:
    from mistral_chat.talk.sessions import SUFFIX, SessionFile, new_name, sweep

    sweep(paths.sessions)
    if settings.private:
        return None
    return SessionFile.open(paths.sessions / (new_name() + SUFFIX))


def _unseen(_label: str, _done: int, _total: int) -> None:
    """Progress that the toolbar's "loading" stands for."""


def _talk(
    settings: Settings, paths: Paths, notes: Notes, store: SessionFile | None, ignore_memory: bool
) -> None:
    """The prompt, while the model loads behind it."""
    import threading
    from concurrent.futures import Future
    from dataclasses import replace

    from mistral_chat.engines.local import ChatEngine
    from mistral_chat.engines.opening import needs_foreground, open_engine
    from mistral_chat.terminal.repl import Repl, open_repl

    def open_chat(progress: Progress) -> Chat:
        return _open(settings, paths, notes, progress, store, ignore_memory)

    def switch(name: str) -> ChatEngine:
        with notes.progress() as progress:
            changed = replace(settings, model=name)
            return open_engine(changed, paths, progress, ignore_memory)

    future: Future[Chat] = Future()
    if needs_foreground(settings, paths):
        with notes.progress() as progress:
            future.set_result(open_chat(progress))
    else:

        def load() -> None:
            try:
                future.set_result(open_chat(_unseen))
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=load, name="load", daemon=True).start()
    if store is not None and store.talk.turns:
        notes.say(f"Going on with {store.name}, {len(store.talk.turns)} turns.")
    history = None if settings.private else paths.history_file
    repl = Repl(future, switch, paths, notes, sys.stdout, settings.model)
    open_repl(repl, history, settings.vi)
