"""``mistral-chat batch``: many prompts from a file, answered several at once."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mistral_chat.cli.application import PROGRAM, app
from mistral_chat.cli.options import AtOnce, IgnoreMemory, Quiet, with_settings
from mistral_chat.errors import ExitCode, MemoryShortError, UsageError
from mistral_chat.settings import MODERATING, Paths, Settings, resolve

if TYPE_CHECKING:
    from mistral_chat.batch.lines import Lines
    from mistral_chat.batch.results import Kept, Printed
    from mistral_chat.batch.running import Progress, Run
    from mistral_chat.engines.local import ChatEngine
    from mistral_chat.guardrail.moderation import Moderator
    from mistral_chat.terminal.render import Notes

STDIN = "-"

LinesFile = Annotated[
    str | None,
    typer.Argument(
        help='Lines of JSON: a text, an object with a "prompt" or "messages" and options, or '
        "OpenAI's batch format; '-' is standard input.",
        metavar="FILE",
        show_default=False,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="Write the results there; what is killed can be gone on with.",
        metavar="FILE",
    ),
]  # fmt: skip
Resume = Annotated[
    bool, typer.Option("--resume", help="With --output: go on with what an earlier run has done.")
]
Unordered = Annotated[
    bool, typer.Option("--unordered", help="Results as they come, not in the order of the lines.")
]

SETTINGS = (
    "model", "context", "max_tokens", "system", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "seed", "guardrail", "moderator", "categories", "loop_detector",
    "system_position", "threads", "device", "gpu_layers", "kv", "prefill",
)  # fmt: skip

BELONGS = tuple(name for name in SETTINGS if name not in ("threads",))
"""Settings that results depend on: a batch is gone on with as it was begun."""


@app.command()
@with_settings(*SETTINGS)
def batch(
    file: LinesFile = None,
    output: Output = None,
    resume: Resume = False,
    unordered: Unordered = False,
    at_once: AtOnce = None,
    quiet: Quiet = False,
    ignore_memory: IgnoreMemory = False,
    *,
    flags: dict[str, Any],
) -> int:
    """Answer many prompts, several at once: each result is a line of JSON.

    The exit code is 1 where a line could not be answered, 3 where the guardrail refused one.
    """
    paths = Paths.from_environment(os.environ)
    settings = resolve(flags, os.environ, paths)
    if resume and output is None:
        raise UsageError("--resume goes on with what --output names; give --output FILE, too.")

    from mistral_chat.batch.results import Kept, Printed, check_output
    from mistral_chat.batch.running import Run
    from mistral_chat.engines.options import sampling_of
    from mistral_chat.guardrail.categories import load_taxonomy
    from mistral_chat.terminal.render import Notes

    # Made to be checked: a value out of range is told before anything is fetched or loaded.
    sampling_of(settings)
    if settings.categories is not None:
        load_taxonomy(settings.categories)
    notes = Notes(quiet, settings.plain)
    if output is not None:
        check_output(output, resume)
    with closing(_lines(file)) as lines:
        engine, moderator = _open(settings, paths, notes, ignore_memory)
        settings = settings.with_recommended(engine.recommended, engine.name)
        for complaint in engine.complaints:
            notes.warn(complaint)
        count = _at_once(engine, settings, at_once, ignore_memory)
        results: Kept | Printed = Printed(sys.stdout, not unordered)
        if output is not None:
            results = Kept(output, lines.digest, _belongs(settings, engine), not unordered, resume)
        run = Run(engine.answer_many(count), results, settings, engine.name, count, moderator)
        complete = False
        try:
            complete = _go(run, lines, notes)
        finally:
            results.close(complete)
            if isinstance(results, Kept) and not complete:
                notes.warn(f"{len(results.done)} of {lines.count} are done; go on with --resume.")
    if run.failed:
        notes.warn(f"{run.failed} of {lines.count} lines could not be answered; each says why.")
    if not complete:
        return ExitCode.INTERRUPTED
    if run.failed:
        return ExitCode.FAILED
    return ExitCode.REFUSED if run.refused else ExitCode.DONE


def _lines(file: str | None) -> Lines:
    from mistral_chat.batch.lines import Lines
    from mistral_chat.talk.inputs import standard_input

    if file not in (None, STDIN):
        return Lines.open(Path(str(file)))
    stdin = standard_input([STDIN] if file == STDIN else [], [])
    if stdin is None:
        raise UsageError(f"There is nothing to answer; name a file: {PROGRAM} batch lines.jsonl.")
    return Lines.read(stdin, "standard input")


def _open(
    settings: Settings, paths: Paths, notes: Notes, ignore_memory: bool
) -> tuple[ChatEngine, Moderator | None]:
    """The engine, and who judges where the guardrail does."""
    from mistral_chat.engines.opening import open_engine
    from mistral_chat.guardrail.judging import Moderators
    from mistral_chat.guardrail.moderation import moderator_settings
    from mistral_chat.models.names import caution

    with notes.progress() as progress:
        engine = open_engine(settings, paths, progress, ignore_memory)
        if settings.guardrail not in MODERATING:
            return engine, None

        def load(name: str) -> ChatEngine:
            return open_engine(moderator_settings(settings, name), paths, progress, ignore_memory)

        moderator = Moderators().choose(engine, settings, load)
    told = caution(moderator.name)
    if told is not None:
        notes.say(told)
    return engine, moderator


def _belongs(settings: Settings, engine: ChatEngine) -> str:
    """What results depend on beside the lines, as a digest."""
    told = {name: value for name, value in asdict(settings).items() if name in BELONGS}
    text = f"{sorted(told.items())!r} {engine.model.digest} {engine.template.name}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _at_once(
    engine: ChatEngine, settings: Settings, wanted: int | None, ignore_memory: bool
) -> int:
    from mistral_chat.models.planning import AT_ONCE, sequences_that_fit

    # Weights that are mapped from a file count as free, and must not lose their place.
    model, most = engine.model, wanted or AT_ONCE
    fitting = sequences_that_fit(
        model.config, model.weight_bytes, settings.context, settings.kv, most
    )
    if wanted is not None and fitting < wanted and not ignore_memory:
        raise MemoryShortError(
            f"Memory bears {fitting} texts of {settings.context} tokens at once, not {wanted}; ask "
            "for fewer with --at-once, for a smaller --context or --kv int8, or try all the same "
            "with --ignore-memory."
        )
    return wanted or fitting


def _go(run: Run, lines: Lines, notes: Notes) -> bool:
    from mistral_chat.system.interrupts import stopped_by_interrupt

    start = time.monotonic()
    first = len(run.results.done)
    latest: Progress | None = None
    with stopped_by_interrupt() as cancel, notes.counting("Answering") as draw:

        def tell(progress: Progress) -> None:
            nonlocal latest
            latest = progress
            seconds = time.monotonic() - start
            draw(progress.done, progress.total, f"{progress.tokens / seconds:.0f} tokens/s")

        complete = run.go(lines, tell, cancel)
    seconds = time.monotonic() - start
    tokens, count = (latest.tokens, latest.done - first) if latest is not None else (0, 0)
    notes.say(
        f"{count} lines in {seconds:.1f} s: {tokens} tokens, {tokens / seconds:.0f} tokens/s."
    )
    return complete
