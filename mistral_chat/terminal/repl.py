"""The prompt: read a line, answer it, again."""

from __future__ import annotations

import base64
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TextIO

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import EditingMode
from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import Output

from mistral_chat.engines.events import Finished, StartsOver, TextDelta
from mistral_chat.engines.protocol import Engine
from mistral_chat.errors import UsageError, is_told, sentence
from mistral_chat.guardrail.judging import Judged
from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.messages import Role
from mistral_chat.printable import printable
from mistral_chat.settings import OFF, Paths
from mistral_chat.system.files import check_waits_for_nobody, without_mark
from mistral_chat.system.interrupts import stopped_by_interrupt
from mistral_chat.talk.chat import Chat, ChatEvent
from mistral_chat.talk.inputs import decode_typed
from mistral_chat.terminal.commands import Outcome, Room, completions, run
from mistral_chat.terminal.keyboard import Keyboard
from mistral_chat.terminal.render import Notes, answer_writer
from mistral_chat.terminal.template_view import TemplateView
from quant.errors import QuantError

BLOCK = '"""'
LONGEST_SHOWN = 20_000
"""Characters of a paste that are put into the line; a longer one stands there as a short mark."""


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


class Pastes:
    """Long pastes, which the line holds as marks: an editor of lines is no place for megabytes."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def mark(self, text: str) -> str:
        """What to put into the line for a paste."""
        text = decode_typed(text).replace("\r\n", "\n").replace("\r", "\n")
        if len(text) <= LONGEST_SHOWN:
            return text
        mark = f"[paste {len(self._texts) + 1}: {len(text)} characters]"
        self._texts[mark] = text
        return mark

    def line(self, text: str) -> str:
        """What one would type to ask ``text``.

        >>> Pastes().line("/etc is what?")
        '//etc is what?'
        """
        slash = "/" if text.startswith("/") else ""
        return slash + self.mark(text)

    def expand(self, line: str) -> str:
        """The line with its pastes in place of their marks."""
        for mark, text in self._texts.items():
            line = line.replace(mark, text)
        return line


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


def edit_text(text: str, folder: Path) -> str:
    """``text`` as the person's editor leaves it. Raises UsageError where the editor fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(suffix=".md", dir=folder)  # for its owner only
    path = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        try:
            code = subprocess.run([*shlex.split(editor), name], check=False).returncode
        except (OSError, ValueError) as error:
            raise UsageError(
                f"The editor {editor!r} cannot be started; set EDITOR to one that can."
            ) from error
        if code != 0:
            raise UsageError(f"The editor {editor!r} ended with code {code}; nothing was changed.")
        # A mark that an editor puts first is no part of the text; what is no text shows.
        data = without_mark(path.read_bytes(), "What was edited")
        return data.decode("utf-8", "replace").rstrip("\n")
    finally:
        path.unlink(missing_ok=True)


class Repl:
    """The loop over one chat, whose engine may still be loading when it begins."""

    def __init__(
        self,
        open_chat: Future[Chat],
        switch_engine: Callable[[str], Engine],
        paths: Paths,
        notes: Notes,
        stdout: TextIO,
        name: str,
    ) -> None:
        self._open_chat = open_chat
        self._switch_engine = switch_engine
        self._paths = paths
        self._notes = notes
        self._stdout = stdout
        self._name = name
        self._room: Room | None = None
        self._pastes = Pastes()
        self._draft = ""
        self._keyboard = Keyboard.of_process()

    def run(
        self,
        history: History,
        vi: bool = False,
        source: Input | None = None,
        sink: Output | None = None,
    ) -> None:
        """Read and answer until Ctrl-D or /bye. An error ends a turn, never the loop.

        Raises what loading the model raises.
        """
        editor: PromptSession[str] = PromptSession(
            history=history,
            multiline=True,
            key_bindings=key_bindings(self._pastes),
            prompt_continuation=_continuation,
            completer=CommandCompleter(self._present),
            complete_while_typing=False,
            bottom_toolbar=self._toolbar,
            editing_mode=EditingMode.VI if vi else EditingMode.EMACS,
            tempfile_suffix=".md",
            enable_suspend=True,
            input=source,
            output=sink,
        )

        def loaded(future: Future[Chat]) -> None:
            # Runs in the thread that loads.
            application = editor.app
            if application.loop is None or not application.is_running:
                return
            error = future.exception()
            if error is None:
                application.loop.call_soon_threadsafe(application.invalidate)
            else:
                application.loop.call_soon_threadsafe(lambda: _fail(error))

        def _fail(error: BaseException) -> None:
            if editor.app.is_running and not editor.app.is_done:
                editor.app.exit(exception=error)

        watched = False

        def watch() -> None:
            nonlocal watched
            if not watched:
                watched = True
                self._open_chat.add_done_callback(loaded)

        self._notes.say(f"{self._name}. /help lists the commands, Ctrl-D leaves.")
        with self._keyboard.waiting():
            self._loop(lambda draft: editor.prompt("> ", default=draft, pre_run=watch))
        self._leave()

    def _loop(self, prompt: Callable[[str], str]) -> None:
        """Ask for lines and carry them out; ``prompt`` takes what stands in the line already."""
        while True:
            draft, self._draft = self._draft, ""
            try:
                line = prompt(draft)
            except KeyboardInterrupt:
                continue
            except EOFError:
                break
            try:
                if not self._handle(line):
                    break
            except KeyboardInterrupt:
                # Pressed just before or after an answer, where there is nothing to stop.
                continue
            except Exception as error:
                # Without a model there is nothing to go on with; else only a fault of this program
                # ends the talk, of which every turn is on the disk.
                if self._room is None or not is_told(error):
                    raise
                self._notes.warn(sentence(error))

    def _present(self) -> Room | None:
        """The room, once the model is there; raises nothing."""
        if self._room is None and self._open_chat.done() and self._open_chat.exception() is None:
            self._enter(self._open_chat.result())
        return self._room

    def _enter(self, chat: Chat) -> Room:
        self._room = Room(chat, self._paths, self._switch_model)
        return self._room

    def _tell_notice(self, chat: Chat) -> None:
        if chat.notice is not None:
            self._notes.warn(chat.notice)
            chat.notice = None

    def _ready(self) -> Room:
        """The room, waiting for the model where it is still loading."""
        room = self._present()
        if room is not None:
            self._tell_notice(room.chat)
            return room
        with self._notes.progress() as progress:
            progress("Loading the model", 0, 1)
            return self._enter(self._open_chat.result())

    def _switch_model(self, name: str) -> None:
        self._ready().chat.engine = self._switch_engine(name)

    def _toolbar(self) -> AnyFormattedText:
        room = self._present()
        if room is None:
            return printable(f" {self._name}  loading ...")
        chat = room.chat
        session = chat.engine.session
        words = [chat.engine.name, f"context {session.position} of {session.max_context}"]
        if chat.last is not None and chat.last.timings.decode_seconds > 0:
            timings = chat.last.timings
            words.append(f"{timings.decode_tokens / timings.decode_seconds:.0f} tokens/s")
        if chat.settings.guardrail != OFF:
            words.append(f"guardrail {chat.settings.guardrail}")
        words.append("private" if chat.store is None else chat.store.name)
        return printable(" " + "  ".join(words))

    def _handle(self, line: str) -> bool:
        """Do what a line asks for; False where it ends the loop."""
        line = decode_typed(line)
        text = self._pastes.expand(unwrap_block(line))
        if not text.strip():
            return True
        # What is written in a block is always a message.
        if unwrap_block(line) != line or not line.startswith("/"):
            self._ask(text, line)
        elif line.startswith("//"):
            self._ask(text[1:], line)
        else:
            return self._carry_out(run(self._ready(), text))
        return True

    def _carry_out(self, outcome: Outcome) -> bool:
        room = self._ready()
        chat = room.chat
        if outcome.copy is not None:
            self._copy(outcome.copy)
        if outcome.prompt:
            self._view(chat).print(self._stdout)
        if outcome.text:
            self._stdout.write(printable(outcome.text) + "\n")
            self._stdout.flush()
        if outcome.edit is not None:
            with self._keyboard.lent():
                edited = edit_text(outcome.edit, self._paths.state)
            if edited.strip() and edited != outcome.edit:
                self._ask(edited, self._pastes.line(edited), again=True)
            else:
                self._notes.say("The question is as it was.")
        if outcome.ask is not None:
            self._ask(outcome.ask, "", again=True)
        if outcome.go_on:
            with stopped_by_interrupt() as cancel, self._notes.prefill() as (draw, hide):
                self._show(chat, chat.go_on(cancel, draw), hide)
        return not outcome.leave

    def _view(self, chat: Chat) -> TemplateView:
        """What the model was told for the last answer, or will be told before the first question.

        Raises UsageError where that is nothing.
        """
        told = chat.messages()
        if not told:
            raise UsageError("Nothing was asked yet.")
        tokenizer, template = chat.engine.tokenizer, chat.engine.template
        marked = None if chat.settings.guardrail == OFF else GUARDRAIL_PROMPT
        if told[-1].role is Role.SYSTEM:
            return TemplateView.before_question(tokenizer, template, told, marked)
        return TemplateView.of(tokenizer, template, told[:-1], marked)  # it ends in a question

    def _copy(self, text: str) -> None:
        """Put a text into the clipboard by the terminal's own sequence (OSC 52)."""
        if not self._stdout.isatty():
            raise UsageError("The clipboard belongs to a terminal, and this is none.")
        packed = base64.b64encode(text.encode("utf-8")).decode("ascii")
        self._stdout.write(f"\x1b]52;c;{packed}\x07")

    def _ask(self, question: str, line: str, again: bool = False) -> None:
        """Answer a question as it streams.

        What was typed comes back where that fails or is refused, and what was attached waits until
        a question with it was answered.
        """
        chat = self._ready().chat
        before = len(chat.turns)
        try:
            with stopped_by_interrupt() as cancel, self._notes.prefill() as (draw, hide):
                whole = question if again else chat.composed(question)
                self._show(chat, chat.ask(whole, cancel, draw, self._notes.warn, again), hide)
        except QuantError:
            self._draft = line
            raise
        if chat.last is not None and chat.last.finish_reason == "refused":
            self._draft = line
        if again or not chat.attached:
            return
        if len(chat.turns) > before:
            chat.attached.clear()
        else:
            self._notes.say("What you attached waits for your next message; /clear drops it.")

    def _show(self, chat: Chat, events: Iterator[ChatEvent], hide: Callable[[], None]) -> None:
        writer = answer_writer(self._stdout, chat.settings.plain, chat.settings.theme)
        finished: Finished | None = None
        judged: list[Judged] = []
        try:
            for event in events:
                if isinstance(event, StartsOver):
                    self._notes.say(
                        "The window has moved on past this place; the talk is read anew."
                    )
                    continue
                if isinstance(event, Judged):
                    judged.append(event)
                    continue
                hide()
                if isinstance(event, TextDelta):
                    writer.write(event.text)
                else:
                    finished = event
        finally:
            # Also where the turn could not be kept: what was answered is shown to its end.
            if finished is not None and finished.text:
                writer.end()
        for told in filter(None, (each.sentence() for each in judged)):
            self._notes.warn(told)
        if finished is not None and finished.finish_reason == "refused":
            self._notes.say(
                "It is not kept. Say it in other words, or see /guardrail for the categories and "
                "the modes."
            )
            return
        if finished is None or not finished.text:
            self._notes.say("Nothing was written; the conversation is as it was before.")
            return
        if finished.finish_reason == "loop":
            self._notes.warn("The answer began to repeat itself and was stopped; /retry asks anew.")
        elif finished.truncated:
            self._notes.say(f"The answer was cut ({finished.finish_reason}); /continue goes on.")

    def _leave(self) -> None:
        """Keep what was read for the next start."""
        if self._room is None:
            # Nothing was asked; the model may still be loading.
            self._open_chat.cancel()
            return
        chat = self._room.chat
        size = chat.keep_cache(self._notes.warn)
        if chat.store is not None and chat.turns:
            kept = f", with {size / 1e6:.0f} MB of cache" if size else ""
            self._notes.say(
                f"Kept as {chat.store.name}{kept}; mistral-chat --continue goes on with it."
            )


def _continuation(width: int, _line_number: int, _wraps: int) -> AnyFormattedText:
    return "." * (width - 1) + " "


def open_repl(repl: Repl, history: Path | None, vi: bool) -> None:
    """Run the loop on the terminal; without a path nothing typed is kept."""
    repl.run(InMemoryHistory() if history is None else open_history(history), vi)
