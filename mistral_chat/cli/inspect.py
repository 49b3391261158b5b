"""Commands that show what a model sees and what a checkpoint is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mistral_chat.cli.application import app, tell_json
from mistral_chat.cli.options import MOST_AT_ONCE, AsJson, ModelArgument, option, with_settings
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.settings import Paths, resolve


@app.command()
@with_settings("model", "system_position")
def template(
    conversation: Annotated[
        Path | None,
        typer.Argument(
            help="A JSON list of messages, each with role and content; without it or as '-', "
            "standard input.",
            show_default=False,
        ),
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer's file or folder, instead of a model.", show_default=False),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="A format of Mistral's: v1, v2, v3, v7.", show_default=False),
    ] = None,
    neutralize: Annotated[
        bool,
        typer.Option(
            "--neutralize",
            help="Break up the plain-text markers of v1 and Zephyr typed in a message, as chat "
            "does; the reference encoder does not.",
        ),
    ] = False,
    as_json: AsJson = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Show a conversation as the token ids that a model is given."""
    paths = Paths.from_environment(os.environ)
    if tokenizer is not None and flags["model"] is not None:
        raise UsageError("--tokenizer and --model exclude each other; give one of them.")
    settings = resolve(flags, os.environ, paths)

    from mistral_chat.engines.options import template_options
    from mistral_chat.messages import read_conversation
    from mistral_chat.models.names import locate, open_tokenizer
    from mistral_chat.models.texts import MOST_BYTES
    from mistral_chat.talk.inputs import read_input
    from mistral_chat.templates import template_for
    from mistral_chat.terminal.render import Notes
    from mistral_chat.terminal.template_view import TemplateView

    messages = read_conversation(read_input(conversation, MOST_BYTES))
    if tokenizer is None:
        with Notes().progress() as progress:
            tokenizer = locate(settings.model, paths, progress)
    vocabulary = open_tokenizer(tokenizer)
    chosen = template_for(vocabulary, template_options(settings, neutralize), version)
    view = TemplateView.of(vocabulary, chosen, messages)
    if as_json:
        tell_json(view.to_json())
    else:
        view.print(sys.stdout)
    return ExitCode.DONE


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A model's file or folder, or its name.")],
    as_json: AsJson = False,
) -> int:
    """Show what a checkpoint is: family, geometry, window, tokenizer, quantization, size."""
    from mistral_chat.models.info import inspect
    from mistral_chat.models.names import locate
    from mistral_chat.system.screen import Screen
    from mistral_chat.terminal.render import Notes

    with Notes().progress() as progress:
        place = locate(path, Paths.from_environment(os.environ), progress)
    report = inspect(place)
    if as_json:
        tell_json(report.to_json())
    else:
        report.print(Screen(soft_wrap=True))
    return ExitCode.DONE


@app.command("plan")
def plan_memory(
    model: ModelArgument,
    context: Annotated[int | None, option("context")] = None,
    at_once: Annotated[
        int,
        typer.Option(help="Texts that are read at once.", min=1, max=MOST_AT_ONCE, metavar="N"),
    ] = 1,
    as_json: AsJson = False,
) -> int:
    """Show the memory a model needs, to chat and to be quantized; nothing is loaded."""
    from mistral_chat.models.names import locate
    from mistral_chat.models.planning import plan
    from mistral_chat.system.screen import Screen
    from mistral_chat.terminal.render import Notes

    paths = Paths.from_environment(os.environ)
    settings = resolve({"context": context}, os.environ, paths)
    with Notes().progress() as progress:
        place = locate(model, paths, progress)
    result = plan(place, settings.context, at_once)
    if as_json:
        tell_json(result.to_json())
    else:
        result.print(Screen(soft_wrap=True))
    return ExitCode.DONE
