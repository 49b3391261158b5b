"""``mistral-chat moderate``: verdicts on texts, and how good they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mistral_chat.cli.application import PROGRAM, app, tell_json
from mistral_chat.cli.options import AsJson, AtOnce, IgnoreMemory, Quiet, with_settings
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.messages import Role
from mistral_chat.settings import Paths, Settings, resolve

if TYPE_CHECKING:
    from mistral_chat.guardrail.moderation import Moderator
    from mistral_chat.terminal.render import Notes


Words = Annotated[
    list[str] | None,
    typer.Argument(help="The text; '-' is standard input.", show_default=False),
]
Files = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", help="Put a file before the text; may be repeated."),
]
WrittenBy = Annotated[str, typer.Option(help="Who wrote the text: user or assistant.")]
AsJsonLines = Annotated[
    bool,
    typer.Option(
        "--jsonl",
        help='Read lines of JSON with a "text" (and a "role", a "question"), print each with '
        'its "verdict".',
    ),
]
LabelledFile = Annotated[
    str | None,
    typer.Option(
        help='Measure the moderator on lines of JSON with "text" and "label"; "examples" is '
        "the set that ships.",
        metavar="FILE",
        show_default=False,
    ),
]
PlotFile = Annotated[
    Path | None,
    typer.Option(help="With --evaluate: write the plot as SVG.", metavar="FILE"),
]
CategoriesFile = Annotated[
    Path | None,
    typer.Option(
        help="With --evaluate: write the categories with calibrated thresholds; else as they "
        "are, to be changed.",
        metavar="FILE",
    ),
]


@app.command()
@with_settings("model", "moderator", "categories", "threads", "prefill")
def moderate(
    text: Words = None,
    file: Files = None,
    role: WrittenBy = Role.USER.value,
    as_jsonl: AsJsonLines = False,
    evaluate: LabelledFile = None,
    plot: PlotFile = None,
    save_categories: CategoriesFile = None,
    at_once: AtOnce = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    ignore_memory: IgnoreMemory = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Classify texts: a verdict of a model, by the probabilities of categories.

    The exit code is 3 where a text was refused.
    """
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)
    if role not in (Role.USER, Role.ASSISTANT):
        raise UsageError(f"--role is user or assistant, not {role!r}.")
    if plot is not None and evaluate is None:
        raise UsageError("--plot draws an evaluation; give it one with --evaluate FILE.")
    if at_once is not None and evaluate is None and not as_jsonl:
        raise UsageError("--at-once is for many texts; give them with --jsonl or --evaluate FILE.")

    from mistral_chat.guardrail.categories import PAPER, load_taxonomy
    from mistral_chat.guardrail.report import check_target
    from mistral_chat.guardrail.report import save_categories as save
    from mistral_chat.models.planning import AT_ONCE
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
    opened = partial(_open, settings, paths, notes, ignore_memory)
    if evaluate is not None:
        return _evaluate(
            opened, evaluate, plot, save_categories, at_once or AT_ONCE, as_json, notes
        )
    if save_categories is not None:
        save(taxonomy, save_categories)
        notes.say(f"{save_categories} holds the categories of {taxonomy.source}.")
        return ExitCode.DONE
    if as_jsonl:
        return _judge_lines(opened, words, files, Role(role), at_once or AT_ONCE)
    return _judge_text(opened, words, files, Role(role), as_json, notes)


def _open(settings: Settings, paths: Paths, notes: Notes, ignore_memory: bool) -> Moderator:
    """The moderator that the settings ask for, with its model loaded."""
    from mistral_chat.engines.opening import open_engine
    from mistral_chat.guardrail.moderation import moderator_settings, open_moderator
    from mistral_chat.models.names import caution

    with notes.progress() as progress:
        chosen = moderator_settings(settings, settings.moderator or settings.model)
        engine = open_engine(chosen, paths, progress, ignore_memory)
    told = caution(engine.name)
    if told is not None:
        notes.say(told)
    return open_moderator(engine, settings.categories)


def _judge_text(
    opened: Callable[[], Moderator],
    words: list[str],
    files: list[Path],
    role: Role,
    as_json: bool,
    notes: Notes,
) -> ExitCode:
    """One verdict, on all that was given."""
    from mistral_chat.guardrail.report import to_json, verdict_table
    from mistral_chat.models.texts import MOST_BYTES
    from mistral_chat.system.interrupts import stopped_by_interrupt
    from mistral_chat.system.screen import Screen
    from mistral_chat.talk.inputs import gather, standard_input

    stdin = standard_input(words, files)
    example = f'{PROGRAM} moderate "a text"'
    if not (words or files or stdin is not None):
        raise UsageError(f"There is no text to classify; write one: {example}.")
    text = gather(words, files, stdin, example, MOST_BYTES)
    moderator = opened()
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


def _judge_lines(
    opened: Callable[[], Moderator],
    words: list[str],
    files: list[Path],
    role: Role,
    at_once: int,
) -> ExitCode:
    """A verdict on each line of standard input; ``role`` wrote those that do not tell."""
    from mistral_chat.guardrail.report import read_lines, to_json
    from mistral_chat.system.files import read_stream
    from mistral_chat.system.interrupts import stopped_by_interrupt
    from mistral_chat.talk.inputs import standard_input

    stdin = standard_input(words, files)
    if words or files or stdin is None:
        raise UsageError("--jsonl reads lines of JSON from standard input; pipe them in.")
    lines = read_lines(read_stream(stdin, "standard input"), "standard input", role)
    moderator = opened()
    refused = False
    with stopped_by_interrupt() as cancel:
        verdicts = moderator.judge_all((line.said for line in lines), at_once, cancel)
        for line, verdict in zip(lines, verdicts, strict=False):
            if verdict is None:
                return ExitCode.INTERRUPTED
            tell_json(to_json({**line.values, "verdict": verdict.record()}))
            refused |= verdict.refused
    return ExitCode.REFUSED if refused else ExitCode.DONE


def _evaluate(
    opened: Callable[[], Moderator],
    place: str,
    plot: Path | None,
    categories: Path | None,
    at_once: int,
    as_json: bool,
    notes: Notes,
) -> ExitCode:
    """How good the moderator is, on the labelled examples at ``place``."""
    from mistral_chat.guardrail.evaluation import (
        SHIPPED,
        evaluate,
        read_examples,
        shipped_examples,
    )
    from mistral_chat.guardrail.report import evaluation_report, save_categories, save_plot, to_json
    from mistral_chat.system.files import read_file
    from mistral_chat.system.interrupts import stopped_by_interrupt
    from mistral_chat.system.screen import Screen

    data = shipped_examples() if place == SHIPPED else read_file(Path(place))
    moderator = opened()
    examples = read_examples(data, place, moderator.taxonomy)
    with stopped_by_interrupt() as cancel, notes.progress() as progress:
        evaluation = evaluate(
            moderator,
            examples,
            lambda done, total: progress("Classifying", done, total),
            cancel,
            at_once,
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
