"""The folder of the talks that were kept: finding, listing and removing them, and sweeping up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mistral_chat.errors import UsageError
from mistral_chat.settings import nearest
from mistral_chat.talk.events import Talk, Turn, to_json, to_markdown
from mistral_chat.talk.session_file import (
    ASIDE,
    CACHE_SUFFIX,
    HALF_WRITTEN,
    LOCK,
    NAME,
    SUFFIX,
    SessionFile,
    checked_name,
    damage_told,
    half_written_of,
    locked,
    name_of,
    new_name,
    now,
    read_session,
    read_talk,
    set_aside_of,
)

__all__ = [
    "CACHE_SUFFIX",
    "KEPT_CACHES",
    "SUFFIX",
    "SessionEntry",
    "SessionFile",
    "Talk",
    "Turn",
    "checked_name",
    "damage_told",
    "find_session",
    "list_sessions",
    "new_name",
    "now",
    "prune_caches",
    "read_session",
    "read_talk",
    "remove_session",
    "sweep",
    "to_json",
    "to_markdown",
]

KEPT_CACHES = 8


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A session in the list; ``modified`` in seconds since 1970, ``cache_bytes`` of its cache.

    ``damaged`` is the line at which it is damaged; the turns are those before.
    """

    name: str
    path: Path
    modified: float
    turns: int
    title: str
    cache_bytes: int
    damaged: int | None = None


def list_sessions(
    folder: Path, search: str = "", tell: Callable[[str], None] | None = None
) -> list[SessionEntry]:
    """The sessions that hold a turn, the latest first; with ``search`` those that mention it.

    ``tell`` gets a sentence for each file that is damaged or no session.
    """
    entries = []
    for path in sorted(folder.glob("*" + SUFFIX)) if folder.is_dir() else ():
        name = name_of(path)
        try:
            reading = read_session(path)
            modified = path.stat().st_mtime
            cache = path.with_name(name + CACHE_SUFFIX)
            size = cache.stat().st_size if cache.exists() else 0
        except FileNotFoundError:  # gone meanwhile
            continue
        except UsageError as error:
            if tell is not None and path.exists() and not ASIDE.fullmatch(path.name):
                tell(str(error))
            continue
        told = damage_told(name, reading)
        if tell is not None and told is not None:
            tell(told)
        turns = reading.talk.turns
        words = [text for turn in turns for text in (turn.user, turn.assistant)]
        if not turns or not any(search.casefold() in text.casefold() for text in words):
            continue
        entry = SessionEntry(
            name, path, modified, len(turns), _title(turns[0]), size, reading.damaged
        )
        entries.append(entry)
    return sorted(entries, key=lambda entry: (entry.modified, entry.name), reverse=True)


def _title(turn: Turn) -> str:
    return " ".join(turn.user.split())[:60]


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
    """Remove a session, what was kept of its cache, and what was set aside of it.

    Raises UsageError as find_session, and where it is open in another terminal; OSError.
    """
    path = find_session(folder, name)
    lock = locked(path)
    try:
        read_session(path)
        # The session last: what is left by a kill in between still has its name.
        cache = path.with_name(name + CACHE_SUFFIX)
        for each in (*half_written_of(path), cache, *set_aside_of(path), path):
            each.unlink(missing_ok=True)
    finally:
        lock.release()


def sweep(folder: Path) -> None:
    """Remove what processes that were killed have left, but nothing of a session that is open.

    Those are files that were half written, caches without a session, sessions without a line, and
    locks that nobody holds.
    """
    try:
        names = sorted(set(_swept_names(folder)))
    except OSError:  # there is no such folder, or none of ours to sweep
        return
    for name in names:
        path = folder / (name + SUFFIX)
        with contextlib.suppress(OSError, UsageError):  # open elsewhere; or not ours to remove
            lock = locked(path)
            try:
                for each in half_written_of(path):
                    each.unlink(missing_ok=True)
                if path.exists() and path.stat().st_size == 0:
                    path.unlink()
                if not path.exists():
                    path.with_name(name + CACHE_SUFFIX).unlink(missing_ok=True)
            finally:
                lock.release()


def _swept_names(folder: Path) -> Iterator[str]:
    """Names of sessions of which something may have been left."""
    for each in folder.iterdir():
        match = HALF_WRITTEN.fullmatch(each.name) or LOCK.fullmatch(each.name)
        if match is not None:
            yield match["name"]
        elif not NAME.fullmatch(each.name):
            continue
        elif each.name.endswith(CACHE_SUFFIX) and not each.with_suffix(SUFFIX).exists():
            yield each.name.removesuffix(CACHE_SUFFIX)
        elif each.name.endswith(SUFFIX) and each.stat().st_size == 0:
            yield name_of(each)


def prune_caches(folder: Path) -> None:
    """Remove what was kept of all sessions' caches but the latest; they cost a prefill then."""
    ages = []
    for path in folder.glob("*" + CACHE_SUFFIX):
        with contextlib.suppress(FileNotFoundError):
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages, reverse=True)[KEPT_CACHES:]:
        path.unlink(missing_ok=True)
