"""The slash commands of the prompt, as a table.

A handler changes the chat and says what to print; asking the model again is left to the prompt's
loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import quant
from mistral_chat.engine import Event, Finished, PrefillProgress, sampling_of
from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.render import timing_line
from mistral_chat.settings import Settings, nearest, sampling_settings, setting
from mistral_chat.templates import ChatTemplate


class Engine(Protocol):
    """What the prompt and the one-shot command need from an engine."""

    name: str
    model: quant.Model
    session: quant.Session
    template: ChatTemplate

    def reply(
        self,
        messages: Sequence[Message],
        sampling: quant.Sampling,
        max_tokens: int | None = None,
        cancel: Callable[[], bool] | None = None,
        progress: Callable[[PrefillProgress], None] | None = None,
    ) -> Iterator[Event]:
        """Answer a conversation; see ChatEngine.reply."""


@dataclass
class Chat:
    """A conversation under way: ``turns`` are questions and answers, in pairs."""

    engine: Engine
    settings: Settings
    turns: list[Message] = field(default_factory=list)
    last: Finished | None = None

    def messages(self) -> list[Message]:
        """The turns, after the system prompt where one is set."""
        if self.settings.system is None:
            return list(self.turns)
        return [Message(Role.SYSTEM, self.settings.system), *self.turns]

    def undo(self) -> str:
        """Remove the last question and its answer; the question. Raises UsageError if none."""
        if not self.turns:
            raise UsageError("There is nothing to take back yet.")
        # A chat always holds whole turns: a question and its answer.
        question = self.turns[-2].text
        del self.turns[-2:]
        return question


@dataclass(frozen=True)
class Outcome:
    """What a command leads to: text to print, a question to ask, or the end."""

    text: str = ""
    ask: str | None = None
    leave: bool = False


@dataclass(frozen=True)
class Command:
    """One row: ``arguments`` is how they are shown in help, empty where there are none."""

    name: str
    arguments: str
    help: str
    handler: Callable[[Chat, str], Outcome]
    aliases: tuple[str, ...] = ()


def _help(_chat: Chat, _argument: str) -> Outcome:
    rows = [(f"/{row.name} {row.arguments}".rstrip(), row.help) for row in COMMANDS]
    width = max(len(left) for left, _ in rows)
    lines = [f"{left:<{width}}  {text}" for left, text in rows]
    lines.append("A line that begins with // is sent, with one slash.")
    lines.append('""" opens a block of lines and closes it; Ctrl-J or Alt-Enter begins a new line.')
    return Outcome("\n".join(lines))


def _system(chat: Chat, argument: str) -> Outcome:
    if argument:
        chat.settings = replace(chat.settings, system=argument)
        return Outcome("The system prompt is set; it holds from the next answer on.")
    if chat.settings.system is None:
        return Outcome("No system prompt is set; the model's own is used.")
    return Outcome(chat.settings.system)


def _set(chat: Chat, argument: str) -> Outcome:
    name, _, text = argument.partition(" ")
    rows = {row.name: row for row in sampling_settings()}
    if not name:
        return Outcome("\n".join(f"{row.name} = {_value(chat, row.name)}" for row in rows.values()))
    row = rows.get(setting(name).name)
    if row is None:
        raise UsageError(f"{name} cannot change while the model is loaded; start with --{name}.")
    if not text.strip():
        return Outcome(f"{name} = {_value(chat, name)}")
    changed = replace(chat.settings, **{name: row.parse(text.strip(), "/set")})
    # Made only to be checked: a value out of range is refused now, not at the next answer.
    sampling_of(changed)
    chat.settings = changed
    return Outcome(f"{name} = {_value(chat, name)}")


def _value(chat: Chat, name: str) -> str:
    value = getattr(chat.settings, name)
    return "(not set)" if value is None else str(value)


def _show(chat: Chat, _argument: str) -> Outcome:
    engine, settings = chat.engine, chat.settings
    lines = [
        f"model = {engine.name} ({engine.model.source})",
        f"digest = {engine.model.digest}",
        f"template = {engine.template.name}",
        f"context = {engine.session.max_context} tokens, cache {settings.kv}",
        f"system = {_value(chat, 'system')}",
    ]
    lines += [f"{row.name} = {_value(chat, row.name)}" for row in sampling_settings()]
    return Outcome("\n".join(lines))


def _clear(chat: Chat, _argument: str) -> Outcome:
    chat.turns.clear()
    chat.last = None
    return Outcome("The conversation is empty again.")


def _undo(chat: Chat, _argument: str) -> Outcome:
    question = chat.undo()
    return Outcome(f"Taken back: {question}")


def _retry(chat: Chat, _argument: str) -> Outcome:
    return Outcome(ask=chat.undo())


def _stats(chat: Chat, _argument: str) -> Outcome:
    session = chat.engine.session
    lines = [
        f"context: {session.position} of {session.max_context} tokens used, "
        f"cache {session.cache.nbytes / 1e6:.1f} MB, "
        f"weights {chat.engine.model.weight_bytes / 1e6:.1f} MB"
    ]
    lines.append(timing_line(chat.last) if chat.last else "No answer yet.")
    return Outcome("\n".join(lines))


def _bye(_chat: Chat, _argument: str) -> Outcome:
    return Outcome(leave=True)


COMMANDS: tuple[Command, ...] = (
    Command("help", "", "Show this list.", _help),
    Command("system", "[TEXT]", "Set the system prompt, or show it.", _system),
    Command("set", "[NAME [VALUE]]", "Change how answers are chosen, or show it.", _set),
    Command("show", "", "Show the model and all settings.", _show),
    Command("clear", "", "Forget the conversation.", _clear),
    Command("undo", "", "Take back the last question and its answer.", _undo),
    Command("retry", "", "Ask the last question again.", _retry),
    Command("stats", "", "Show what the last answer took and what is used.", _stats),
    Command("bye", "", "Leave (so do /exit, /quit and Ctrl-D).", _bye, ("exit", "quit")),
)


def find(name: str) -> Command:
    """The command of that name, alias or unique prefix (without the slash).

    Raises UsageError with the nearest name, or with the names a prefix fits.

    >>> find("und").name, find("quit").name
    ('undo', 'bye')
    """
    names: Mapping[str, Command] = {
        word: row for row in COMMANDS for word in (row.name, *row.aliases)
    }
    if name in names:
        return names[name]
    fitting = sorted(word for word in names if name and word.startswith(name))
    if len({names[word].name for word in fitting}) == 1:
        return names[fitting[0]]
    if fitting:
        raise UsageError(f"/{name} could be {' or '.join('/' + word for word in fitting)}.")
    hint = nearest(f"/{name}", {f"/{word}": row for word, row in names.items()})
    raise UsageError(f"There is no command /{name}{hint} /help lists them.")


def run(chat: Chat, line: str) -> Outcome:
    """Carry out one line that begins with a slash; raises UsageError and SamplingError."""
    name, _, argument = line[1:].partition(" ")
    command = find(name)
    argument = argument.strip()
    if argument and not command.arguments:
        raise UsageError(f"/{command.name} takes no argument.")
    return command.handler(chat, argument)
