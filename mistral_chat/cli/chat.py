"""``mistral-chat chat``, which is also what runs where no command is named."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mistral_chat.cli.application import DEFAULT_COMMAND, PROGRAM, app, option
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.settings import Paths, resolve


@app.command(DEFAULT_COMMAND)
def chat(
    prompt: Annotated[
        list[str] | None,
        typer.Argument(help="The question; '-' is standard input.", show_default=False),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Put a file before the question; may be repeated."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the text.")
    ] = False,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer when it is complete.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Say nothing beside the answer.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Load the model even if memory seems too short.")
    ] = False,
    model: Annotated[str | None, option("model", "-m")] = None,
    system: Annotated[str | None, option("system", "-s")] = None,
    system_position: Annotated[str | None, option("system_position")] = None,
    context: Annotated[int | None, option("context")] = None,
    threads: Annotated[int | None, option("threads")] = None,
    temperature: Annotated[float | None, option("temperature", "-t")] = None,
    top_k: Annotated[int | None, option("top_k")] = None,
    top_p: Annotated[float | None, option("top_p")] = None,
    min_p: Annotated[float | None, option("min_p")] = None,
    repetition_penalty: Annotated[float | None, option("repetition_penalty")] = None,
    seed: Annotated[int | None, option("seed")] = None,
    max_tokens: Annotated[int | None, option("max_tokens", "-n")] = None,
    kv: Annotated[str | None, option("kv")] = None,
    prefill: Annotated[str | None, option("prefill")] = None,
) -> int:
    """Answer a question, or talk where there is none. The word 'chat' may be left out."""
    flags = {
        "model": model,
        "system": system,
        "system_position": system_position,
        "context": context,
        "threads": threads,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "max_tokens": max_tokens,
        "kv": kv,
        "prefill": prefill,
    }
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)

    from mistral_chat.commands import Chat
    from mistral_chat.engine import ChatEngine, sampling_of
    from mistral_chat.oneshot import Form, answer, gather, standard_input
    from mistral_chat.render import Notes

    # Made to be checked: a value out of range is told before anything is fetched or loaded.
    sampling_of(settings)
    notes = Notes(quiet)
    words, files = prompt or [], file or []
    stdin = standard_input(words, files)

    def open_engine() -> ChatEngine:
        with notes.progress() as progress:
            return ChatEngine.open(settings, paths, progress, force)

    if words or files or stdin is not None:
        text = gather(words, files, stdin)
        form = Form(json=as_json, stream=not no_stream)
        return answer(text, settings, open_engine, notes, form, sys.stdout)
    if sys.stdin is None or not sys.stdout.isatty() or as_json:
        raise UsageError(
            f'There is nothing to answer; write a question: {PROGRAM} "your question".'
        )

    from mistral_chat.repl import open_repl

    open_repl(Chat(open_engine(), settings), paths.history_file, notes)
    return ExitCode.DONE
