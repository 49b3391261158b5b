"""Talks on the disk: what was whole stays, whatever happens."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_chat.errors import UsageError
from mistral_chat.settings import Paths
from mistral_chat.talk.sessions import (
    KEPT_CACHES,
    SessionFile,
    Talk,
    Turn,
    list_sessions,
    prune_caches,
    read_talk,
    to_json,
    to_markdown,
)

from ..conftest import Command
from ..fakes import FakeEngine


def written(path: Path, *turns: tuple[str, str]) -> SessionFile:
    session = SessionFile.open(path)
    for user, assistant in turns:
        session.record("turn", user=user, assistant=assistant, finish_reason="stop")
    return session


def test_a_file_cut_at_every_byte_opens_with_all_whole_turns(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    written(path, ("one", "1é"), ("two", "2")).record("system", text="Be brief")
    data = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(data) if byte == ord("\n")]
    assert len(ends) == 4
    cut = tmp_path / "cut.jsonl"
    for length in range(len(data) + 1):
        cut.write_bytes(data[:length])
        whole = sum(end <= length for end in ends)
        session = SessionFile.open(cut)
        assert len(session.talk.turns) == min(2, max(0, whole - 1))
        # What is added comes after what was whole, and can be read again.
        session.record("turn", user="new", assistant="n")
        session.close()
        assert [turn.user for turn in read_talk(cut).turns][-1] == "new"
        assert len(read_talk(cut).turns) == len(session.talk.turns)


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    written(tmp_path / "state" / "s.jsonl", ("a", "b"))
    assert stat.S_IMODE((tmp_path / "state" / "s.jsonl").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_a_session_is_written_by_one_process(tmp_path: Path) -> None:
    first = written(tmp_path / "s.jsonl", ("a", "b"))
    with pytest.raises(UsageError, match="open in another terminal"):
        SessionFile.open(tmp_path / "s.jsonl")
    first.close()
    SessionFile.open(tmp_path / "s.jsonl").close()


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = written(tmp_path / "s.jsonl", ("a", "b"))
    before = (tmp_path / "s.jsonl").read_bytes()
    real = os.write

    def full(descriptor: int, data: bytes) -> int:
        real(descriptor, data[:5])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space"):
        session.record("turn", user="c", assistant="d")
    assert (tmp_path / "s.jsonl").read_bytes() == before
    assert len(session.talk.turns) == 1


def test_events(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    session = written(path, ("a", "1"), ("b", "2"), ("c", "3"))
    session.record("evict", turns=2, summary="sums")
    session.record("undo")
    session.record("system", text="S")
    session.record("of a later version")
    assert session.talk.turns == [Turn("a", "1"), Turn("b", "2")]
    assert (session.talk.evicted, session.talk.summary, session.talk.system) == (2, "sums", "S")
    assert read_talk(path) == session.talk or read_talk(path).turns == session.talk.turns
    session.record("clear")
    assert read_talk(path).turns == []
    assert read_talk(path).evicted == 0


@pytest.mark.parametrize("content", [b"hello\n", b"[]\n", b'{"format": "other"}\n', b"\xff\n"])
def test_files_of_somebody_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="is not a session"):
        SessionFile.open(path)
    assert path.read_bytes() == content
    assert list_sessions(tmp_path) == []


@given(st.binary(max_size=200))
def test_damage_in_the_middle_keeps_what_came_before(damage: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.jsonl"
        written(path, ("a", "b")).close()
        path.write_bytes(path.read_bytes() + damage)
        assert read_talk(path).turns[:1] == [Turn("a", "b")] or b"undo" in damage


@given(st.text(), st.text())
def test_every_text_comes_back(user: str, assistant: str) -> None:
    talk = Talk()
    talk.apply(json.loads(json.dumps({"event": "turn", "user": user, "assistant": assistant})))
    assert talk.turns == [Turn(user, assistant)]


def test_listing_renaming_and_removing(tmp_path: Path) -> None:
    written(tmp_path / "one.jsonl", ("What is\nit?", "Nothing")).close()
    two = written(tmp_path / "two.jsonl", ("Why", "Because"))
    two.cache_path.write_bytes(b"12345")
    os.utime(tmp_path / "one.jsonl", (1, 1))
    entries = list_sessions(tmp_path)
    assert [(e.name, e.turns, e.title, e.cache_bytes) for e in entries] == [
        ("two", 1, "Why", 5),
        ("one", 1, "What is it?", 0),
    ]
    assert [entry.name for entry in list_sessions(tmp_path, "NOTHING")] == ["one"]
    two.rename("three")
    assert (tmp_path / "three.cache").exists()
    with pytest.raises(UsageError, match="already"):
        two.rename("one")
    two.record("turn", user="more", assistant="m")
    assert len(read_talk(tmp_path / "three.jsonl").turns) == 2


def test_only_the_latest_caches_are_kept(tmp_path: Path) -> None:
    for number in range(KEPT_CACHES + 3):
        path = tmp_path / f"{number:02}.cache"
        path.touch()
        os.utime(path, (number, number))
    prune_caches(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir())[0] == "03.cache"


def test_export() -> None:
    talk = Talk([Turn("Hi", "Hello")], system="S")
    assert to_markdown("n", talk).startswith("# n\n\n## System\n\nS\n\n## User\n\nHi\n")
    assert [row["role"] for row in json.loads(to_json(talk))] == ["system", "user", "assistant"]


def test_the_commands(command: Command, paths: Paths) -> None:
    written(paths.sessions / "one.jsonl", ("What is it?", "Nothing")).close()
    assert command("sessions").stdout.startswith("one\t")
    assert json.loads(command("sessions", "--json").stdout)[0]["title"] == "What is it?"
    assert command("sessions", "search", "absent").stdout == ""
    assert "## Assistant\n\nNothing" in command("sessions", "export", "one").stdout
    told = command("sessions", "export", "one", "--format", "json").stdout
    assert json.loads(told)[1] == {"role": "assistant", "content": "Nothing"}
    assert command("sessions", "export", "one", "--format", "x").code == 2
    assert command("sessions", "rename", "one", "two").code == 0
    wrong = command("sessions", "export", "tow")
    assert (wrong.code, wrong.stdout) == (2, "")
    assert "did you mean 'two'" in wrong.stderr
    assert command("sessions", "rm", "two").code == 0
    assert command("sessions").stdout == ""


def test_one_question_goes_on_with_a_session(
    engine: FakeEngine, command: Command, paths: Paths
) -> None:
    engine.answers += ["first", "second", "third", "fourth"]
    assert command("--continue", "Hi", "-q").code == 2  # there is none
    assert command("--session", "work", "one", "-q").stdout == "first\n"
    assert command("--continue", "two", "-q").stdout == "second\n"
    assert [message.text for message in engine.asked[-1]] == ["one", "first", "two"]
    assert engine.restored == 1
    assert len(read_talk(paths.sessions / "work.jsonl").turns) == 2
    assert command("three", "-q").stdout == "third\n"  # kept only where it is asked for
    assert len(list_sessions(paths.sessions)) == 1
    (paths.sessions / "work.cache").write_bytes(b"damaged")
    assert command("-c", "four", "-q").stdout == "fourth\n"
    for wrong in (["--private", "-c"], ["-c", "--session", "work"], ["--session", "a/b"]):
        assert command(*wrong, "Hi").code == 2


def test_the_cache_can_be_left_out(engine: FakeEngine, command: Command, paths: Paths) -> None:
    engine.answers.append("first")
    command("--session", "work", "--no-cache", "one")
    assert not list(paths.sessions.glob("*.cache"))


def test_unreadable_is_one_sentence(
    engine: FakeEngine, command: Command, paths: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths.sessions.mkdir(parents=True)
    (paths.sessions / "bad.jsonl").write_text("no session\n")
    result = command("--session", "bad", "Hi")
    assert (result.code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "is not a session of mistral-chat" in result.stderr


def test_unknown_kinds_of_values() -> None:
    talk = Talk()
    values: Any = {"event": "turn", "user": 1, "assistant": "x"}
    with pytest.raises(ValueError, match="without texts"):
        talk.apply(values)
