"""What a session's lines come to, and which of them can be trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NoReturn

from mistral_chat.messages import Message, Role

FORMAT, VERSION = "mistral-chat session", 1

# What a line that was broken off while it was written begins with, or is the beginning of.
_FIRST_LINE = f'{{"format": "{FORMAT}"'.encode()
_LINE = b'{"event": "'


class ForeignError(ValueError):
    """The first line is not that of a session; its text says what the file is instead."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer; ``time`` as :func:`mistral_chat.talk.sessions.now` gives it."""

    user: str
    assistant: str
    finish_reason: str = "stop"
    time: str = ""

    def messages(self) -> list[Message]:
        """The two messages."""
        return [Message(Role.USER, self.user), Message(Role.ASSISTANT, self.assistant)]

    def event(self) -> dict[str, object]:
        """The event of the turn."""
        return {"event": "turn", **asdict(self)}


@dataclass
class Talk:
    """What a session's lines come to.

    The first ``evicted`` turns are no longer told to the model; where ``summary`` is set, it stands
    for them.
    """

    turns: list[Turn] = field(default_factory=list)
    system: str | None = None
    evicted: int = 0
    summary: str | None = None
    created: str = ""

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take in one event; unknown ones, of a later version, change nothing.

        Raises ValueError, with nothing changed, for one with a part that is missing or of a wrong
        type.
        """
        kind = _text(event, "event")
        if kind == "turn":
            told = _text(event, "user"), _text(event, "assistant")
            more = _text(event, "finish_reason", "stop"), _text(event, "time", "")
            self.turns.append(Turn(*told, *more))
        elif kind == "undo":
            self.turns = self.turns[:-1]
            self.evicted = min(self.evicted, len(self.turns))
        elif kind == "system":
            self.system = _text(event, "text")
        elif kind == "clear":
            self.turns, self.evicted, self.summary = [], 0, None
        elif kind == "evict":
            evicted, summary = event.get("turns"), event.get("summary")
            # A bool is an int to Python.
            if type(evicted) is not int or evicted < 0:
                raise ValueError("an eviction without a number of turns")
            self.summary = None if summary is None else _text(event, "summary")
            self.evicted = min(evicted, len(self.turns))
        elif kind == "together":
            self._apply_all(event.get("events"))

    def after(self, events: Sequence[Mapping[str, Any]]) -> Talk:
        """What the talk would be after some events; raises ValueError as :meth:`apply` does."""
        talk = replace(self, turns=list(self.turns))
        for event in events:
            talk.apply(event)
        return talk

    def _apply_all(self, events: object) -> None:
        """Take in several events, or none of them."""
        if not isinstance(events, list) or not all(isinstance(each, dict) for each in events):
            raise ValueError("events that are none")
        # One inside another is nothing that is ever written.
        if any(each.get("event") == "together" for each in events):
            raise ValueError("events within events")
        talk = self.after(events)
        for each in fields(self):
            setattr(self, each.name, getattr(talk, each.name))


def _text(event: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A text of an event; raises ValueError where it is none, or none that UTF-8 can hold."""
    value = event.get(name, default)
    if not isinstance(value, str):
        raise ValueError(f"a {event.get('event')} without texts: {name}")
    value.encode("utf-8")  # half a surrogate pair is a ValueError, too
    return value


@dataclass(frozen=True, slots=True)
class Reading:
    """A session's file as it was read: the talk, up to the first line that cannot be trusted.

    The first ``whole`` bytes are what the talk comes from. ``damaged`` is the number of the line
    after them (the first has 1) where that one is damaged. ``broken_off``: what comes after them is
    a line whose writing was broken off, so that nobody was ever told it was kept.
    """

    talk: Talk
    whole: int
    damaged: int | None = None
    broken_off: bool = False


def read_lines(data: bytes) -> Reading:
    """The talk in the bytes of a session's file. Raises ForeignError where they are none."""
    talk = Talk()
    whole = 0
    *lines, rest = data.split(b"\n")
    for number, line in enumerate(lines, 1):
        try:
            if number == 1:
                talk.created = _created(line)
            elif line.strip():
                talk.apply(_parsed(line))
        except (ValueError, RecursionError) as error:
            if number == 1:
                raise ForeignError(_what_it_is(error)) from error
            return Reading(talk, whole, number)
        whole += len(line) + 1
    # After a loss of power a file may have its length but not its bytes, which are zeros then.
    rest = rest.rstrip(b"\0")
    if lines:
        broken_off = _is_broken_off(rest, _LINE)
        return Reading(talk, whole, None if broken_off else len(lines) + 1, bool(rest))
    if not _is_broken_off(rest, _FIRST_LINE):
        try:
            _created(rest)  # then only the end of the line is missing, and nothing is lost by that
        except (ValueError, RecursionError) as error:
            raise ForeignError(_what_it_is(error)) from error
    return Reading(talk, whole)


def _is_broken_off(rest: bytes, start: bytes) -> bool:
    """Whether bytes without an end of line are what was written of a line that begins ``start``.

    Behind a whole object only the end of the line is missing: that was damaged or edited away.
    """
    if not rest.startswith(start):
        return start.startswith(rest)
    try:
        json.JSONDecoder().raw_decode(rest.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return True
    return False


class _VersionError(ValueError):
    """A version of the format that this program does not know."""


def _what_it_is(error: Exception) -> str:
    if isinstance(error, _VersionError):
        return str(error)
    return "is not a session of mistral-chat, or its first line is damaged"


def _created(line: bytes) -> str:
    """When the session was begun, from its first line; raises ValueError or RecursionError."""
    first = _parsed(line)
    version = first.get("version")
    if first.get("format") != FORMAT or type(version) is not int:
        raise ValueError("another format")
    if version != VERSION:
        raise _VersionError(
            f"is of version {version} of the format of sessions, and this program knows version "
            f"{VERSION}; update mistral-chat to go on with it"
        )
    return _text(first, "created", "")


def _parsed(line: bytes) -> Mapping[str, Any]:
    """A line as an object; raises ValueError or RecursionError."""
    value = json.loads(line.decode("utf-8"), parse_constant=_no_number)
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def written_line(event: Mapping[str, Any]) -> bytes:
    """An event as a line. What UTF-8 cannot hold becomes a question mark."""
    return (json.dumps(event, ensure_ascii=False) + "\n").encode("utf-8", "replace")


def first_line(created: str) -> bytes:
    """The line that a session's file begins with."""
    return written_line({"format": FORMAT, "version": VERSION, "created": created})


def to_markdown(name: str, talk: Talk) -> str:
    """A talk to be read: a heading for each message."""
    lines = [f"# {name}", ""]
    if talk.system:
        lines += ["## System", "", talk.system, ""]
    for turn in talk.turns:
        lines += ["## User", "", turn.user, "", "## Assistant", "", turn.assistant, ""]
    return "\n".join(lines)


def to_json(talk: Talk) -> str:
    """A talk as ``mistral-chat template`` reads it: a list of roles and contents."""
    messages = [Message(Role.SYSTEM, talk.system)] if talk.system else []
    messages += [message for turn in talk.turns for message in turn.messages()]
    rows = [{"role": message.role.value, "content": message.text} for message in messages]
    return json.dumps(rows, ensure_ascii=False, indent=1)
