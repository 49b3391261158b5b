"""The prompt: its keys, what Tab completes, and the history of what was typed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import FileHistory, History
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output

from mistral_chat.printable import printable
from mistral_chat.system.files import check_waits_for_nobody
from mistral_chat.terminal.commands import Room, completions
from mistral_chat.terminal.pastes import Pastes, is_open_block


def key_bindings(pastes: Pastes) -> KeyBindings:
    """Enter sends unless a block is open; Ctrl-J and Alt-Enter begin a new line; Ctrl-G edits."""
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

    @bindings.add("c-g")
    def edit(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    @bindings.add(Keys.BracketedPaste)
    def paste(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(pastes.mark(event.data))

    return bindings


def open_history(path: Path) -> FileHistory:
    """The history file, made so that only its owner can read it.

    Raises OSError, and UsageError for a pipe or a device, which would be waited for.
    """
    check_waits_for_nobody(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    path.chmod(0o600)
    return FileHistory(str(path))


class CommandCompleter(Completer):
    """Completes slash commands and what follows them."""

    def __init__(self, room: Callable[[], Room | None]) -> None:
        self._room = room

    def get_completions(
        self, document: Document, _complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Whole lines that begin as the line does."""
        line = document.text_before_cursor
        room = self._room()
        if room is None or "\n" in line:
            return
        for whole in completions(room, line):
            if printable(whole) != whole:
                continue  # a name that nobody can type
            yield Completion(whole, start_position=-len(line), display=whole.split(" ")[-1])


def open_prompt(
    history: History,
    pastes: Pastes,
    room: Callable[[], Room | None],
    toolbar: Callable[[], AnyFormattedText],
    vi: bool = False,
    source: Input | None = None,
    sink: Output | None = None,
) -> PromptSession[str]:
    """A prompt of several lines; ``room`` is None as long as there is nothing to complete from."""
    return PromptSession(
        history=history,
        multiline=True,
        key_bindings=key_bindings(pastes),
        prompt_continuation=_continuation,
        completer=CommandCompleter(room),
        complete_while_typing=False,
        bottom_toolbar=toolbar,
        editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
        tempfile_suffix=".md",
        enable_suspend=True,
        input=source,
        output=sink,
    )


def _continuation(width: int, _line_number: int, _wraps: int) -> AnyFormattedText:
    return "." * (width - 1) + " "
