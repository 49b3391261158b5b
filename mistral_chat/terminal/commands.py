"""The slash commands of the prompt, as a table.

A handler changes the chat and says what to print; asking the model, and whatever else takes the
terminal, is left to the prompt's loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from mistral_chat.engines.options import sampling_of
from mistral_chat.errors import UsageError
from mistral_chat.guardrail.categories import PRESETS, load_taxonomy
from mistral_chat.guardrail.prompt import GUARDRAIL_PROMPT, shown
from mistral_chat.models.names import list_models
from mistral_chat.settings import MODERATING, MODES, OFF, Paths, live_settings, nearest, setting
from mistral_chat.system.files import expanded, read_text
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.inputs import most_bytes
from mistral_chat.talk.sessions import (
    SUFFIX,
    SessionFile,
    checked_name,
    find_session,
    list_sessions,
    new_name,
)
from mistral_chat.terminal.render import context_bar, timing_line


@dataclass
class Room:
    """What a command may change: the chat, and where things are. ``open_engine`` loads a model."""

    chat: Chat
    paths: Paths
    switch_model: Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a command leads to.

    ``text`` is printed; ``ask`` is the last question, to be asked again, ``edit`` the same to be
    edited first;
    ``go_on`` lets the model go on with its answer; ``prompt`` shows what the model sees; ``copy``
    goes to the clipboard; ``leave`` ends the loop.
    """

    text: str = ""
    ask: str | None = None
    edit: str | None = None
    go_on: bool = False
    prompt: bool = False
    copy: str | None = None
    leave: bool = False


Completer = Callable[[Room, str], Iterable[str]]


def _nothing(_room: Room, _text: str) -> Iterable[str]:
    return ()


@dataclass(frozen=True)
class Command:
    """One row: ``arguments`` is how they are shown in help, empty where there are none.

    ``completer`` gives the words that may follow, for the argument as it is so far.
    """

    name: str
    arguments: str
    help: str
    handler: Callable[[Room, str], Outcome]
    aliases: tuple[str, ...] = ()
    completer: Completer = field(default=_nothing)


def _help(_room: Room, argument: str) -> Outcome:
    if argument:
        row = find(argument.removeprefix("/"))
        return Outcome(f"/{row.name} {row.arguments}".rstrip() + f": {row.help}")
    rows = [(f"/{row.name} {row.arguments}".rstrip(), row.help) for row in COMMANDS]
    width = max(len(left) for left, _ in rows)
    lines = [f"{left:<{width}}  {text}" for left, text in rows]
    lines.append("The beginning of a name is enough. A line that begins with // is sent, with one.")
    lines.append('Enter sends; Ctrl-J or Alt-Enter begins a new line; """ opens a block.')
    lines.append("Ctrl-C stops an answer, Ctrl-G opens an editor, Ctrl-R searches what you typed.")
    return Outcome("\n".join(lines))


def _system(room: Room, argument: str) -> Outcome:
    if argument:
        room.chat.set_system(argument)
        return Outcome("The system prompt is set; it holds from the next answer on.")
    return Outcome(room.chat.system or "No system prompt is set; the model's own is used.")


def _set(room: Room, argument: str) -> Outcome:
    chat = room.chat
    name, _, text = argument.partition(" ")
    rows = {row.name: row for row in live_settings()}
    if not name:
        return Outcome("\n".join(f"{row.name} = {_value(chat, row.name)}" for row in rows.values()))
    name = name.replace("-", "_")
    row = rows.get(setting(name).name)
    if row is None:
        raise UsageError(
            f"{name} cannot change while the model is loaded; start with {setting(name).flag}."
        )
    if not text.strip():
        return Outcome(f"{name} = {_value(chat, name)}")
    changed = replace(chat.settings, **{name: row.parse(text.strip(), "/set")})
    # Made only to be checked: a value out of range is refused now, not at the next answer.
    sampling_of(changed)
    if changed.categories is not None:
        load_taxonomy(changed.categories)
    before, chat.settings = chat.settings, changed
    if changed.guardrail in MODERATING:
        try:
            chat.moderator()
        except BaseException:
            chat.settings = before
            raise
    return Outcome(f"{name} = {_value(chat, name)}")


def _guardrail(room: Room, argument: str) -> Outcome:
    if argument:
        return _set(room, f"guardrail {argument}")
    chat = room.chat
    mode = chat.settings.guardrail
    lines = [f"guardrail = {mode}"]
    if mode != OFF:
        lines.append(GUARDRAIL_PROMPT)
    if mode in MODERATING:
        moderator = chat.moderator()
        lines.append(f"{moderator.name} judges by the categories of {moderator.taxonomy.source}:")
        lines += [
            f"  {each.name}: {each.action} from {shown(each.threshold)} ({each.description})"
            for each in moderator.taxonomy.categories
        ]
    for judged in chat.verdicts:
        lines.append(f"The last {judged.what}: {judged.verdict.reason()}")
    return Outcome("\n".join(lines))


def _set_words(_room: Room, text: str) -> Iterable[str]:
    name, space, _ = text.partition(" ")
    rows = {row.name: row for row in live_settings()}
    if not space:
        return rows
    row = rows.get(name)
    if row is None:
        return ()
    if name == "categories":
        return (f"{name} {word}" for word in PRESETS)
    return (f"{name} {word}" for word in (row.choices or (("on", "off") * (row.kind is bool))))


def _value(chat: Chat, name: str) -> str:
    value = getattr(chat.settings, name)
    if isinstance(value, bool):
        return "on" if value else "off"
    return "(not set)" if value is None else str(value)


def _show(room: Room, _argument: str) -> Outcome:
    chat = room.chat
    engine, settings = chat.engine, chat.settings
    lines = [
        f"model = {engine.name} ({engine.model.source})",
        f"digest = {engine.model.digest}",
        f"template = {engine.template.name}",
        f"context = {engine.session.max_context} tokens, cache {settings.kv}",
        f"session = {_session_of(chat)}",
        f"system = {chat.system or '(not set)'}",
    ]
    lines += [f"{row.name} = {_value(chat, row.name)}" for row in live_settings()]
    return Outcome("\n".join(lines))


def _session_of(chat: Chat) -> str:
    return "(private)" if chat.store is None else chat.store.name


def _clear(room: Room, _argument: str) -> Outcome:
    room.chat.clear()
    room.chat.attached.clear()
    return Outcome("The conversation is empty again.")


def _undo(room: Room, _argument: str) -> Outcome:
    return Outcome(f"Taken back: {room.chat.undo()}")


def _retry(room: Room, _argument: str) -> Outcome:
    if not room.chat.turns:
        raise UsageError("There is no question yet to ask again.")
    return Outcome(ask=room.chat.turns[-1].user)


def _edit(room: Room, _argument: str) -> Outcome:
    if not room.chat.turns:
        raise UsageError("There is no question yet to edit.")
    return Outcome(edit=room.chat.turns[-1].user)


def _continue(room: Room, _argument: str) -> Outcome:
    if not room.chat.turns:
        raise UsageError("There is no answer yet to go on with.")
    return Outcome(go_on=True)


def _fork(room: Room, argument: str) -> Outcome:
    name = checked_name(argument) if argument else new_name()
    path = room.paths.sessions / (name + SUFFIX)
    taken = f"There is a session named {name!r} already; choose another name."
    if path.exists():
        raise UsageError(taken)
    store = SessionFile.open(path)
    if path.exists():  # begun and left meanwhile by another terminal
        store.close()
        raise UsageError(taken)
    room.chat.fork(store)
    return Outcome(f"This talk goes on as {name}; the one before stays as it was.")


def _save(room: Room, argument: str) -> Outcome:
    chat = room.chat
    name = checked_name(argument)
    if chat.store is None:
        return _fork(room, name)
    chat.store.rename(name)
    return Outcome(f"The session is named {name}.")


def _load(room: Room, argument: str) -> Outcome:
    chat = room.chat
    path = find_session(room.paths.sessions, argument)
    if chat.store is not None and chat.store.path == path:
        return Outcome(f"{argument} is open already.")
    store = SessionFile.open(path)
    lines: list[str] = [] if store.notice is None else [store.notice]
    chat.keep_cache(lines.append)
    chat.switch(store)
    chat.restore_cache()
    lines.append(f"{argument}, {len(chat.turns)} turns.")
    if chat.turns:
        lines.append(f"The last question was: {' '.join(chat.turns[-1].user.split())[:200]}")
    return Outcome("\n".join(lines))


def _sessions(room: Room, argument: str) -> Outcome:
    damaged: list[str] = []
    entries = list_sessions(room.paths.sessions, argument, damaged.append)
    if not entries:
        none = "No session mentions that." if argument else "No session was kept yet."
        return Outcome("\n".join([none, *damaged]))
    lines = [
        f"{entry.name}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(entry.modified))}  "
        f"{entry.turns} turns  {entry.title}"
        for entry in entries[:20]
    ]
    if len(entries) > len(lines):
        lines.append(f"and {len(entries) - len(lines)} more: mistral-chat sessions")
    return Outcome("\n".join([*lines, *damaged]))


def _session_words(room: Room, _text: str) -> Iterable[str]:
    return [entry.name for entry in list_sessions(room.paths.sessions)]


def _model(room: Room, argument: str) -> Outcome:
    if not argument:
        return Outcome(f"{room.chat.engine.name} ({room.chat.engine.model.source})")
    room.switch_model(argument)
    return Outcome(f"{argument} answers from now on; it reads the talk from its beginning.")


def _model_words(room: Room, _text: str) -> Iterable[str]:
    return [entry.name for entry in list_models(room.paths) if entry.path is not None]


def _context(room: Room, _argument: str) -> Outcome:
    chat = room.chat
    lines = [context_bar(chat.parts())]
    if chat.talk.evicted:
        how = "summed up" if chat.talk.summary else "no longer told to the model"
        lines.append(f"The first {chat.talk.evicted} of {len(chat.turns)} turns are {how}.")
    return Outcome("\n".join(lines))


def _stats(room: Room, _argument: str) -> Outcome:
    chat = room.chat
    session = chat.engine.session
    lines = [
        f"context: {session.position} of {session.max_context} tokens used, "
        f"cache {session.cache.nbytes / 1e6:.1f} MB, "
        f"weights {chat.engine.model.weight_bytes / 1e6:.1f} MB"
    ]
    lines.append(timing_line(chat.last) if chat.last else "No answer yet.")
    return Outcome("\n".join(lines))


def _prompt(_room: Room, _argument: str) -> Outcome:
    return Outcome(prompt=True)


def _copy(room: Room, _argument: str) -> Outcome:
    if not room.chat.turns:
        raise UsageError("There is no answer yet to copy.")
    return Outcome("The last answer was copied.", copy=room.chat.turns[-1].assistant)


def _file(room: Room, argument: str) -> Outcome:
    chat = room.chat
    path = expanded(argument)
    text = read_text(path, *most_bytes(chat.engine.session.max_context))
    chat.check_length(text)
    chat.attached.append(text)
    return Outcome(f"{path.name} ({len(text)} characters) goes before your next message.")


def _file_words(_room: Room, text: str) -> Iterable[str]:
    path = expanded(text)
    folder = path if text.endswith("/") else path.parent
    start = text[: len(text) - len("" if text.endswith("/") else path.name)]
    return [start + each.name + ("/" * each.is_dir()) for each in sorted(folder.iterdir())]


def _bye(_room: Room, _argument: str) -> Outcome:
    return Outcome(leave=True)


COMMANDS: tuple[Command, ...] = (
    Command(
        "help", "[COMMAND]", "Show this list.", _help,
        completer=lambda _room, _text: [row.name for row in COMMANDS],
    ),
    Command("system", "[TEXT]", "Set the system prompt, or show it.", _system),
    Command(
        "set", "[NAME [VALUE]]", "Change a setting, or show it.", _set, completer=_set_words
    ),
    Command(
        "guardrail",
        "[MODE]",
        "Change what the guardrail does, or show it and its verdicts.",
        _guardrail,
        completer=lambda _room, _text: MODES,
    ),
    Command("show", "", "Show the model and all settings.", _show),
    Command("clear", "", "Forget the conversation.", _clear),
    Command("undo", "", "Take back the last question and its answer.", _undo),
    Command("retry", "", "Ask the last question again.", _retry),
    Command("edit", "", "Edit the last question and ask it again.", _edit),
    Command("continue", "", "Let the model go on with its last answer.", _continue),
    Command("fork", "[NAME]", "Go on in a copy of this session.", _fork),
    Command("save", "NAME", "Give this session a name, or keep a private one.", _save),
    Command("load", "NAME", "Go on with another session.", _load, completer=_session_words),
    Command("sessions", "[TEXT]", "List the sessions, or those that mention a text.", _sessions),
    Command("model", "[NAME]", "Change the model, or show it.", _model, completer=_model_words),
    Command("context", "", "Show what fills the context.", _context),
    Command("stats", "", "Show what the last answer took and what is used.", _stats),
    Command("prompt", "", "Show every token that the model is told.", _prompt),
    Command("copy", "", "Copy the last answer to the clipboard.", _copy),
    Command("file", "PATH", "Put a file before your next message.", _file, completer=_file_words),
    Command("bye", "", "Leave (so do /exit, /quit and Ctrl-D).", _bye, ("exit", "quit")),
)  # fmt: skip


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


def run(room: Room, line: str) -> Outcome:
    """Carry out one line that begins with a slash; raises UsageError and SamplingError."""
    name, _, argument = line[1:].partition(" ")
    command = find(name)
    argument = argument.strip()
    if argument and not command.arguments:
        raise UsageError(f"/{command.name} takes no argument.")
    if not argument and command.arguments and not command.arguments.startswith("["):
        raise UsageError(f"/{command.name} needs one: /{command.name} {command.arguments}.")
    return command.handler(room, argument)


def completions(room: Room, line: str) -> list[str]:
    """What may stand in place of the last words of ``line``, each a whole line.

    >>> completions(None, "/und")
    ['/undo']
    """
    if not line.startswith("/") or line.startswith("//"):
        return []
    name, space, argument = line[1:].partition(" ")
    if not space:
        return [f"/{row.name}" for row in COMMANDS if row.name.startswith(name)]
    try:
        command = find(name)
    except UsageError:
        return []
    try:
        words = list(command.completer(room, argument))
    except (OSError, ValueError, UsageError):  # what is typed names nothing yet
        return []
    return [f"/{name} {word}" for word in words if word.startswith(argument)]
