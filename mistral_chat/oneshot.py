"""One question, one answer: what the command does in a pipe or with a prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from mistral_chat.commands import Chat, Engine
from mistral_chat.engine import Finished, TextDelta, sampling_of, stopped_by_interrupt
from mistral_chat.errors import ExitCode, UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.render import AnswerWriter, Notes, timing_line
from mistral_chat.settings import Settings

STDIN = "-"


@dataclass(frozen=True)
class Form:
    """How the answer is given: as one JSON object, whole at the end, or as it comes."""

    json: bool = False
    stream: bool = True


def gather(words: Sequence[str], files: Sequence[Path], stdin: BinaryIO | None) -> str:
    """The prompt: files, standard input and the words of the command line, a blank line between.

    ``stdin`` is None where nothing is to be read from it. Raises UsageError for text that is not
    UTF-8, a file that cannot be read, or nothing but blanks.
    """
    read_stdin = stdin is not None
    parts = [_decode(_read(file), str(file)) for file in files if str(file) != STDIN]
    if stdin is not None:
        parts.append(_decode(stdin.read(), "standard input"))
    parts.append(" ".join(word for word in words if not (read_stdin and word == STDIN)))
    prompt = "\n\n".join(part for part in (part.strip("\r\n") for part in parts) if part.strip())
    if not prompt:
        raise UsageError(
            'The prompt is empty; write it after the command: mistral-chat "your question".'
        )
    # Arguments that were not UTF-8 arrive as lone surrogates.
    _decode(prompt.encode("utf-8", errors="surrogateescape"), "the prompt")
    return prompt


def read_input(file: Path | None) -> bytes:
    """The bytes of a file, or of standard input for None or ``-``; raises UsageError."""
    if file is not None and str(file) != STDIN:
        return _read(file)
    if sys.stdin is None or (file is None and sys.stdin.isatty()):
        raise UsageError("There is no input; name a file, or pipe text into the command.")
    return sys.stdin.buffer.read()


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}.") from error


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"What came from {place} is not UTF-8 text (byte {error.start}); convert it first, "
            "for example with iconv."
        ) from error


def answer(
    prompt: str,
    settings: Settings,
    open_engine: Callable[[], Engine],
    notes: Notes,
    form: Form,
    stdout: TextIO,
) -> ExitCode:
    """Ask the model once and write its answer to ``stdout``; INTERRUPTED after Ctrl-C.

    Raises what opening the engine raises, and ContextFullError for a prompt that does not fit.
    """
    sampling = sampling_of(settings)
    chat = Chat(open_engine(), settings, [Message(Role.USER, prompt)])
    writer = AnswerWriter(stdout)
    finished: Finished | None = None
    with ExitStack() as stack:
        cancel = stack.enter_context(stopped_by_interrupt())
        draw, hide = stack.enter_context(notes.prefill())
        for event in chat.engine.reply(
            chat.messages(), sampling, settings.max_tokens, cancel, draw
        ):
            hide()
            if isinstance(event, Finished):
                finished = event
            elif isinstance(event, TextDelta) and form.stream and not form.json:
                writer.write(event.text)
    if finished is None:
        raise RuntimeError("the engine ended an answer without saying so")
    if form.json:
        stdout.write(json.dumps(_record(chat.engine, finished), ensure_ascii=False) + "\n")
        stdout.flush()
    else:
        if not form.stream:
            writer.write(finished.text)
        writer.end()
    notes.say(timing_line(finished))
    return ExitCode.INTERRUPTED if finished.finish_reason == "cancelled" else ExitCode.DONE


def _record(engine: Engine, finished: Finished) -> dict[str, object]:
    """The object that ``--json`` prints. ``guardrail`` says whether one was in force."""
    return {
        "text": finished.text,
        "finish_reason": finished.finish_reason,
        "usage": asdict(finished.usage),
        "timings": asdict(finished.timings),
        "seed": finished.seed,
        "model": {"name": engine.name, "digest": engine.model.digest},
        "template": engine.template.name,
        "truncated": finished.truncated,
        "guardrail": "off",
    }


def standard_input(words: Sequence[str], files: Sequence[Path]) -> BinaryIO | None:
    """Standard input where it is part of the prompt: named by ``-``, or not a terminal."""
    named = STDIN in words or any(str(file) == STDIN for file in files)
    # Python gives None where standard input is closed.
    if sys.stdin is None:
        return None
    return sys.stdin.buffer if named or not sys.stdin.isatty() else None
