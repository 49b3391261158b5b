"""The loop at the prompt: read a line, answer it, again."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TextIO

from prompt_toolkit.formatted_text import AnyFormattedText
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import Input
from prompt_toolkit.output import Output

from mistral_chat.engines.events import Finished, StartsOver, TextDelta
from mistral_chat.engines.protocol import Engine
from mistral_chat.errors import UsageError, is_told, sentence
from mistral_chat.guardrail.judging import Judged
from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT
from mistral_chat.messages import Role
from mistral_chat.printable import printable
from mistral_chat.settings import OFF, Paths
from mistral_chat.system.interrupts import stopped_by_interrupt
from mistral_chat.talk.chat import Chat, ChatEvent
from mistral_chat.talk.inputs import decode_typed
from mistral_chat.terminal.commands import Outcome, Room, run
from mistral_chat.terminal.editor import edit_text
from mistral_chat.terminal.keyboard import Keyboard
from mistral_chat.terminal.pastes import Pastes, is_open_block, unwrap_block
from mistral_chat.terminal.prompt import open_history, open_prompt
from mistral_chat.terminal.render import Notes, answer_writer
from mistral_chat.terminal.template_view import TemplateView
from quant.errors import QuantError

__all__ = ["Pastes", "Repl", "is_open_block", "open_repl", "unwrap_block"]


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
        editor = open_prompt(history, self._pastes, self._present, self._toolbar, vi, source, sink)

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


def open_repl(repl: Repl, history: Path | None, vi: bool) -> None:
    """Run the loop on the terminal; without a path nothing typed is kept."""
    repl.run(InMemoryHistory() if history is None else open_history(history), vi)
