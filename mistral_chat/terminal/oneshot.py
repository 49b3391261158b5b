"""One question, one answer: what the command does in a pipe or with a prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import TextIO

from mistral_chat.engines.events import Finished, StartsOver, TextDelta
from mistral_chat.errors import ExitCode, NotKeptError, sentence
from mistral_chat.guardrail.judging import Judged
from mistral_chat.printable import printable_json
from mistral_chat.system.interrupts import stopped_by_interrupt
from mistral_chat.talk.chat import Chat, ChatEvent
from mistral_chat.terminal.render import AnswerWriter, Notes, Writer, answer_writer, timing_line


@dataclass(frozen=True)
class Form:
    """How the answer is given: as one JSON object, as one for each event (``jsonl``), whole at the
    end, or as it comes.
    """

    json: bool = False
    jsonl: bool = False
    stream: bool = True


def answer(chat: Chat, question: str, notes: Notes, form: Form, stdout: TextIO) -> ExitCode:
    """Ask the model once and write its answer to ``stdout``.

    INTERRUPTED after Ctrl-C, REFUSED where the guardrail refused the question or the answer, FAILED
    where the answer is whole but the turn could not be kept in its session. Raises
    ContextFullError for a prompt that does not fit.
    """
    as_text = not (form.json or form.jsonl)
    chat.whole = not form.jsonl and (form.json or not form.stream)
    writer: Writer = AnswerWriter(stdout)
    if as_text and form.stream:
        writer = answer_writer(stdout, chat.settings.plain, chat.settings.theme)
    finished: Finished | None = None
    unkept: list[NotKeptError] = []
    if chat.notice is not None:
        notes.warn(chat.notice)
        chat.notice = None
    with ExitStack() as stack:
        cancel = stack.enter_context(stopped_by_interrupt())
        draw, hide = stack.enter_context(notes.prefill())
        for event in _noting(unkept, chat.ask(question, cancel, draw, notes.warn)):
            if isinstance(event, StartsOver):
                continue
            if isinstance(event, Judged):
                if form.jsonl:
                    _print(stdout, {"type": "verdict", **event.record()})
                continue
            hide()
            if isinstance(event, Finished):
                finished = event
            elif isinstance(event, TextDelta):
                if form.jsonl:
                    _print(stdout, {"type": "delta", "text": event.text})
                elif as_text and form.stream:
                    writer.write(event.text)
    if finished is None:
        raise RuntimeError("the engine ended an answer without saying so")
    if not as_text:
        kind = {"type": "finished"} if form.jsonl else {}
        _print(stdout, {**kind, **_record(chat, finished)})
    elif finished.text or finished.finish_reason != "refused":
        if not form.stream:
            writer.write(finished.text)
        writer.end()
    for told in filter(None, (each.sentence() for each in chat.verdicts)):
        notes.warn(told)
    if finished.finish_reason == "refused":
        notes.say(
            f"Say it in other words, change the categories ({chat.moderator().taxonomy.source}) "
            "with --categories, or choose another mode with --guardrail."
        )
        return ExitCode.REFUSED
    if finished.finish_reason == "loop":
        notes.warn("The answer began to repeat itself and was stopped.")
    notes.say(timing_line(finished))
    for error in unkept:
        notes.warn(sentence(error))
        return ExitCode.FAILED
    return ExitCode.INTERRUPTED if finished.finish_reason == "cancelled" else ExitCode.DONE


def _noting(unkept: list[NotKeptError], events: Iterator[ChatEvent]) -> Iterator[ChatEvent]:
    """The events; where the turn could not be kept in the end, that is put into ``unkept``."""
    try:
        yield from events
    except NotKeptError as error:
        unkept.append(error)


def _print(stdout: TextIO, record: dict[str, object]) -> None:
    stdout.write(printable_json(json.dumps(record, ensure_ascii=False)) + "\n")
    stdout.flush()


def _record(chat: Chat, finished: Finished) -> dict[str, object]:
    """The object that ``--json`` prints. ``guardrail`` is its mode and all verdicts."""
    engine = chat.engine
    return {
        "text": finished.text,
        "finish_reason": finished.finish_reason,
        "usage": asdict(finished.usage),
        "timings": asdict(finished.timings),
        "seed": finished.seed,
        "model": {"name": engine.name, "digest": engine.model.digest},
        "template": engine.template.name,
        "truncated": finished.truncated,
        "guardrail": {
            "mode": chat.settings.guardrail,
            "verdicts": [each.record() for each in chat.verdicts],
        },
    }
