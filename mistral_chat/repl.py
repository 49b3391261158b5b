"""The prompt: read a line, answer it, again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import FileHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import Output

from mistral_chat.commands import Chat, run
from mistral_chat.engine import Finished, TextDelta, sampling_of, stopped_by_interrupt
from mistral_chat.errors import sentence
from mistral_chat.messages import Message, Role
from mistral_chat.render import AnswerWriter, Notes
from quant.errors import QuantError

BLOCK = '"""'


def is_open_block(text: str) -> bool:
    '''Whether a block of lines was opened and not closed yet.

    >>> is_open_block('"""one'), is_open_block('"""one"""'), is_open_block("one")
    (True, False, False)
    '''
    stripped = text.strip()
    if not stripped.startswith(BLOCK):
        return False
    return len(stripped) < 2 * len(BLOCK) or not stripped.endswith(BLOCK)


def unwrap_block(text: str) -> str:
    r'''The text of a block without its marks; any other text as it is.

    >>> unwrap_block('"""one\ntwo"""')
    'one\ntwo'
    '''
    stripped = text.strip()
    if stripped.startswith(BLOCK) and not is_open_block(text):
        return stripped[len(BLOCK) : -len(BLOCK)].strip("\n")
    return text


def key_bindings() -> KeyBindings:
    """Enter sends unless a block is open; Ctrl-J and Alt-Enter begin a new line."""
    bindings = KeyBindings()

    @bindings.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open_block(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("c-j")
    @bindings.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def open_history(path: Path) -> FileHistory:
    """The history file, made so that only its owner can read it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    path.chmod(0o600)
    return FileHistory(str(path))


def prompt_session(
    history: Path, source: Input | None = None, sink: Output | None = None
) -> PromptSession[str]:
    """The line editor of the prompt; ``source`` and ``sink`` are the terminal unless given."""
    return PromptSession(
        history=open_history(history),
        multiline=True,
        key_bindings=key_bindings(),
        prompt_continuation=_continuation,
        input=source,
        output=sink,
    )


def _continuation(width: int, _line_number: int, _wraps: int) -> AnyFormattedText:
    return "." * (width - 1) + " "


class Repl:
    """The loop over one chat."""

    def __init__(
        self, chat: Chat, editor: PromptSession[str], notes: Notes, stdout: TextIO
    ) -> None:
        self._chat = chat
        self._editor = editor
        self._notes = notes
        self._stdout = stdout

    def run(self) -> None:
        """Read and answer until Ctrl-D or /bye. An error ends a turn, never the loop."""
        self._notes.say(f"{self._chat.engine.name}. /help lists the commands, Ctrl-D leaves.")
        while True:
            try:
                line = self._editor.prompt("> ")
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            try:
                if not self._handle(line):
                    return
            except QuantError as error:
                self._notes.warn(sentence(error))
            except KeyboardInterrupt:
                # Pressed just before or after an answer, where there is nothing to stop.
                continue

    def _handle(self, line: str) -> bool:
        """Do what a line asks for; False where it ends the loop."""
        # Bytes that are not UTF-8 arrive as lone surrogates, which no tokenizer takes.
        line = line.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        text = unwrap_block(line)
        if not text.strip():
            return True
        # What is written in a block is always a message.
        if text != line or not text.startswith("/"):
            self._ask(text)
        elif text.startswith("//"):
            self._ask(text[1:])
        else:
            before = list(self._chat.turns)
            outcome = run(self._chat, text)
            if outcome.text:
                self._stdout.write(outcome.text + "\n")
                self._stdout.flush()
            if outcome.ask is not None and not self._ask(outcome.ask):
                self._chat.turns = before
            return not outcome.leave
        return True

    def _ask(self, question: str) -> bool:
        """Answer a question as it streams, and keep both; False where nothing was written."""
        chat = self._chat
        asked = Message(Role.USER, question)
        writer = AnswerWriter(self._stdout)
        finished: Finished | None = None
        sampling = sampling_of(chat.settings)
        with stopped_by_interrupt() as cancel, self._notes.prefill() as (draw, hide):
            for event in chat.engine.reply(
                [*chat.messages(), asked], sampling, chat.settings.max_tokens, cancel, draw
            ):
                hide()
                if isinstance(event, TextDelta):
                    writer.write(event.text)
                else:
                    finished = event
        writer.end()
        if finished is None or not finished.text:
            self._notes.say("Nothing was written; the conversation is as it was before.")
            return False
        chat.turns += [asked, Message(Role.ASSISTANT, finished.text)]
        chat.last = finished
        if finished.truncated:
            self._notes.say(f"The answer was cut ({finished.finish_reason}).")
        return True


def open_repl(chat: Chat, history: Path, notes: Notes) -> None:
    """Run the loop on the terminal."""
    Repl(chat, prompt_session(history), notes, sys.stdout).run()
