"""A talk on the disk: one file, to which lines are added and nothing else.

A line is a JSON object. The first tells the format; each other is something that happened: a whole
turn, one taken back, a new system prompt. So a file that ends in the middle of a line, because the
process was killed or the disk was full, still holds every turn before it::

    {"format": "mistral-chat session", "version": 1, "created": "2026-11-24T10:00:00+00:00"}
    {"event": "turn", "user": "Hi", "assistant": "Hello!", "finish_reason": "stop", ...}
    {"event": "undo"}
    {"event": "system", "text": "Be brief"}
    {"event": "together", "events": [{"event": "undo"}, {"event": "turn", ...}]}

A line that is damaged ends what can be relied on. Whoever opens the session to write sets it aside,
with all that follows, as NAME.damaged-1.jsonl, so that nothing is ever written behind it.

Beside it, in a file of the same name that ends in ``.cache``, may lie what the model had read; and
while a session is open, ``.NAME.lock``, which the process holds that may write it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from mistral_chat.errors import UsageError, sentence
from mistral_chat.system.locks import FileLock
from mistral_chat.talk.events import (
    ForeignError,
    Reading,
    Talk,
    first_line,
    read_lines,
    written_line,
)

SUFFIX, CACHE_SUFFIX = ".jsonl", ".cache"
NAME = re.compile(r"[^\W_][\w.-]{0,99}")
ASIDE = re.compile(r"(?P<name>.+)\.damaged-\d+\.jsonl")
HALF_WRITTEN = re.compile(r"\.(?P<name>.+?)(\.cache|\.damaged-\d+\.jsonl)(\.[0-9a-f]+)?\.new")
LOCK = re.compile(r"\.(?P<name>.+)\.lock")
PATIENCE = 5
"""How often a lock is tried again: somebody may hold it just to sweep up."""
_BINARY = getattr(os, "O_BINARY", 0)  # only Windows has it, and changes line ends without


def read_session(path: Path) -> Reading:
    """What of a session's file can be relied on; raises UsageError where that is nothing."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"The session {path} cannot be read: {error.strerror}.") from error
    return _reading(path, data)


def _reading(path: Path, data: bytes) -> Reading:
    try:
        return read_lines(data)
    except ForeignError as error:
        raise UsageError(f"{path} {error}.") from error


def read_talk(path: Path) -> Talk:
    """The talk of a session's file, up to the first damaged line; see :func:`read_session`."""
    return read_session(path).talk


def damage_told(name: str, reading: Reading) -> str | None:
    """A sentence where a session is damaged."""
    if reading.damaged is None:
        return None
    return (
        f"The session {name!r} is damaged at line {reading.damaged}; what comes before is whole, "
        "and the rest is set aside in a file when the session is opened next."
    )


class SessionFile:
    """A session that is open to be written, by this process alone.

    ``notice`` is a sentence where something of the file could not be relied on.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self.talk = Talk()
        self.notice: str | None = None
        self._lock: FileLock | None = lock
        # The file as this process left it: its device, inode and bytes; None before there is one.
        self._state: tuple[int, int, int] | None = None

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a session, or begin one; of that there is a file from its first event on.

        A damaged line and all that follows it is set aside in another file, and a last line that
        was broken off is cut off; ``notice`` tells of both. Raises UsageError where another process
        has the session open or it cannot be used.
        """
        session = cls(path, locked(path))
        try:
            session._take_up()
        except OSError as error:
            session.close()
            raise UsageError(
                f"The session {session.name!r} cannot be opened: {sentence(error)}"
            ) from error
        except BaseException:
            session.close()
            raise
        return session

    @property
    def name(self) -> str:
        """The session's name."""
        return name_of(self.path)

    @property
    def cache_path(self) -> Path:
        """Where what the model had read is kept."""
        return self.path.with_name(self.name + CACHE_SUFFIX)

    def record(self, event: str, **values: Any) -> None:
        """Add an event to the file and to the talk, on the disk before this returns.

        Raises OSError, and UsageError where another program has changed the file; then neither
        the file nor the talk has the event.
        """
        self.record_all([{"event": event, **values}])

    def record_all(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Add events, each in a line of its own; see :meth:`record`."""
        lines = [written_line(event) for event in events]
        read = [json.loads(line) for line in lines]
        self.talk.after(read)  # what could not be read again is never written
        self._append(b"".join(lines))
        for event in read:
            self.talk.apply(event)

    def rename(self, name: str) -> None:
        """Give the session, and what belongs to it, another name. Raises UsageError if it is taken.

        Raises OSError.
        """
        target = self.path.with_name(checked_name(name) + SUFFIX)
        taken = f"There is a session named {name!r} already; choose another name."
        if target.exists():
            raise UsageError(taken)
        if target == self.path:
            return
        lock = locked(target)
        try:
            if target.exists():
                raise UsageError(taken)
            if self._state is not None:
                self.path.rename(target)
                _sync_folder(target.parent)
        except BaseException:
            lock.release()
            raise
        old, old_cache, old_lock = self.path, self.cache_path, self._lock
        self.path, self._lock = target, lock
        try:
            try:
                old_cache.replace(self.cache_path)
            except FileNotFoundError:
                self.cache_path.unlink(missing_ok=True)  # of another talk that had this name
            for each in set_aside_of(old):
                each.rename(_next_aside(target))
        finally:
            if old_lock is not None:
                old_lock.release()

    def close(self) -> None:
        """Let go of the session."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _take_up(self) -> None:
        """Read the file, if there is one, and cut off what cannot be relied on. Raises OSError."""
        for each in half_written_of(self.path):
            each.unlink(missing_ok=True)
        try:
            data = self.path.read_bytes()
            state = self.path.stat()
        except FileNotFoundError:
            return
        reading = _reading(self.path, data)
        if reading.damaged is not None:
            aside = _set_aside(self.path, data[reading.whole :])
            self.notice = (
                f"The session {self.name!r} was damaged at line {reading.damaged}: that line and "
                f"all after it were set aside in {aside}, and it goes on with the "
                f"{len(reading.talk.turns)} turns before."
            )
        elif reading.broken_off:
            self.notice = (
                f"What was last written to the session {self.name!r} was broken off half-way and "
                "is left out."
            )
        if reading.whole < len(data):
            os.truncate(self.path, reading.whole)
        self.talk = reading.talk
        self._state = state.st_dev, state.st_ino, reading.whole

    def _append(self, data: bytes) -> None:
        """Add bytes to the file, or leave it as it was; they are on the disk before this returns.

        Raises OSError and UsageError.
        """
        if self._lock is None:
            raise RuntimeError("the session is closed")
        new = self._state is None
        size = 0 if self._state is None else self._state[2]
        if size == 0:
            data = first_line(now()) + data
        descriptor = self._open_to_add()
        try:
            written = 0
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
            state = os.fstat(descriptor)
        except BaseException:
            # Where this fails, too, the file has another length than is noted: no line will follow.
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, size)
                if new:
                    self.path.unlink()
            raise
        finally:
            os.close(descriptor)
        self._state = state.st_dev, state.st_ino, size + len(data)
        if new:
            _sync_folder(self.path.parent)

    def _open_to_add(self) -> int:
        """The file, opened, if it is as this process left it. Raises OSError and UsageError."""
        flags = os.O_RDWR | os.O_APPEND | _BINARY
        try:
            if self._state is None:
                return os.open(self.path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            descriptor = os.open(self.path, flags)
        except (FileExistsError, FileNotFoundError) as error:
            raise self._changed() from error
        state = os.fstat(descriptor)
        if (state.st_dev, state.st_ino, state.st_size) != self._state:
            os.close(descriptor)
            raise self._changed()
        return descriptor

    def _changed(self) -> UsageError:
        return UsageError(
            f"Another program has changed or removed {self.path}, so nothing more is written to "
            "it; /fork NAME goes on in a file of its own."
        )


def name_of(path: Path) -> str:
    """The name of the session whose file is at ``path``."""
    return path.name.removesuffix(SUFFIX)


def locked(path: Path) -> FileLock:
    """The lock of the session at ``path``; raises UsageError where another process holds it."""
    name = name_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock.take(_lock_path(path))
        for _ in range(PATIENCE):
            if lock is not None:
                break
            time.sleep(0.02)
            lock = FileLock.take(_lock_path(path))
    except OSError as error:
        raise UsageError(f"The session {name!r} cannot be opened: {sentence(error)}") from error
    if lock is None:
        raise UsageError(
            f"The session {name!r} is open in another terminal; close it there, or begin another "
            "with --session NAME."
        )
    return lock


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{name_of(path)}.lock")


def _sync_folder(folder: Path) -> None:
    """Bring to the disk which files a folder has; Windows does so by itself. Raises OSError."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _next_aside(path: Path) -> Path:
    """A name, which no file has, for what is set aside of a session."""
    number = 1
    while (aside := path.with_name(f"{name_of(path)}.damaged-{number}{SUFFIX}")).exists():
        number += 1
    return aside


def _set_aside(path: Path, data: bytes) -> Path:
    """Write what is damaged of a session to a file of its own, whole; its path. Raises OSError."""
    aside = _next_aside(path)
    new = path.with_name(f".{aside.name}.{secrets.token_hex(8)}.new")
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.rename(aside)
    finally:
        new.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return aside


def set_aside_of(path: Path) -> list[Path]:
    """The files with what was set aside of a session."""
    return _belonging(path, ASIDE)


def half_written_of(path: Path) -> list[Path]:
    """Files that a process which was killed was writing for a session."""
    return _belonging(path, HALF_WRITTEN)


def _belonging(path: Path, pattern: re.Pattern[str]) -> list[Path]:
    name = name_of(path)
    found = ((each, pattern.fullmatch(each.name)) for each in path.parent.iterdir())
    return sorted(each for each, match in found if match is not None and match["name"] == name)


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
    if not NAME.fullmatch(name) or ASIDE.fullmatch(name + SUFFIX):
        raise UsageError(
            f"{name!r} cannot be a session's name; those are letters, digits, '.', '-' and '_', "
            "and do not end as what was set aside of one does."
        )
    return name
