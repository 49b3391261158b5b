"""``mistral-chat moderate``: verdicts on texts, and how good they are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mistral_chat.cli.application import (
    PROGRAM,
    AsJson,
    IgnoreMemory,
    Quiet,
    app,
    option,
    tell_json,
)
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.messages import Role
from mistral_chat.settings import Paths, resolve

if TYPE_CHECKING:
    from mistral_chat.guardrail.moderation import Moderator
    from mistral_chat.guardrail.report import Line
    from mistral_chat.terminal.render import Notes


@app.command()
def moderate(
    text: Annotated[
        list[str] | None,
        typer.Argument(help="The text; '-' is standard input.", show_default=False),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", help="Put a file before the text; may be repeated."),
    ] = None,
    role: Annotated[
        str, typer.Option(help="Who wrote the text: user or assistant.")
    ] = Role.USER.value,
    as_jsonl: Annotated[
        bool,
        typer.Option(
            "--jsonl",
            help='Read lines of JSON with a "text" (and a "role", a "question"), print each with '
            'its "verdict".',
        ),
    ] = False,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help='Measure the moderator on lines of JSON with "text" and "label"; "examples" is '
            "the set that ships.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --evaluate: write the plot as SVG.", metavar="FILE"),
    ] = None,
    save_categories: Annotated[
        Path | None,
        typer.Option(
            help="With --evaluate: write the categories with calibrated thresholds; else as they "
            "are, to be changed.",
            metavar="FILE",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    ignore_memory: IgnoreMemory = False,
    model: Annotated[str | None, option("model", "-m")] = None,
    moderator: Annotated[str | None, option("moderator")] = None,
    categories: Annotated[str | None, option("categories")] = None,
    threads: Annotated[int | None, option("threads")] = None,
    prefill: Annotated[str | None, option("prefill")] = None,
) -> int:
    """Classify texts: a verdict of a model, by the probabilities of categories.

    The exit code is 3 where a text was refused.
    """
    flags = {
        "model": model, "moderator": moderator, "categories": categories, "threads": threads,
        "prefill": prefill,
    }  # fmt: skip
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)
    if role not in (Role.USER, Role.ASSISTANT):
        raise UsageError(f"--role is user or assistant, not {role!r}.")
    if plot is not None and evaluate is None:
        raise UsageError("--plot draws an evaluation; give it one with --evaluate FILE.")

    from mistral_chat.engines.opening import open_engine
    from mistral_chat.guardrail.categories import PAPER, load_taxonomy
    from mistral_chat.guardrail.evaluation import SHIPPED, shipped_examples
    from mistral_chat.guardrail.moderation import moderator_settings, open_moderator
    from mistral_chat.guardrail.report import check_target, read_lines
    from mistral_chat.guardrail.report import save_categories as save
    from mistral_chat.models.names import caution
    from mistral_chat.models.texts import MOST_BYTES
    from mistral_chat.system.files import read_file, read_stream
    from mistral_chat.talk.inputs import gather, standard_input
    from mistral_chat.terminal.render import Notes

    # Looked at before a model is loaded, which takes longer.
    taxonomy = load_taxonomy(settings.categories or PAPER)
    words, files = text or [], file or []
    if words or files or as_jsonl:
        option = "--evaluate" if evaluate is not None else "--save-categories"
        if evaluate is not None or save_categories is not None:
            raise UsageError(
                f"With {option} no text is classified; leave the text or the option out."
            )
    for target in filter(None, (plot, save_categories)):
        check_target(target)
    notes = Notes(quiet, settings.plain)

    def opened() -> Moderator:
        with notes.progress() as progress:
            chosen = moderator_settings(settings, settings.moderator or settings.model)
            engine = open_engine(chosen, paths, progress, ignore_memory)
        told = caution(engine.name)
        if told is not None:
            notes.say(told)
        return open_moderator(engine, settings.categories)

    if evaluate is not None:
        data = shipped_examples() if evaluate == SHIPPED else read_file(Path(evaluate))
        return _evaluate(opened(), data, evaluate, plot, save_categories, as_json, notes)
    if save_categories is not None:
        save(taxonomy, save_categories)
        notes.say(f"{save_categories} holds the categories of {taxonomy.source}.")
        return ExitCode.DONE
    stdin = standard_input(words, files)
    if as_jsonl:
        if words or files or stdin is None:
            raise UsageError("--jsonl reads lines of JSON from standard input; pipe them in.")
        data = read_stream(stdin, "standard input")
        lines = read_lines(data, "standard input", Role(role))
        return _judge_lines(opened(), lines)
    if not (words or files or stdin is not None):
        raise UsageError(f'There is no text to classify; write one: {PROGRAM} moderate "a text".')
    example = f'{PROGRAM} moderate "a text"'
    whole = gather(words, files, stdin, example, MOST_BYTES)
    return _judge_text(opened(), whole, Role(role), as_json, notes)


def _judge_text(
    moderator: Moderator, text: str, role: Role, as_json: bool, notes: Notes
) -> ExitCode:
    from mistral_chat.guardrail.report import to_json, verdict_table
    from mistral_chat.system.interrupts import stopped_by_interrupt
    from mistral_chat.system.screen import Screen

    with stopped_by_interrupt() as cancel, notes.progress() as progress:

        def report(done: int, total: int) -> None:
            if total > 1:
                progress("Classifying", done, total)

        verdict = moderator.judge(text, role, progress=report, cancel=cancel)
    if verdict is None:
        return ExitCode.INTERRUPTED
    if as_json:
        tell_json(to_json({"model": moderator.name, **verdict.record()}))
    else:
        Screen().print(verdict_table(verdict, moderator.taxonomy))
    return ExitCode.REFUSED if verdict.refused else ExitCode.DONE


def _judge_lines(moderator: Moderator, lines: Sequence[Line]) -> ExitCode:
    from mistral_chat.guardrail.report import to_json
    from mistral_chat.system.interrupts import stopped_by_interrupt

    refused = False
    with stopped_by_interrupt() as cancel:
        for line in lines:
            verdict = moderator.judge(line.text, line.role, line.question, cancel=cancel)
            if verdict is None:
                return ExitCode.INTERRUPTED
            tell_json(to_json({**line.values, "verdict": verdict.record()}))
            refused |= verdict.refused
    return ExitCode.REFUSED if refused else ExitCode.DONE


def _evaluate(
    moderator: Moderator,
    data: bytes,
    place: str,
    plot: Path | None,
    categories: Path | None,
    as_json: bool,
    notes: Notes,
) -> ExitCode:
    from mistral_chat.guardrail.evaluation import evaluate, read_examples
    from mistral_chat.guardrail.report import evaluation_report, save_categories, save_plot, to_json
    from mistral_chat.system.interrupts import stopped_by_interrupt
    from mistral_chat.system.screen import Screen

    examples = read_examples(data, place, moderator.taxonomy)
    with stopped_by_interrupt() as cancel, notes.progress() as progress:
        evaluation = evaluate(
            moderator,
            examples,
            lambda done, total: progress("Classifying", done, total),
            cancel,
        )
    if evaluation is None:
        return ExitCode.INTERRUPTED
    if as_json:
        tell_json(to_json(evaluation.record()))
    else:
        Screen().print(evaluation_report(evaluation))
    if plot is not None:
        save_plot(evaluation, plot)
    if categories is not None:
        save_categories(evaluation.calibrated(), categories)
        notes.say(f"{categories} holds the calibrated thresholds; --categories takes it.")
    return ExitCode.DONE
