"""Talks on the disk: one file each, to which lines are added and nothing else.

A line is a JSON object. The first tells the format; each other is something that happened: a whole
turn, one taken back, a new system prompt. So a file that ends in the middle of a line, because the
process was killed or the disk was full, still holds every turn before it::

    {"format": "mistral-chat session", "version": 1, "created": "2026-11-24T10:00:00+00:00"}
    {"event": "turn", "user": "Hi", "assistant": "Hello!", "finish_reason": "stop", ...}
    {"event": "undo"}
    {"event": "system", "text": "Be brief"}

Beside it, in a file of the same name that ends in ``.cache``, may lie what the model had read.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mistral_chat.errors import UsageError
from mistral_chat.messages import Message, Role
from mistral_chat.settings import nearest

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

SUFFIX, CACHE_SUFFIX = ".jsonl", ".cache"
KEPT_CACHES = 8
FORMAT, VERSION = "mistral-chat session", 1
_NAME = re.compile(r"[^\W_][\w.-]{0,99}")


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer; ``time`` as :func:`now` gives it."""

    user: str
    assistant: str
    finish_reason: str = "stop"
    time: str = ""

    def messages(self) -> list[Message]:
        """The two messages."""
        return [Message(Role.USER, self.user), Message(Role.ASSISTANT, self.assistant)]


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
        """Take in one event; unknown ones, of a later version, change nothing."""
        kind = event.get("event")
        if kind == "turn":
            words = (event["user"], event["assistant"])
            if not all(isinstance(each, str) for each in words):
                raise ValueError("a turn without texts")
            reason, time = str(event.get("finish_reason", "stop")), str(event.get("time", ""))
            self.turns.append(Turn(*words, reason, time))
        elif kind == "undo":
            self.turns = self.turns[:-1]
            self.evicted = min(self.evicted, len(self.turns))
        elif kind == "system":
            self.system = event["text"]
        elif kind == "clear":
            self.turns, self.evicted, self.summary = [], 0, None
        elif kind == "evict":
            self.evicted = min(int(event["turns"]), len(self.turns))
            self.summary = event.get("summary")


def read_talk(path: Path) -> Talk:
    """All that is whole in a session's file; raises UsageError where it cannot be read.

    A line that is damaged ends it: what comes after cannot be relied on.
    """
    talk = Talk()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The session {path} cannot be read: {error.strerror}.") from error
    for number, line in enumerate(_whole_lines(data)):
        try:
            event = json.loads(line)
            if number == 0 and event.get("format") != FORMAT:
                raise UsageError(f"{path} is not a session of mistral-chat.")
            if number == 0:
                talk.created = str(event.get("created", ""))
            else:
                talk.apply(event)
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if number == 0:
                raise UsageError(f"{path} is not a session of mistral-chat.") from error
            break
    return talk


def _whole_lines(data: bytes) -> Iterator[str]:
    for line in data.split(b"\n")[:-1]:
        yield line.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A session in the list; ``modified`` in seconds since 1970, ``cache_bytes`` of its cache."""

    name: str
    path: Path
    modified: float
    turns: int
    title: str
    cache_bytes: int


class SessionFile:
    """A session that is open to be written, by this process alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.talk = Talk()
        self._descriptor: int | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a session, or begin one; a torn last line is cut off.

        Raises UsageError where another process has it open or it cannot be used.
        """
        session = cls(path)
        if path.exists():
            session.talk = read_talk(path)
        session._acquire()
        return session

    @property
    def name(self) -> str:
        """The session's name."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def cache_path(self) -> Path:
        """Where what the model had read is kept."""
        return self.path.with_name(self.name + CACHE_SUFFIX)

    def record(self, event: str, **values: Any) -> None:
        """Add an event to the file and to the talk, on the disk before this returns."""
        self._write({"event": event, **values})
        self.talk.apply({"event": event, **values})

    def rename(self, name: str) -> None:
        """Give the session, and its cache, another name. Raises UsageError if it is taken."""
        target = self.path.with_name(checked_name(name) + SUFFIX)
        if target.exists():
            raise UsageError(f"There is a session named {name!r} already; choose another name.")
        cache = self.cache_path
        if self.path.exists():
            self.path.rename(target)
        self.path = target
        if cache.exists():
            cache.rename(self.cache_path)

    def close(self) -> None:
        """Let go of the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _acquire(self) -> None:
        """Open the file if it is there, and hold its lock."""
        if self._descriptor is not None or not self.path.exists():
            return
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND)
        except OSError as error:
            raise UsageError(f"The session {self.path} cannot be opened: {error}.") from error
        if fcntl is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(descriptor)
                raise UsageError(
                    f"The session {self.name!r} is open in another terminal; close it there, or "
                    "begin another with --session NAME."
                ) from None
        size = os.fstat(descriptor).st_size
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < size:
            os.ftruncate(descriptor, whole)
        self._descriptor = descriptor

    def _write(self, value: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
            self._acquire()
        if self._descriptor is None:
            raise RuntimeError("a session's file is not open")
        if os.fstat(self._descriptor).st_size == 0:
            self._append({"format": FORMAT, "version": VERSION, "created": now()})
        self._append(value)

    def _append(self, value: Mapping[str, Any]) -> None:
        if self._descriptor is None:
            raise RuntimeError("a session's file is not open")
        line = (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        before = os.fstat(self._descriptor).st_size
        try:
            written = 0
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
            os.fsync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, before)
            raise


def now() -> str:
    """The time as sessions note it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_name() -> str:
    """A name for a talk that was not given one: the time, and four random letters."""
    return f"{datetime.now(UTC):%Y-%m-%d-%H%M%S}-{secrets.token_hex(2)}"


def checked_name(name: str) -> str:
    """``name`` if it can be a session's; raises UsageError.

    >>> checked_name("physics-1")
    'physics-1'
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a session's name; those are letters, digits, '.', '-' and '_'."
        )
    return name


def list_sessions(folder: Path, search: str = "") -> list[SessionEntry]:
    """The sessions that hold a turn, the latest first; with ``search`` those that mention it."""
    entries = []
    for path in folder.glob("*" + SUFFIX) if folder.is_dir() else ():
        try:
            talk = read_talk(path)
            modified = path.stat().st_mtime
        except (UsageError, FileNotFoundError):  # gone meanwhile, or somebody else's file
            continue
        words = [text for turn in talk.turns for text in (turn.user, turn.assistant)]
        if not talk.turns or not any(search.casefold() in text.casefold() for text in words):
            continue
        cache = path.with_suffix(CACHE_SUFFIX)
        size = cache.stat().st_size if cache.exists() else 0
        title = " ".join(talk.turns[0].user.split())[:60]
        entry = SessionEntry(
            path.name.removesuffix(SUFFIX), path, modified, len(talk.turns), title, size
        )
        entries.append(entry)
    return sorted(entries, key=lambda entry: (entry.modified, entry.name), reverse=True)


def find_session(folder: Path, name: str) -> Path:
    """The file of a session; raises UsageError with the nearest name if there is none."""
    path = folder / (checked_name(name) + SUFFIX)
    if not path.exists():
        names = {entry.name: entry for entry in list_sessions(folder)}
        raise UsageError(
            f"There is no session named {name!r}{nearest(name, names)} 'mistral-chat sessions' "
            "lists them."
        )
    return path


def remove_session(folder: Path, name: str) -> None:
    """Remove a session and what was kept of its cache. Raises UsageError as find_session."""
    path = find_session(folder, name)
    session = SessionFile.open(path)
    session.cache_path.unlink(missing_ok=True)
    path.unlink()
    session.close()


def prune_caches(folder: Path) -> None:
    """Remove what was kept of all sessions' caches but the latest; they cost a prefill then."""
    ages = []
    for path in folder.glob("*" + CACHE_SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[KEPT_CACHES:]:
        path.unlink(missing_ok=True)


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
