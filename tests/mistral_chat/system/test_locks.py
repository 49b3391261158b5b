"""One process at a time: locks, sessions that are begun twice, and what killed processes leave."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mistral_chat.errors import ExitCode, NotKeptError, UsageError
from mistral_chat.settings import Paths, Settings
from mistral_chat.system import locks
from mistral_chat.system.locks import FileLock
from mistral_chat.talk import sessions
from mistral_chat.talk.chat import Chat
from mistral_chat.talk.sessions import SessionFile, list_sessions, read_talk, remove_session, sweep

from ..conftest import Command
from ..fakes import FakeEngine


def begun(path: Path) -> SessionFile:
    session = SessionFile.open(path)
    session.record("turn", user="a", assistant="b")
    return session


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path: Path) -> None:
    first = FileLock.take(tmp_path / "lock")
    assert first is not None
    assert FileLock.take(tmp_path / "lock") is None
    first.release()
    assert names(tmp_path) == []
    again = FileLock.take(tmp_path / "lock")
    assert again is not None
    again.release()


@pytest.mark.parametrize("then", ["removed", "replaced"])
def test_a_file_that_goes_between_opening_and_locking_is_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    path = tmp_path / "lock"
    real, goes = locks._lock, [True, True]

    def lock(descriptor: int) -> None:
        real(descriptor)
        if goes:
            goes.pop()
            path.unlink()
            if then == "replaced":
                path.touch()

    monkeypatch.setattr(locks, "_lock", lock)
    taken = FileLock.take(path)
    assert taken is not None
    assert not goes
    assert FileLock.take(path) is None
    taken.release()


def test_a_file_system_without_locks_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_lock", refuse)
    with pytest.raises(UsageError, match="'s' cannot be opened: No locks available"):
        SessionFile.open(tmp_path / "s.jsonl")


def test_a_new_session_is_locked_from_its_first_moment(tmp_path: Path) -> None:
    first = SessionFile.open(tmp_path / "s.jsonl")
    with pytest.raises(UsageError, match="open in another terminal"):
        SessionFile.open(tmp_path / "s.jsonl")
    assert list_sessions(tmp_path) == []
    first.close()
    assert names(tmp_path) == []  # nothing was said


def test_a_talk_is_read_under_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.jsonl"
    begun(path).close()
    take = FileLock.take

    def late(lock: Path) -> FileLock | None:
        """Somebody adds a turn just before the lock is taken."""
        monkeypatch.undo()
        session = SessionFile.open(path)
        session.record("turn", user="c", assistant="d")
        session.close()
        return take(lock)

    monkeypatch.setattr(FileLock, "take", late)
    session = SessionFile.open(path)
    assert [turn.user for turn in session.talk.turns] == ["a", "c"]


def test_an_open_session_is_not_removed(tmp_path: Path) -> None:
    session = begun(tmp_path / "s.jsonl")
    with pytest.raises(UsageError, match="open in another terminal"):
        remove_session(tmp_path, "s")
    session.close()
    remove_session(tmp_path, "s")
    assert names(tmp_path) == []


def test_renaming_moves_the_lock(tmp_path: Path) -> None:
    session, other = begun(tmp_path / "s.jsonl"), SessionFile.open(tmp_path / "other.jsonl")
    with pytest.raises(UsageError, match="'other' is open in another terminal"):
        session.rename("other")
    with pytest.raises(UsageError, match="named 's' already"):
        session.rename("s")
    session.rename("t")
    with pytest.raises(UsageError, match="'t' is open in another terminal"):
        SessionFile.open(tmp_path / "t.jsonl")
    SessionFile.open(tmp_path / "s.jsonl").close()
    other.close()
    session.record("turn", user="c", assistant="d")
    session.close()
    assert names(tmp_path) == ["t.jsonl"]
    assert len(read_talk(tmp_path / "t.jsonl").turns) == 2


def test_a_session_takes_no_other_talk_s_cache_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "t.cache").write_bytes(b"of a session that is no more")
    session = begun(tmp_path / "s.jsonl")
    session.rename("t")
    assert not session.cache_path.exists()


def test_two_terminals_with_one_name(engine: FakeEngine, command: Command, paths: Paths) -> None:
    first = SessionFile.open(paths.sessions / "s.jsonl")
    told = command("--session", "s", "Hi")
    assert (told.code, told.stdout, engine.opened) == (ExitCode.USAGE, "", 0)
    assert "open in another terminal" in told.stderr
    first.close()


LEFT = [
    ".s.cache.new",
    ".s.cache.0123456789abcdef.new",
    ".s.damaged-1.jsonl.0123456789abcdef.new",
    ".s.lock",
]


def test_what_was_left_by_a_kill_is_swept_up(tmp_path: Path) -> None:
    begun(tmp_path / "s.jsonl").close()
    for name in (*LEFT, ".gone.cache.00.new", ".gone.lock", "gone.cache", "empty.jsonl", "s.cache"):
        (tmp_path / name).touch()
    (tmp_path / "mine.new").touch()
    sweep(tmp_path)
    assert names(tmp_path) == ["mine.new", "s.cache", "s.jsonl"]
    sweep(tmp_path / "none")


def test_nothing_is_swept_up_of_a_session_that_is_open(tmp_path: Path) -> None:
    session = begun(tmp_path / "s.jsonl")
    for name in LEFT:
        (tmp_path / name).touch()
    (tmp_path / "s.cache").touch()
    before = names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == before
    session.close()
    SessionFile.open(tmp_path / "s.jsonl").close()  # whoever opens it next sweeps it, too
    assert names(tmp_path) == ["s.cache", "s.jsonl"]


def test_what_was_left_goes_with_its_session(tmp_path: Path) -> None:
    begun(tmp_path / "s.jsonl").close()
    begun(tmp_path / "s.cache.jsonl").close()  # its files are called much like those of the other
    for name in (*LEFT, ".s.cache.cache.00.new"):
        (tmp_path / name).touch()
    remove_session(tmp_path, "s")
    assert names(tmp_path) == [".s.cache.cache.00.new", "s.cache.jsonl"]


@pytest.mark.parametrize("words", [("sessions",), ("sessions", "rm", "s"), ("--session", "t", "?")])
def test_commands_sweep(
    engine: FakeEngine, command: Command, paths: Paths, words: tuple[str, ...]
) -> None:
    engine.answers.append("answer")
    begun(paths.sessions / "s.jsonl").close()
    (paths.sessions / ".old.cache.0123456789abcdef.new").write_bytes(b"keys and values")
    assert command(*words).code == 0
    assert not list(paths.sessions.glob(".*"))


def test_a_name_that_stands_for_what_was_set_aside_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="set aside"):
        sessions.checked_name("s.damaged-1")


def full(_descriptor: int, _data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("form", [[], ["--json"], ["--jsonl"], ["--no-stream"]])
def test_a_turn_that_cannot_be_kept_is_shown_and_said(
    engine: FakeEngine,
    command: Command,
    paths: Paths,
    monkeypatch: pytest.MonkeyPatch,
    form: list[str],
) -> None:
    engine.answers += ["one answer", "two answer"]
    assert command("--session", "s", "one").code == 0
    before = (paths.sessions / "s.jsonl").read_bytes()
    monkeypatch.setattr(os, "write", full)
    told = command("--session", "s", "-q", *form, "two")
    monkeypatch.undo()
    assert told.code == ExitCode.FAILED
    assert "two answer" in told.stdout
    assert told.stderr.count("\n") == 1
    assert "This turn is not kept in the session: The disk is full" in told.stderr
    assert (paths.sessions / "s.jsonl").read_bytes() == before


def test_an_answer_anew_that_cannot_be_kept_costs_no_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begun(tmp_path / "s.jsonl")
    chat = Chat(FakeEngine(["new"]), Settings(), store=session)  # type: ignore[arg-type]
    before = (tmp_path / "s.jsonl").read_bytes()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(NotKeptError, match="not kept"):
        list(chat.ask("a", again=True))
    monkeypatch.undo()
    assert [turn.assistant for turn in chat.turns] == ["b"]
    assert (tmp_path / "s.jsonl").read_bytes() == before


def test_a_copy_that_cannot_be_written_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begun(tmp_path / "s.jsonl")
    chat = Chat(FakeEngine(), Settings(), store=session)  # type: ignore[arg-type]
    copy = SessionFile.open(tmp_path / "copy.jsonl")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        chat.fork(copy)
    monkeypatch.undo()
    assert chat.store is session
    session.close()
    assert names(tmp_path) == ["s.jsonl"]


def test_a_cache_that_cannot_be_kept_is_a_warning(
    engine: FakeEngine, command: Command, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.answers.append("answer")

    def save(_path: Path, _messages: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(engine, "save_cache", save)
    told = command("--session", "s", "-q", "one")
    assert (told.code, told.stdout) == (0, "answer\n")
    assert "What was read could not be kept: The disk is full" in told.stderr
    assert len(read_talk(paths.sessions / "s.jsonl").turns) == 1
